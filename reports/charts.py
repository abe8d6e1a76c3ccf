"""The charts of a report, drawn from the result document alone. A chart without data says why."""

import math
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from featkd.result import Candidate, Interval, Result
from reports import numbers
from reports.svg import BAND, INK, MUTED, RC, REFERENCE, TEACHER, Entry, Style, frame, styles, to_svg
from reports.text import Text
from reports.view import is_share, shared_reason, students, task_names, teacher_of


class Table(NamedTuple):
    """The data behind a chart. The first columns are words, the rest numbers."""

    columns: list[str]
    rows: list[list[str]]
    words: int = 1


class Chart(NamedTuple):
    key: str
    panels: list[tuple[str, Markup]]
    reason: str | None
    table: Table | None


def draw_all(result: Result, t: Text) -> list[Chart]:
    with matplotlib.rc_context(RC):
        return [draw(result, t) for draw in (quality, trade_off, latency, memory, cash_flow, training)]


def quality(result: Result, t: Text) -> Chart:
    """Every candidate's estimate with its 95 % interval, per task."""
    panels = []
    rows = []
    look = styles(result.candidates)
    for task in task_names(result):
        scored = {name: c.quality.tasks[task] for name, c in result.candidates.items() if task in c.quality.tasks}
        first = next(iter(scored.values()))
        scale = 100 if is_share(first.metric) else 1
        chance = next((score.chance for score in scored.values() if score.chance is not None), None)
        teacher = next((s.estimate for n, s in scored.items() if result.candidates[n].arm == "teacher"), None)
        legend = [Entry(t("charts.interval"), Style(INK, "o", "-"))]
        legend += [Entry(t("charts.teacher_band"), REFERENCE, "band")] if numbers.has_interval(teacher) else []
        legend += [Entry(t("charts.chance"), REFERENCE)] if chance is not None else []
        better = t("charts.higher_better" if first.higher_is_better else "charts.lower_better")
        unit = t("units.percent") if scale == 100 else first.metric
        figure, axes = frame(24 * len(scored), list(scored), f"{unit} · {better}", legend=legend)
        if numbers.has_interval(teacher):
            axes.axvspan(teacher.low * scale, teacher.high * scale, color=BAND, linewidth=0)
        if chance is not None:
            axes.axvline(chance * scale, color=MUTED, linestyle=REFERENCE.dash, linewidth=1.2)
        for y, (name, score) in enumerate(scored.items()):
            _point(axes, score.estimate, y, look[name], scale)
            rows.append(
                [t.task(task), name, _shown(score.estimate, t, scale), _shown(score.difference, t, scale),
                 _shown(score.retained, t, 100), _shown(score.ratio, t), f"{score.examples:,}"]
            )  # fmt: skip
        if "perplexity" in first.metric:
            _log_axis(axes)
        panels.append((t.task(task), to_svg(figure, f"quality-{len(panels)}", t.task(task))))
    columns = ["task", "candidate", "estimate", "difference", "retained", "ratio", "examples"]
    return _chart("quality", panels, rows, columns, result, t, "quality", words=2)


