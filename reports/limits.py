"""What a report cannot say, from what the result holds."""

from typing import Any

from featkd.result import Result
from reports import numbers, view
from reports.text import Text

TOLD = 0.01  # of a task's examples


def stated(result: Result, t: Text) -> list[str]:
    """One sentence per limit that holds for this result."""
    spec: dict[str, Any] = result.spec
    scores = [score for c in result.candidates.values() for score in c.quality.tasks.values()]
    unsourced = sum(row.source is None for row in result.assumptions)
    several = len(view.students(result)) > 3
    measured = any(c.latency.generations for c in result.candidates.values())
    priced = any(c.roi.monthly_cost for c in result.candidates.values())
    basis = teacher.roi.basis if (teacher := view.teacher_of(result)) else None
    trainings = len(spec.get("seeds") or [0])
    rounds = max((c.latency.rounds_needed or 0 for c in result.candidates.values()), default=0)
    slow = [name for name, c in result.candidates.items() if c.roi.meets_target is False]
    lengths = _lengths(spec)
    given = bool((spec.get("teacher") or {}).get("model"))
    known = [
        (bool(scores), "sampling", {"examples": f"{min((s.examples for s in scores), default=0):,}"}),
        *_clustered(result, t),
        *_seen(result, t),
        (given and bool(scores), "given_teacher", {}),
        *_licence(spec.get("teacher") or {}),
        (trainings == 1, "one_seed", {}),
        (trainings > 1, "several_seeds", {"trainings": trainings}),
        (measured, "hardware", {}),
        (bool(slow), "target", {"candidates": ", ".join(slow)}),
        (rounds > 0, "rounds", {"rounds": rounds}),
        (priced and lengths is not None, "lengths", lengths or {}),
        (priced and basis == "export", "teacher_price", {}),
        (basis not in ("export", None), "teacher_figures", {}),
        (any(c.roi.monthly_saving for c in result.candidates.values()), "money_interval", {}),
        (unsourced > 0, "unsourced", {"unsourced": unsourced, "total": len(result.assumptions)}),
        *_guarded(result),
        (bool((spec.get("teacher") or {}).get("train")), "trained_teacher", {}),
        (several, "many_candidates", {"candidates": len(view.students(result))}),
    ]
    return [t(f"limits.{key}", **values) for holds, key, values in known if holds]


def _licence(teacher: dict[str, Any]) -> list[tuple[bool, str, dict[str, str]]]:
    allowed, named = teacher.get("licence_allows_distillation"), teacher.get("licence") or numbers.DASH
    given = bool(teacher.get("model"))
    return [
        (given and allowed is False, "licence_forbids", {"licence": named}),
        (given and allowed is None, "licence_unknown", {}),
    ]


def _guarded(result: Result) -> list[tuple[bool, str, dict[str, str]]]:
    """What is known of bias and safety, and whether it counts."""
    checks = {name for c in result.candidates.values() for name in c.guardrails.checks}
    suites = {name.rpartition(".")[0] for name in checks} - {"generation"}
    gated = any(gate["metric"].startswith("guardrails.") and gate.get("severity", "block") == "block"
                for gate in result.spec.get("gates") or [])  # fmt: skip
    return [
        (not suites, "guardrails", {}),
        (suites == {"own"}, "own_suite", {}),
        (bool(checks) and not gated, "ungated", {}),
    ]


def _clustered(result: Result, t: Text) -> list[tuple[bool, str, dict[str, str]]]:
    """The tasks whose examples share documents."""
    scores = {task: score for c in result.candidates.values() for task, score in c.quality.tasks.items()}
    return [
        (True, "documents", {"task": t.task(task), "documents": f"{score.documents:,}"})
        for task, score in scores.items()
        if score.documents and score.documents < score.examples
    ]


def _seen(result: Result, t: Text) -> list[tuple[bool, str, dict[str, str]]]:
    """The tasks whose examples stand in the training text to a share worth telling."""
    scores = {task: score for c in result.candidates.values() for task, score in c.quality.tasks.items()}
    return [
        (True, "overlap", {"task": t.task(task), "share": numbers.percent(score.overlap, t)})
        for task, score in scores.items()
        if score.overlap and score.overlap.value >= TOLD
    ]


def _lengths(spec: dict[str, Any]) -> dict[str, str] | None:
    """Lengths at which the rates were measured and at which requests are priced; None where they agree."""
    measured, priced = spec.get("latency") or {}, spec.get("cost") or {}
    pairs = {
        "prompt": measured.get("prompt_tokens"),
        "new": measured.get("new_tokens"),
        "input": (priced.get("input_tokens_per_request") or {}).get("value"),
        "output": (priced.get("output_tokens_per_request") or {}).get("value"),
    }
    if None in pairs.values() or (pairs["prompt"], pairs["new"]) == (pairs["input"], pairs["output"]):
        return None
    return {name: numbers.exact(tokens) for name, tokens in pairs.items()}
