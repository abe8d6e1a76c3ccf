"""Does `featkd audit` raise the alarm when it has to, and only then? Simulated histories of weekly looks.

`make bench-audit`, some 20 minutes on 2 cores; CPU only. Answers are drawn as figures, for it is the test that is
tried, not the models: surprise with a long tail, shares that are rare, feedback for a third. A healthy student answers
by one law in all weeks; of one gone bad some answers are babble, or all are further off, from some week on. Uneven
weeks have as few as 30 answers after a first audit of 200, and answers of one token, of which nearly all agree.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas
from evidence import QUICK, write

from featkd.judging import Audit
from featkd.measure.sequential import look

HISTORIES, DRILLS, WEEKS = (10, 4, 52) if QUICK else (300, 60, 52)
GOES_BAD = 10  # the week


def answers(rng: np.random.Generator, n: int, shift: float, bad: float, tail: float, uneven: bool) -> pandas.DataFrame:
    babble = rng.random(n) < bad
    length, off = (1, 0.02) if uneven else (20, np.clip(rng.beta(4, 6, n) + 0.2 * shift + 0.5 * babble, 0, 1))
    return pandas.DataFrame(
        {
            "surprise": rng.lognormal(0.3, tail, n) + shift + 5 * babble,
            "divergence": rng.standard_t(3, n) * 0.3 + 0.1 + shift / 2,
            "disagreement": rng.binomial(length, off, n) / length,
            "repetition": (rng.random(n) < 0.02) | babble,
            "empty": rng.random(n) < 0.005,
            "drift": rng.random(n) < 0.01,
            "personal_data": rng.random(n) < 0.004,
            "feedback": np.where(rng.random(n) < 0.33, rng.random(n) < 0.8, np.nan),
        }
    )


def alarmed(rng: np.random.Generator, case: dict[str, Any]) -> int | None:
    """The week of the first alarm."""
    audit, before = Audit(), []
    for week in range(WEEKS + 1):
        gone = case["goes_bad"] and week >= GOES_BAD
        changes = (case["shift"], case["bad"]) if gone else (0.0, 0.0)
        count = case["answers"] if week == 0 or not case["uneven"] else int(rng.choice([30, 60, 200]))
        now = answers(rng, count, *changes, case["tail"], case["uneven"])
        if any(test.alarm for test in look(now, before, audit)):
            return week
        before.append(now)
    return None


def run(case: dict[str, Any]) -> dict[str, Any]:
    start, rng = time.perf_counter(), np.random.default_rng(case["number"])
    weeks = [alarmed(rng, case) for _ in range(case["histories"])]
    if case["goes_bad"]:
        after = [week - GOES_BAD + 1 if week is not None and week >= GOES_BAD else math.inf for week in weeks]
        median = statistics.median(after)
        found = {
            "weeks_to_alarm_median": median if math.isfinite(median) else None,
            "found": float(np.mean(np.isfinite(after))),
        }
    else:
        found = {"false_alarm": float(np.mean([week is not None for week in weeks]))}
    print(f"{case} {time.perf_counter() - start:.0f} s {found}", file=sys.stderr, flush=True)
    return {**case, **found}


def cases() -> Iterator[dict[str, Any]]:
    number = 0
    for count, uneven in ((60, False), (200, False), (200, True)):
        for tail in (0.4, 1.0):
            number += 1
            common = {"answers": count, "uneven": uneven, "tail": tail, "shift": 0.0, "bad": 0.0, "number": number}
            yield {**common, "goes_bad": False, "histories": HISTORIES}
            if uneven:
                continue
            for shift, bad in ((0.3, 0.0), (0.8, 0.0), (0.0, 0.1), (0.0, 0.3)):
                number += 1
                yield {**common, "shift": shift, "bad": bad, "goes_bad": True, "histories": DRILLS, "number": number}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    healthy = [row["false_alarm"] for row in rows if not row["goes_bad"]]
    usual = [row for row in rows if row["goes_bad"] and row["answers"] == 200 and not row["uneven"]]
    return {
        "false_alarm_worst": max(healthy),
        "found_worst": min(row["found"] for row in usual),
        "weeks_to_alarm_median_worst": max(row["weeks_to_alarm_median"] or math.inf for row in usual),
    }


def main() -> None:
    with ProcessPoolExecutor(int(os.environ.get("WORKERS", os.cpu_count() or 1))) as pool:
        rows = list(pool.map(run, cases()))
    lead = (
        f"Simulated histories of {WEEKS} weekly audits, tested as `featkd audit` tests. false_alarm: share of healthy "
        f"histories with an alarm, of {HISTORIES} (allowed: 0.05). Of students that go bad in week {GOES_BAD}: how "
        "many were found by the end, and after how many audits. shift: nats per token further off; bad: share of "
        "babble; tail: of the surprise's lognormal law. found_worst, weeks: of 200 answers per audit, the default."
    )
    write("audit", rows, summarise(rows), lead)


if __name__ == "__main__":
    main()