def training(result: Result, t: Text) -> Chart:
    """Validation loss (nats per token) against tokens, one panel per size."""
    panels = []
    rows = []
    look = styles(result.candidates)
    teacher = teacher_of(result)
    goal = teacher.training.curve[-1]["validation_loss"] if teacher and teacher.training and teacher.training.curve else None
    for size, members in _by_size(result).items():
        curves = {
            name: c.training.curve for name, c in _once_per_training(members).items() if c.training and c.training.curve
        }
        if not curves:
            continue
        legend = [Entry(name, look[name]) for name in curves]
        legend += [Entry(t("charts.teacher_end"), TEACHER._replace(marker="", dash=REFERENCE.dash))] if goal else []
        figure, axes = frame(210, None, t("charts.tokens"), t("charts.validation_loss"), legend)
        for name, curve in curves.items():
            points = [(point["tokens"], point["validation_loss"]) for point in curve]
            _line(axes, points, look[name], every=max(1, len(points) // 6))
            rows += [[name, f"{x:,.0f}", numbers.significant(y, 4)] for x, y in points]
        if goal:
            axes.axhline(goal, color=INK, linestyle=REFERENCE.dash, linewidth=1.2)
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        title = size or ""
        panels.append((title, to_svg(figure, f"training-{len(panels)}", title or t("charts.training.title"))))
    return _chart("training", panels, rows, ["candidate", "tokens", "validation_loss"], result, t, "training")


def trade_off(result: Result, t: Text) -> Chart:
    """Share of quality retained against decode speed-up, per task, with the gates drawn in."""
    panels = []
    rows = []
    look = styles(result.candidates)
    for task in task_names(result):
        points = {
            name: (c.latency.decode_speedup, c.quality.tasks[task].retained)
            for name, c in students(result).items()
            if c.latency.decode_speedup and task in c.quality.tasks and c.quality.tasks[task].retained
        }
        if not points:
            continue
        arms = {look[name]: _arm_label(result.candidates[name], points, result) for name in points}
        gates = _bounds(result, f"quality.{task}.retained", "latency.decode_speedup")
        legend = [Entry(label, style, "marker") for style, label in arms.items()]
        legend += [Entry(t("charts.teacher"), TEACHER, "marker")]
        legend += [Entry(t("charts.gate"), REFERENCE)] if any(gates) else []
        figure, axes = frame(220, None, t("charts.speedup"), t("charts.retained"), legend)
        for name, (speed, kept) in points.items():
            axes.errorbar(
                speed.value, kept.value * 100, xerr=_error(speed, 1), yerr=_error(kept, 100), fmt=look[name].marker,
                color=look[name].colour, markersize=7, linewidth=1.4, capsize=2.5,
            )  # fmt: skip
            rows.append([t.task(task), name, _shown(speed, t), _shown(kept, t, 100)])
        if len(points) <= 12 and len({result.candidates[name].size for name in points}) > 1:
            for name, (speed, kept) in points.items():
                axes.annotate(
                    result.candidates[name].size, (speed.value, kept.value * 100), (6, 5), size=9, color=MUTED,
                    textcoords="offset points",
                )  # fmt: skip
        axes.plot([1], [100], TEACHER.marker, color=INK, markersize=6)
        for bound, draw in zip(gates, (axes.axhline, axes.axvline), strict=True):
            if bound is not None:
                draw(bound * (100 if draw == axes.axhline else 1), color=MUTED, linestyle=REFERENCE.dash, linewidth=1.2)
        panels.append((t.task(task), to_svg(figure, f"trade-off-{len(panels)}", t.task(task))))
    columns = ["task", "candidate", "decode_speedup", "retained"]
    return _chart("trade_off", panels, rows, columns, result, t, "latency", words=2)


def latency(result: Result, t: Text) -> Chart:
    """Every measured generation as a dot, the median as a bar."""
    panels = []
    look = styles(result.candidates)
    measured = {name: c.latency for name, c in result.candidates.items()}
    for key, median in (("raw_ttft_ms", "ttft_ms"), ("raw_decode_tokens_per_s", "decode_tokens_per_s")):
        series = {name: getattr(part, key) for name, part in measured.items() if getattr(part, key)}
        if not series:
            continue
        title = t(f"charts.columns.{median}")
        figure, axes = frame(26 * len(series), list(series), title)
        for y, (name, values) in enumerate(series.items()):
            spread = [y + 0.22 * math.sin(2.4 * index) for index in range(len(values))]
            axes.plot(values, spread, look[name].marker, color=look[name].colour, markersize=4, alpha=0.55, mew=0)
            middle = getattr(measured[name], median)
            if middle:
                axes.plot([middle.value] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=2)
        axes.set_xlim(left=0)
        panels.append((title, to_svg(figure, f"latency-{len(panels)}", title)))
    rows = [
        [name, str(part.generations), _shown(part.ttft_ms, t), _shown(part.decode_tokens_per_s, t),
         _raw(part.raw_ttft_ms), _raw(part.raw_decode_tokens_per_s)]
        for name, part in measured.items() if part.raw_ttft_ms or part.raw_decode_tokens_per_s
    ]  # fmt: skip
    columns = ["candidate", "generations", "ttft_ms", "decode_tokens_per_s", "raw_ttft_ms", "raw_decode_tokens_per_s"]
    return _chart("latency", panels, rows, columns, result, t, "latency")


def memory(result: Result, t: Text) -> Chart:
    """Peak memory of the serving process and size of the files, MB."""
    parts = {
        name: c.memory for name, c in result.candidates.items() if c.memory.peak_rss_bytes or c.memory.file_bytes
    }
    panels = []
    if parts:
        look = styles(result.candidates)
        legend = [Entry(t("charts.peak_memory"), TEACHER, "bar"), Entry(t("charts.file_size"), TEACHER, "box")]
        figure, axes = frame(34 * len(parts), list(parts), "MB", legend=legend)
        for y, (name, part) in enumerate(parts.items()):
            if part.peak_rss_bytes:
                peak = part.peak_rss_bytes
                axes.barh(y - 0.13, peak.value / 1e6, 0.38, color=look[name].colour, xerr=_error(peak, 1e-6), ecolor=INK)
            if part.file_bytes:
                axes.barh(y + 0.24, part.file_bytes / 1e6, 0.2, facecolor="none", edgecolor=INK, linewidth=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}"))
        panels.append(("", to_svg(figure, "memory-0", t("charts.memory.title"))))
    rows = [
        [name, _shown(part.peak_rss_bytes, t, 1e-6), _shown(part.rss_above_import_bytes, t, 1e-6),
         _shown(part.rss_ratio, t), numbers.significant(part.file_bytes and part.file_bytes / 1e6)]
        for name, part in parts.items()
    ]  # fmt: skip
    columns = ["candidate", "peak_rss_mb", "rss_above_import_mb", "rss_ratio", "file_mb"]
    return _chart("memory", panels, rows, columns, result, t, "memory")


def cash_flow(result: Result, t: Text) -> Chart:
    """Cumulative cash flow, USD, one panel per size; a ring marks the payback."""
    panels = []
    rows = []
    look = styles(result.candidates)
    for size, members in _by_size(result).items():
        flows = {name: c.roi for name, c in members.items() if c.roi.cash_flow_usd}
        if not flows:
            continue
        legend = [Entry(name, look[name]) for name in flows]
        if any(_number(roi.payback_months) is not None for roi in flows.values()):
            legend.append(Entry(t("charts.payback"), Style(INK, "o", "-"), "marker"))
        figure, axes = frame(210, None, t("charts.months"), t("charts.cumulative_usd"), legend)
        axes.axhline(0, color=INK, linewidth=1)
        for name, roi in flows.items():
            _line(axes, list(enumerate(roi.cash_flow_usd)), look[name], every=max(1, len(roi.cash_flow_usd) // 6))
            months = _number(roi.payback_months)
            if months is not None and months < len(roi.cash_flow_usd):
                axes.plot([months], [0], "o", color=INK, markersize=9, fillstyle="none", mew=1.6)
            rows += [[name, str(month), numbers.significant(usd)] for month, usd in enumerate(roi.cash_flow_usd)]
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        title = size or ""
        panels.append((title, to_svg(figure, f"cash-flow-{len(panels)}", title or t("charts.cash_flow.title"))))
    return _chart("cash_flow", panels, rows, ["candidate", "month", "cumulative_usd"], result, t, "roi")


def _chart(
    key: str, panels: list, rows: list, columns: list[str], result: Result, t: Text, section: str, words: int = 1
) -> Chart:
    if not panels:
        return Chart(key, [], shared_reason(result, section), None)
    return Chart(key, panels, None, Table([t(f"charts.columns.{column}") for column in columns], rows, words))


def _by_size(result: Result) -> dict[str | None, dict[str, Candidate]]:
    """Students by size; with a single size the panel needs no title, so its key is None."""
    sizes = list(dict.fromkeys(c.size for c in students(result).values()))
    if len(sizes) < 2:
        return {None: students(result)}
    return {size: {name: c for name, c in students(result).items() if c.size == size} for size in sizes}


def _once_per_training(members: dict[str, Candidate]) -> dict[str, Candidate]:
    """Precisions of one student share their training."""
    first: dict[tuple, str] = {}
    for name, candidate in members.items():
        first.setdefault((candidate.arm, candidate.seed), name)
    return {name: members[name] for name in first.values()}


def _arm_label(candidate: Candidate, points: dict[str, Any], result: Result) -> str:
    several = len({result.candidates[name].precision for name in points}) > 1
    return f"{candidate.arm} {candidate.precision}" if several else candidate.arm


def _bounds(result: Result, *metrics: str) -> list[float | None]:
    gates = {gate.metric: gate.at_least for c in result.candidates.values() for gate in c.verdict.gates}
    return [gates.get(metric) for metric in metrics]


def _point(axes: Axes, interval: Interval, y: float, style: Style, scale: float) -> None:
    axes.errorbar(
        interval.value * scale, y, xerr=_error(interval, scale), fmt=style.marker, color=style.colour, markersize=7,
        linewidth=1.8, capsize=3,
    )  # fmt: skip


def _line(axes: Axes, points: list[tuple[float, float]], style: Style, every: int) -> None:
    axes.plot(
        *zip(*points, strict=True), color=style.colour, linestyle=style.dash, marker=style.marker, markevery=every,
        markersize=5.5, linewidth=1.6,
    )  # fmt: skip


def _error(interval: Interval, scale: float) -> list[list[float]] | None:
    """Lengths below and above for matplotlib; a bound on the wrong side of the value is drawn as no length."""
    if not numbers.has_interval(interval):
        return None
    below, above = interval.value - interval.low, interval.high - interval.value
    return [[max(below, 0) * scale], [max(above, 0) * scale]]


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float, _: object = None) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}".replace("-", "\N{MINUS SIGN}")
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _shown(interval: Interval | None, t: Text, scale: float = 1) -> str:
    return str(numbers.figure(interval, t, scale)) if interval else numbers.DASH


def _raw(values: list[float]) -> str:
    return " ".join(numbers.significant(value) for value in values)
