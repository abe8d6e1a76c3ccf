"""What the numbers say: verdict sentence, what distillation added, gates, guardrails. Codes in, words out."""

from typing import NamedTuple

from featkd.result import Candidate, Comparison, GateOutcome, Interval, NextStep, Result, Score
from reports import numbers, view
from reports.text import Text

UNMEASURED = ("parity-failed", "export-failed", "accuracy-failed", "not-run")
UNDECIDED = {
    "no-gates": "sentence.no_gates",
    "no-blocking-gates": "sentence.no_blocking_gates",
}
SHOWN_TASKS = 8


class Finding(NamedTuple):
    """One paired comparison. `reading`: gain, loss, no-gain, or unjudged where there is no interval."""

    task: str
    a: str
    b: str
    figure: numbers.Figure
    reading: str


class GateRow(NamedTuple):
    name: str
    required: str
    severity: str
    observed: numbers.Figure
    outcome: str
    note: str | None


def verdict_sentence(result: Result, t: Text) -> str:
    """The recommendation in one sentence that can be said aloud."""
    advice = result.recommendation
    chosen = result.candidates.get(advice.candidate or "")
    if advice.code == "replace" and chosen:
        reasons = _reasons(chosen, t)
        if not reasons:
            return t("sentence.replace_plain", candidate=advice.candidate)
        return t("sentence.replace", candidate=advice.candidate, reasons=t.listing(reasons))
    if advice.code == "teacher-inadequate":
        return t("sentence.teacher_inadequate")
    decisions = [c.verdict for c in view.students(result).values()]
    if decisions and all(decision.why in UNMEASURED for decision in decisions):
        return t("sentence.unmeasured" if advice.code == "keep-teacher" else "sentence.unmeasured_undecided")
    for why, key in UNDECIDED.items():
        if decisions and all(decision.why == why for decision in decisions):
            return t(key)
    if advice.code == "keep-teacher":
        return t("sentence.keep_teacher") + _nearest(result, t)
    if advice.code == "undecided" and any(decision.why == "no-control" for decision in decisions):
        return t("sentence.no_control")
    if advice.code == "undecided":
        return t("sentence.undecided_one", candidate=advice.candidate) if chosen else t("sentence.undecided")
    return t.code("recommendation", advice.code)


def next_steps(result: Result, t: Text) -> list[str]:
    """What to try where there is no go."""
    return [_step(step, t) for step in result.recommendation.next]


def _step(step: NextStep, t: Text) -> str:
    value = step.value or 0.0
    return t(
        f"next.{step.code}",
        candidate=step.candidate,
        task=t.task(step.task) if step.task else "",
        count=numbers.exact(float(f"{value:.2g}")),
        percent=t("format.percent", value=numbers.significant(100 * value, 2)),
        times=numbers.significant(value, 2),
        share=numbers.significant(value, 2),
    )


def _nearest(result: Result, t: Text) -> str:
    """Which student comes closest, and the gates that it fails: the fewest, then the best on its weakest task."""
    failed = {
        name: [gate for gate in c.verdict.gates if gate.severity == "block" and gate.outcome == "fail"]
        for name, c in view.students(result).items()
    }
    failed = {name: gates for name, gates in failed.items() if gates}
    if not failed:
        return ""

    def distance(name: str) -> tuple[int, float]:
        kept = _retained(result.candidates[name]).values()
        return len(failed[name]), -min((interval.value for interval in kept), default=0.0)

    name = min(failed, key=distance)
    gates = t.listing([t("list.quoted", item=view.gate_name(gate.metric, t, gate.against)) for gate in failed[name]])
    return t("sentence.nearest", candidate=name, gates=gates)


