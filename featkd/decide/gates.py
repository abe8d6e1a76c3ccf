"""Evidence in, verdict out. A rule passes only when the whole interval is on the right side of its bound.

Where a rule on a task is open, the number of examples that would settle it stands beside it.
"""

import math
from typing import Any, Literal, Protocol

from featkd import spec
from featkd.decide import power
from featkd.measure.statistics import LEVEL
from featkd.result import Decision, Fidelity, GateOutcome, Guardrails, Interval, Latency, Memory, Quality, Roi

Outcome = Literal["pass", "fail", "inconclusive", "missing"]
Observed = tuple[float, float | None, float | None]
AS_GOOD = {"retained": 1.0, "ratio": 1.0, "worse": 0.0}  # of a student that is as good as the teacher
ABOUT_TASKS = ("quality", "fidelity", "guardrails")


class Sections(Protocol):
    """What gates look at; a candidate of the result has it."""

    quality: Quality
    fidelity: Fidelity
    guardrails: Guardrails
    latency: Latency
    memory: Memory
    roi: Roi


def decide(
    rules: list[spec.Gate], of: Sections, level: float = LEVEL, beside_champion: Sections | None = None
) -> Decision:
    """go: every blocking rule passes. no-go: one fails, or its figure is missing. inconclusive: one is undecided.

    Without blocking rules nothing can be a go: inconclusive, because of 'no-gates' or 'no-blocking-gates'.
    of: the candidate beside the teacher. beside_champion: beside what serves now; None where that is the teacher.
    level: of the intervals of quality, fidelity and guardrails.
    """
    outcomes = []
    for rule in rules:
        against = rule.against if beside_champion else "teacher"
        sections = beside_champion if against == "champion" else of
        outcomes.append(_with_examples(_judge(rule, against, _observe(rule.metric, sections)), sections, level))
    blocking = {gate.outcome for gate in outcomes if gate.severity == "block"}
    if not blocking:
        return Decision(verdict="inconclusive", why="no-blocking-gates" if rules else "no-gates", gates=outcomes)
    if blocking & {"fail", "missing"}:
        verdict: Literal["go", "no-go", "inconclusive"] = "no-go"
    else:
        verdict = "go" if blocking == {"pass"} else "inconclusive"
    return Decision(verdict=verdict, why="gates", gates=outcomes)


def costs_pass(decision: Decision, errors_cost: bool = False) -> bool:
    """Do all blocking rules on latency, memory and ROI? Where errors cost, ROI hangs on the examples, too."""
    about_examples = (*ABOUT_TASKS, "roi") if errors_cost else ABOUT_TASKS
    return all(
        gate.outcome == "pass"
        for gate in decision.gates
        if gate.severity == "block" and gate.metric.split(".")[0] not in about_examples
    )


def _observe(metric: str, of: Sections) -> Observed | None:
    """(value, low, high), infinite where a payback never comes; None when it was not measured.

    The task of a rule is looked up by its name: a group of lm-eval tasks (mmlu) has no figure of its own.
    """
    section, *task, name = metric.split(".")
    if metric == "roi.payback_months":
        return _months(of.roi)
    source = _on_tasks(of, section).get(".".join(task)) if task else getattr(of, section)
    found: Interval | None = getattr(source, name, None)
    return None if found is None else (found.value, found.low, found.high)


def _months(roi: Roi) -> Observed | None:
    if roi.payback_months is None:
        return None
    value, low, high = (
        math.inf if month == "never" else month
        for month in (roi.payback_months, roi.payback_months_low, roi.payback_months_high)
    )
    return value, low, high


def _judge(rule: spec.Gate, against: Literal["teacher", "champion"], observed: Observed | None) -> GateOutcome:
    return GateOutcome(
        metric=rule.metric,
        against=against,
        at_least=rule.at_least,
        at_most=rule.at_most,
        severity=rule.severity,
        observed=_shown(observed),
        outcome="missing" if observed is None else _outcome(rule, *observed[1:]),
    )


def _with_examples(gate: GateOutcome, of: Sections, level: float) -> GateOutcome:
    """With what would decide it, if it is open and on a task."""
    section, *task, name = gate.metric.split(".")
    if gate.outcome != "inconclusive" or section not in ABOUT_TASKS or name == "overlap" or task == ["held_out"]:
        return gate
    bound = gate.at_most if gate.at_least is None else gate.at_least
    examples = _on_tasks(of, section)[".".join(task)].examples
    needed = power.examples_needed(gate.observed, bound, examples, level, AS_GOOD.get(name))
    return gate.model_copy(update={"examples_needed": needed})


def _on_tasks(of: Sections, section: str) -> dict[str, Any]:
    if section == "guardrails":
        return of.guardrails.checks
    found = getattr(of, section)
    return found.tasks if section == "quality" else found.tasks | {"held_out": found.held_out}


def _outcome(rule: spec.Gate, low: float | None, high: float | None) -> Outcome:
    if low is None or high is None:
        return "inconclusive"
    if rule.at_least is not None:
        return "pass" if low >= rule.at_least else "fail" if high < rule.at_least else "inconclusive"
    bound = rule.at_most if rule.at_most is not None else math.inf
    return "pass" if high <= bound else "fail" if low > bound else "inconclusive"


def _shown(observed: Observed | None) -> Interval | None:
    if observed is None or math.isinf(observed[0]):
        return None
    value, low, high = observed
    return Interval(value=value, low=low, high=None if high == math.inf else high)
