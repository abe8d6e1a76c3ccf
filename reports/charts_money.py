"""Charts of money."""

from matplotlib.ticker import FuncFormatter, MaxNLocator

from featkd.result import Result
from reports import business, numbers
from reports.chart_parts import Chart, by_size, finish, finite
from reports.svg import INK, MUTED, Entry, Style, frame, line, short_number, styles, to_svg
from reports.text import Text

TORNADO_BARS = 8
SEEN = 0.01  # of the longest bar
LOW, HIGH = Style(MUTED, "s", "-"), Style(INK, "s", "-")


def tornado(result: Result, t: Text) -> Chart:
    """NPV with one assumption off at a time, of the student that the business case is of."""
    name = business.whose(result)
    roi = result.candidates[name].roi if name else None
    panels, rows = [], []
    if roi and roi.npv and any(one.npv_low != one.npv_high for one in roi.sensitivities):
        least = SEEN * abs(roi.sensitivities[0].npv_high - roi.sensitivities[0].npv_low)
        told = [one for one in roi.sensitivities if abs(one.npv_high - one.npv_low) > least][:TORNADO_BARS]
        labels = [t.code("assumption_short", one.name) for one in told]
        legend = [Entry(t("charts.at_low"), LOW, "bar"), Entry(t("charts.at_high"), HIGH, "box")]
        figure, axes = frame(26 * len(told), labels, t("charts.npv"), legend=legend)
        axes.axvline(roi.npv.value, color=INK, linewidth=1)
        for y, one in enumerate(told):
            start = roi.npv.value
            axes.barh(y, one.npv_low - start, 0.55, left=start, color=LOW.colour)
            axes.barh(y, one.npv_high - start, 0.55, left=start, facecolor="none", edgecolor=INK, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        panels.append(("", to_svg(figure, "tornado-0", t("charts.tornado.title"))))
        rows = [
            [label, *(numbers.significant(value) for value in (one.low, one.high, one.npv_low, one.npv_high))]
            for label, one in zip(labels, told, strict=True)
        ]
    columns = ["assumption", "low", "high", "npv_low", "npv_high"]
    return finish("tornado", panels, rows, columns, result, t, "roi")


def cash_flow(result: Result, t: Text) -> Chart:
    """Cumulative cash flow, one panel per size; a ring marks the payback."""
    panels = []
    rows = []
    look = styles(result.candidates)
    for size, members in by_size(result).items():
        flows = {name: c.roi for name, c in members.items() if c.roi.cash_flow}
        if not flows:
            continue
        legend = [Entry(name, look[name]) for name in flows]
        if any(finite(roi.payback_months) is not None for roi in flows.values()):
            legend.append(Entry(t("charts.payback"), Style(INK, "o", "-"), "ring"))
        figure, axes = frame(210, None, t("charts.months"), t("charts.cumulative"), legend)
        axes.axhline(0, color=INK, linewidth=1)
        for name, roi in flows.items():
            line(axes, list(enumerate(roi.cash_flow)), look[name], every=max(1, len(roi.cash_flow) // 6))
            months = finite(roi.payback_months)
            if months is not None and months < len(roi.cash_flow):
                axes.plot([months], [0], "o", color=INK, markersize=9, fillstyle="none", mew=1.6)
            rows += [[name, str(month), numbers.significant(money)] for month, money in enumerate(roi.cash_flow)]
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        title = size or ""
        panels.append((title, to_svg(figure, f"cash-flow-{len(panels)}", title or t("charts.cash_flow.title"))))
    return finish("cash_flow", panels, rows, ["candidate", "month", "cumulative"], result, t, "roi")