def _reasons(candidate: Candidate, t: Text) -> list[str]:
    """Figures with intervals only; the weakest task speaks for quality, and a loss on a task it leaves out is named."""
    reasons = []
    tasks = candidate.quality.tasks
    kept = _retained(candidate)
    if kept:
        known, total = len(kept), len(tasks)
        key = "keeps_some" if known < total else "keeps_one" if total == 1 else "keeps"
        weakest = numbers.percent(min(kept.values(), key=lambda interval: interval.value), t).value
        reasons.append(t(f"sentence.{key}", retained=weakest, known=known, total=total))
    worse = [_quoted(task, t) for task, score in tasks.items() if task not in kept and _is_loss(score)]
    if worse:
        reasons.append(t("sentence.worse", tasks=t.listing(worse)))
    if numbers.has_interval(candidate.latency.decode_speedup):
        reasons.append(t("sentence.faster", speedup=numbers.figure(candidate.latency.decode_speedup, t).value))
    saving = candidate.roi.monthly_saving
    if numbers.has_interval(saving):
        shown = numbers.figure(saving, t)
        key = "sentence.saves" if saving.value >= 0 else "sentence.costs"
        reasons.append(t(key, money=t("format.money", value=shown.value.lstrip("\N{MINUS SIGN}"))))
    return reasons


def _retained(candidate: Candidate) -> dict[str, Interval]:
    """What is retained per task, where that has an interval."""
    return {
        task: score.retained for task, score in candidate.quality.tasks.items() if numbers.has_interval(score.retained)
    }


def _is_loss(score: Score) -> bool:
    """The whole interval of the paired difference to the teacher is on the worse side."""
    if not numbers.has_interval(score.difference):
        return False
    return score.difference.high < 0 if score.higher_is_better else score.difference.low > 0


def key_figures(result: Result, t: Text) -> list[tuple[str, numbers.Figure]]:
    """The recommended candidate's four figures, those that have an interval."""
    chosen = result.candidates.get(result.recommendation.candidate or "")
    if not chosen or chosen.arm == "teacher":
        return []
    shown = []
    kept = _retained(chosen)
    if kept:
        known, total = len(kept), len(chosen.quality.tasks)
        task = min(kept, key=lambda task: kept[task].value)
        label = t(
            f"key.{'retained_some' if known < total else 'retained'}", task=t.task(task), known=known, total=total
        )
        shown.append((label, numbers.percent(kept[task], t)))
    if numbers.has_interval(chosen.latency.decode_speedup):
        speed = numbers.figure(chosen.latency.decode_speedup, t)
        shown.append((t("key.speedup"), speed._replace(value=t("format.times", value=speed.value))))
    if numbers.has_interval(chosen.roi.monthly_saving):
        saving = numbers.figure(chosen.roi.monthly_saving, t)
        shown.append((t("key.saving"), saving._replace(value=t("format.money", value=saving.value))))
    roi = chosen.roi
    payback = numbers.payback(roi.payback_months, roi.payback_months_low, roi.payback_months_high, t)
    if payback and payback.range:
        value = payback.value if roi.payback_months == "never" else t("format.months", value=payback.value)
        shown.append((t("key.payback"), payback._replace(value=value)))
    return shown


def adequacy_lines(result: Result, t: Text) -> list[str]:
    """The failed checks of the teacher, in words and numbers."""
    lines = []
    for check in result.adequacy.checks:
        if check.passed:
            continue
        share = _share_of(result, check.task, check.teacher.value)
        shown = [_with_range(interval, share, t) for interval in (check.teacher, check.other)]
        named = {"task": t.task(check.task), "control": check.control or check.against}
        lines.append(t(f"adequacy.{check.against}", teacher=shown[0], other=shown[1], **named))
    return lines


def _with_range(interval: Interval, share: bool, t: Text) -> str:
    shown = numbers.percent(interval, t) if share else numbers.figure(interval, t)
    return shown.value if interval.low == interval.high else str(shown)


def _share_of(result: Result, task: str, value: float) -> bool:
    metric = next((c.quality.tasks[task].metric for c in result.candidates.values() if task in c.quality.tasks), None)
    return view.is_share(metric) if metric else "perplexity" not in task and 0 <= value <= 1


def distillation(result: Result, t: Text) -> list[Finding]:
    return [_finding(comparison, result, t) for comparison in result.comparisons]


