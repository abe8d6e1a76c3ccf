"""What realistic candidates cost and save."""

from featkd.result import Interval, Roi, Scenario, Sensitivity

ANNUITY = 32  # of 36 months, about
ONE_OFF = 10_068.5
OFF = {"requests_per_month": (1e6, 1), "price_per_hour": (1.2, 1), "utilisation": (0.7, -0.8), "peak_factor": (3, -0.7)}


def around(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def money(tokens_per_s: float, of_teacher: float, teacher: bool) -> Roi:
    per_million = 1.2 / (tokens_per_s * 3600 * 0.4) * 1e6
    cost = per_million * 200
    saving = 1.2 / (of_teacher * 3600 * 0.4) * 1e6 * 200 - cost
    if teacher:
        return Roi(
            why="baseline",
            basis="export",
            cost_per_million_output_tokens=around(per_million, 0.2),
            machines=3,
            monthly_cost=around(cost, 41.0),
        )
    months = ONE_OFF / saving if saving > 0 else "never"
    bars = [
        Sensitivity(
            name=name,
            low=0.75 * value,
            high=1.25 * value,
            npv_low=worth(saving * (1 - 0.25 * weight)),
            npv_high=worth(saving * (1 + 0.25 * weight)),
        )
        for name, (value, weight) in OFF.items()
    ]
    bars.append(Sensitivity(name="engineering_cost", low=7500, high=12_500, npv_low=worth(saving) + 2500,
                            npv_high=worth(saving) - 2500))  # fmt: skip
    bars.append(Sensitivity(name="throughput", low=390.0, high=409.0, npv_low=worth(saving - 13),
                            npv_high=worth(saving + 12)))  # fmt: skip
    return Roi(
        cost_per_million_output_tokens=around(per_million, 0.06),
        machines=1,
        monthly_cost=around(cost, 12.0),
        monthly_saving=around(saving, 43.0),
        one_off_cost=ONE_OFF,
        payback_months=months,
        payback_months_low=months if months == "never" else months * 0.94,
        payback_months_high=months if months == "never" else months * 1.07,
        npv=around(worth(saving), 43.0 * ANNUITY),
        return_on_investment=around(saving * 36 / ONE_OFF - 1, 0.1),
        cash_flow=[-ONE_OFF + saving * month for month in range(37)],
        break_even_requests="never" if saving <= 0 else 1e6 * ONE_OFF / (saving * ANNUITY),
        sensitivities=sorted(bars, key=lambda bar: -abs(bar.npv_high - bar.npv_low)),
        scenarios=[scenario(name, saving * by) for name, by in SCENARIOS.items()],
    )


SCENARIOS = {"pessimistic": 0.31, "expected": 1.0, "optimistic": 2.2}


def worth(saving: float) -> float:
    return saving * ANNUITY - ONE_OFF


def scenario(name: str, saving: float) -> Scenario:
    months = ONE_OFF / saving if saving > 0 else "never"
    return Scenario(name=name, monthly_saving=saving, npv=worth(saving), payback_months=months)
