"""The comparison table: what each candidate reached, as rows of cells; and the reasons for what is missing."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from featkd.result import Candidate, GateOutcome, Interval, Result
from reports import numbers
from reports.numbers import Figure
from reports.text import Text


class Cell(NamedTuple):
    """`kind`: finding (has an interval), bare (has none), exact (counted, not estimated), missing."""

    text: str
    range: str | None = None
    kind: str = "exact"
    note: str | None = None
    marks: tuple[str, ...] = ()


class Row(NamedTuple):
    group: str
    label: str
    unit: str
    cells: dict[str, Cell]


class Comparison(NamedTuple):
    names: list[str]
    rows: list[Row]
    notes: list[str]

    def groups(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found


def teacher_of(result: Result) -> Candidate | None:
    return next((c for c in result.candidates.values() if c.arm == "teacher"), None)


def students(result: Result) -> dict[str, Candidate]:
    return {name: c for name, c in result.candidates.items() if c.arm != "teacher"}


def task_names(result: Result) -> list[str]:
    return list(dict.fromkeys(task for c in result.candidates.values() for task in c.quality.tasks))


def overlaps(result: Result, t: Text) -> list[tuple[str, Figure]]:
    """Of each task the share of its examples that stand in the training text."""
    scores = {task: score for c in result.candidates.values() for task, score in c.quality.tasks.items()}
    return [(t.task(task), numbers.percent(score.overlap, t)) for task, score in scores.items() if score.overlap]


def is_share(metric: str) -> bool:
    """Accuracy-like metrics of lm-eval are shares and are printed as percentages."""
    return metric.startswith(("acc", "exact_match", "f1", "token_f1", "em", "pass@"))


def shared_reason(result: Result, section: str) -> str | None:
    """The `why` that most students give for an empty section."""
    whys = [getattr(getattr(c, section), "why", None) for c in students(result).values()]
    known = [why for why in whys if why] or [c.verdict.why for c in students(result).values() if not _measured(c)]
    return max(set(known), key=known.count) if known else None


def _measured(candidate: Candidate) -> bool:
    return bool(candidate.quality.tasks or candidate.latency.generations)


def comparison(result: Result, t: Text) -> Comparison:
    """Every row of the table; reasons for missing cells are collected as numbered notes."""
    names = sorted(result.candidates, key=lambda name: result.candidates[name].arm != "teacher")
    notes: list[str] = []

    def row(
        group: str, label: str, unit: str, read: Callable[[Candidate], Any], scale: float = 1, metric: str = ""
    ) -> Row:
        cells = {}
        for name in names:
            candidate = result.candidates[name]
            cell = _cell(read(candidate), scale, t)
            if candidate.arm == "teacher" and _is_itself(read(candidate)):
                cell = cell._replace(range=None, kind="exact")
            if cell.kind == "missing":
                cell = cell._replace(note=_note(_reason(candidate, group, metric), notes, t))
            cells[name] = cell._replace(
                marks=tuple(g.outcome for g in candidate.verdict.gates if (g.metric, g.against) == (metric, "teacher"))
            )
        return Row(group, label, unit, cells)

    rows = []
    for task in task_names(result):
        rows += _task_rows(row, result, task, t)
    for task in dict.fromkeys(task for c in result.candidates.values() for task in c.fidelity.tasks):
        rows.append(
            row(
                "fidelity",
                t("rows.agreement", task=t.task(task)),
                t("units.percent"),
                lambda c, task=task: _of(c.fidelity.tasks.get(task), "agreement"),
                100,
                f"fidelity.{task}.agreement",
            )
        )
    fixed = [
        ("latency", "ttft_ms", "ms", lambda c: _alone(c, "ttft_ms", "p50"), 1, ""),
        ("latency", "ttft_p90", "ms", lambda c: _alone(c, "ttft_ms", "p90"), 1, ""),
        ("latency", "ttft_speedup", "times", lambda c: c.latency.ttft_speedup, 1, "latency.ttft_speedup"),
        ("latency", "decode_tokens_per_s", "tokens_per_s", lambda c: _alone(c, "decode_tokens_per_s"), 1, ""),
        ("latency", "decode_speedup", "times", lambda c: c.latency.decode_speedup, 1, "latency.decode_speedup"),
        ("latency", "inter_token_p90", "ms", lambda c: _alone(c, "inter_token_ms", "p90"), 1, ""),
        ("latency", "end_to_end", "ms", lambda c: _alone(c, "end_to_end_ms", "p50"), 1, ""),
        ("memory", "peak_rss", "mb", lambda c: c.memory.peak_rss_bytes, 1e-6, ""),
        ("memory", "rss_ratio", "share_of_teacher", lambda c: c.memory.rss_ratio, 1, "memory.rss_ratio"),
        ("memory", "device", "mb", lambda c: c.memory.device_bytes, 1e-6, ""),
        ("memory", "file", "mb", lambda c: c.memory.file_bytes, 1e-6, ""),
        ("memory", "cache", "kb", lambda c: c.memory.cache_bytes_per_token, 1e-3, ""),
        ("energy", "joules", "joules", lambda c: c.energy.joules_per_1000_tokens, 1, ""),
        ("roi", "cost_per_million", "money", lambda c: c.roi.cost_per_million_output_tokens, 1, ""),
        ("roi", "concurrency", "requests", lambda c: c.roi.concurrency, 1, ""),
        ("roi", "machines", "count", lambda c: c.roi.machines, 1, ""),
        ("roi", "monthly_saving", "money", lambda c: c.roi.monthly_saving, 1, "roi.monthly_saving"),
        ("roi", "payback", "months", lambda c: _payback(c, t), 1, "roi.payback_months"),
    ]
    accelerated = any(c.memory.device_bytes for c in result.candidates.values())
    rows += [
        row(group, t(f"rows.{key}"), t(f"units.{unit}"), *rest)
        for group, key, unit, *rest in fixed
        if key != "device" or accelerated
    ]
    return Comparison(names, rows, notes)


def _task_rows(row: Callable[..., Row], result: Result, task: str, t: Text) -> list[Row]:
    score = next(c.quality.tasks[task] for c in result.candidates.values() if task in c.quality.tasks)

    def read(field: str) -> Callable[[Candidate], Interval | None]:
        return lambda c: _of(c.quality.tasks.get(task), field)

    share = is_share(score.metric)
    better = t("rows.higher_better" if score.higher_is_better else "rows.lower_better")
    unit = f"{t('units.percent') if share else t.code('metrics', score.metric)} · {better}"
    rows = [row("quality", t.task(task), unit, read("estimate"), 100 if share else 1)]
    gated = {gate.metric for c in result.candidates.values() for gate in c.verdict.gates}
    for field, row_unit, scale in (
        ("ratio", "share_of_teacher", 1),
        ("retained", "percent", 100),
        ("overlap", "percent", 100),
    ):
        metric = f"quality.{task}.{field}"
        wanted = field != "overlap" or metric in gated  # the same for all candidates
        if wanted and any(_of(c.quality.tasks.get(task), field) for c in result.candidates.values()):
            rows.append(row("quality", t(f"rows.{field}"), t(f"units.{row_unit}"), read(field), scale, metric))
    trainings = max(len(c.quality.replicates) for c in result.candidates.values())
    if trainings > 1:
        scale = 100 if share else 1
        label = t("rows.recipe", count=trainings)
        rows.append(row("quality", label, unit, lambda c: _of(c.quality.recipe.get(task), "estimate"), scale))
    return rows


def _is_itself(value: Any) -> bool:
    """The teacher against itself: exactly one, without an interval."""
    return isinstance(value, Interval) and value.low == value.value == value.high


def _of(part: Any, field: str) -> Any:
    return getattr(part, field) if part is not None else None


def _alone(candidate: Candidate, *fields: str) -> Interval | None:
    """A figure of one request at a time."""
    return functools.reduce(_of, fields, candidate.latency.alone)


def _payback(candidate: Candidate, t: Text) -> Figure | None:
    roi = candidate.roi
    return numbers.payback(roi.payback_months, roi.payback_months_low, roi.payback_months_high, t)


def _cell(value: Any, scale: float, t: Text) -> Cell:
    if isinstance(value, Figure):
        return Cell(value.value, value.range, "finding" if value.range else "bare")
    if isinstance(value, Interval) and math.isfinite(value.value):
        shown = numbers.figure(value, t, scale)
        return Cell(shown.value, shown.range, "finding" if shown.range else "bare")
    if isinstance(value, int | float):
        return Cell(numbers.exact(value) if scale == 1 else numbers.size(value * scale))
    return Cell(numbers.DASH, kind="missing")


def _reason(candidate: Candidate, group: str, metric: str) -> str | None:
    """Why a cell is empty: the section's code, else the verdict's."""
    why = getattr(candidate, group).why
    if why is None and candidate.arm == "teacher":
        return "baseline"
    if why is None and metric.endswith(".retained"):
        return "no-lead"
    return why or (candidate.verdict.why if candidate.verdict.verdict is None else None)


def _note(code: str | None, notes: list[str], t: Text) -> str | None:
    """The number of the note that explains a missing cell."""
    if code is None:
        code = "not-reported"
    text = t.code("why", code)
    if text not in notes:
        notes.append(text)
    return str(notes.index(text) + 1)


def gate_value(gate: GateOutcome, t: Text, observed: bool) -> Figure:
    """A gate's bound, or what was observed, in the unit of its metric."""
    share = gate_unit(gate.metric) in ("percent", "points")
    if observed:
        if gate.observed is None or not math.isfinite(gate.observed.value):
            never = gate.metric == "roi.payback_months" and gate.outcome != "missing"
            return Figure(t("money.never") if never else numbers.DASH)
        low, high = gate.observed.low, gate.observed.high
        if gate.metric == "roi.payback_months" and low is not None and high is None:  # the worst case never pays back
            shown = numbers.payback(gate.observed.value, low, "never", t)
        else:
            shown = numbers.figure(gate.observed, t, 100 if share else 1)
        return shown._replace(value=t(f"format.{gate_unit(gate.metric)}", value=shown.value))
    bound = gate.at_least if gate.at_least is not None else gate.at_most
    if bound is None:
        return Figure(numbers.DASH)
    key = "format.at_least" if gate.at_least is not None else "format.at_most"
    shown = numbers.exact(bound * (100 if share else 1))
    return Figure(t(key, value=t(f"format.{gate_unit(gate.metric)}", value=shown)))


def gate_unit(metric: str) -> str:
    if metric.endswith((".retained", ".agreement", ".overlap")):
        return "percent"
    if metric.endswith((".kl", ".estimate")):
        return "plain"
    if metric == "roi.payback_months":
        return "months"
    if metric.startswith("guardrails."):
        plain = metric.endswith("_bias.worse") or metric.count(".") == 2
        return "plain" if plain else "points"
    return "money" if metric in ("roi.monthly_saving", "roi.npv") else "times"


def check_name(name: str, t: Text) -> str:
    """'own.stereotype' in words; of an lm-eval task its name."""
    suite, _, figure = name.rpartition(".")
    if not suite:
        return t.task(name)
    return t("guardrails.check", suite=t.code("suites", suite), figure=t.code("checks", figure))


def gate_name(metric: str, t: Text, against: str = "teacher") -> str:
    """'quality.<task>.retained' in words; a metric we do not know stands for itself."""
    family, _, rest = metric.partition(".")
    task, _, kind = rest.rpartition(".")
    words = t.code("gates" if against == "teacher" else "gates_beside_champion", f"{family}.{kind}")
    named = check_name(task, t) if family == "guardrails" else t.task(task)
    return words.format(task=named) if words != f"{family}.{kind}" else metric