def beside_champion(result: Result, t: Text) -> list[Finding]:
    pairs = result.champion.comparisons if result.champion else []
    return [_finding(pair, result, t)._replace(b=t("champion.name")) for pair in pairs]


def _finding(pair: Comparison, result: Result, t: Text) -> Finding:
    score = next((c.quality.tasks[pair.task] for c in result.candidates.values() if pair.task in c.quality.tasks), None)
    neutral = 1.0 if pair.kind == "ratio" else 0.0
    higher = score.higher_is_better if score else pair.kind == "difference"
    if pair.kind == "difference" and (score is None or view.is_share(score.metric)):
        shown = numbers.figure(pair.estimate, t, 100)
        shown = shown._replace(value=t("format.points", value=shown.value))
    else:
        shown = numbers.figure(pair.estimate, t)
        shown = shown._replace(value=t("format.times", value=shown.value)) if pair.kind == "ratio" else shown
    if not numbers.has_interval(pair.estimate):
        reading = "unjudged"
    elif pair.estimate.low <= neutral <= pair.estimate.high:
        reading = "no-gain"
    else:
        reading = "gain" if (pair.estimate.low > neutral) == higher else "loss"
    return Finding(pair.task, pair.a, pair.b, shown, reading)


def distillation_sentences(findings: list[Finding], t: Text) -> list[str]:
    """One sentence per pair of candidates; with many pairs, one count over all."""
    pairs = list(dict.fromkeys((finding.a, finding.b) for finding in findings))
    if len(pairs) > 6:
        counts = {key: sum(f.reading == key for f in findings) for key in ("gain", "no-gain", "loss", "unjudged")}
        parts = [t(f"added.count.{key}", count=count) for key, count in counts.items() if count]
        return [t("added.counted", total=len(findings), parts=t.listing(parts))]
    sentences = []
    for a, b in pairs:
        mine = [finding for finding in findings if (finding.a, finding.b) == (a, b)]
        parts = [
            t(f"added.{reading}", tasks=t.listing([_quoted(f.task, t) for f in mine if f.reading == reading]))
            for reading in ("gain", "no-gain", "loss", "unjudged")
            if any(f.reading == reading for f in mine)
        ]
        sentences.append(t("added.sentence", a=a, b=b, parts=t("added.separator").join(parts)))
    return sentences


def _quoted(task: str, t: Text) -> str:
    return t("list.quoted", item=t.task(task))


def gate_rows(candidate: Candidate, t: Text) -> list[GateRow]:
    return [
        GateRow(
            view.gate_name(gate.metric, t, gate.against),
            view.gate_value(gate, t, observed=False).value,
            t.code("severity", gate.severity),
            view.gate_value(gate, t, observed=True),
            gate.outcome,
            _not_a_task(gate, candidate, t) or _needed(gate, t),
        )
        for gate in candidate.verdict.gates
    ]


def _not_a_task(gate: GateOutcome, candidate: Candidate, t: Text) -> str | None:
    """For a gate on a group of tasks (mmlu), which has no figure of its own: the tasks that were measured."""
    family, _, rest = gate.metric.partition(".")
    tasks = list(candidate.quality.tasks)
    if gate.outcome != "missing" or family not in ("quality", "fidelity") or not tasks:
        return None
    if rest.rpartition(".")[0] in tasks:
        return None
    names = t("list.comma").join(t.task(task) for task in tasks[:SHOWN_TASKS]) + (
        " …" if len(tasks) > SHOWN_TASKS else ""
    )
    return t("gate_section.not_a_task", tasks=names)


def _needed(gate: GateOutcome, t: Text) -> str | None:
    count = gate.examples_needed
    return t("gate_section.needed", count=numbers.exact(float(f"{count:.2g}"))) if count else None


def reasons_by_code(result: Result, section: str) -> list[tuple[str, list[str]]]:
    """Candidates whose section is empty, grouped by why: [(code, names)]."""
    grouped: dict[str, list[str]] = {}
    for name, candidate in result.candidates.items():
        part = getattr(candidate, section)
        if part.why and part.why != "baseline":
            grouped.setdefault(part.why, []).append(name)
    return list(grouped.items())
