"""The charts of a report, drawn from the result document alone. A chart without data says why."""

import matplotlib
from matplotlib.ticker import FuncFormatter, MaxNLocator

from featkd.result import Result
from reports import numbers
from reports.chart_parts import Chart, arm_label, bounds, by_size, finish, once_per_training, shown
from reports.charts_layers import layers
from reports.charts_money import cash_flow, tornado
from reports.charts_serving import latency, memory, throughput
from reports.charts_sizes import sizes
from reports.svg import (
    BAND,
    INK,
    MUTED,
    RC,
    REFERENCE,
    TEACHER,
    Entry,
    Style,
    error_lengths,
    frame,
    line,
    log_axis,
    point,
    short_number,
    styles,
    to_svg,
)
from reports.text import Text
from reports.view import is_share, students, task_names, teacher_of


def draw_all(result: Result, t: Text) -> list[Chart]:
    with matplotlib.rc_context(RC):
        drawn = [quality, sizes] if result.sizes else [quality]
        drawn += [trade_off, latency, throughput, memory, cash_flow, tornado, training, layers]
        return [draw(result, t) for draw in drawn]


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
        unit = t("units.percent") if scale == 100 else t.code("metrics", first.metric)
        figure, axes = frame(24 * len(scored), list(scored), f"{unit} · {better}", legend=legend)
        if numbers.has_interval(teacher):
            axes.axvspan(teacher.low * scale, teacher.high * scale, color=BAND, linewidth=0)
        if chance is not None:
            axes.axvline(chance * scale, color=MUTED, linestyle=REFERENCE.dash, linewidth=1.2)
        for y, (name, score) in enumerate(scored.items()):
            point(axes, score.estimate, y, look[name], scale)
            rows.append(
                [
                    t.task(task),
                    name,
                    shown(score.estimate, t, scale),
                    shown(score.difference, t, scale),
                    shown(score.retained, t, 100),
                    shown(score.ratio, t),
                    f"{score.examples:,}",
                ]
            )
        if "perplexity" in first.metric:
            log_axis(axes)
        panels.append((t.task(task), to_svg(figure, f"quality-{len(panels)}", t.task(task))))
    columns = ["task", "candidate", "estimate", "difference", "retained", "ratio", "examples"]
    return finish("quality", panels, rows, columns, result, t, "quality", words=2)


def training(result: Result, t: Text) -> Chart:
    """Validation loss (nats per token) against tokens, one panel per size."""
    panels = []
    rows = []
    look = styles(result.candidates)
    teacher = teacher_of(result)
    goal = (
        teacher.training.curve[-1]["validation_loss"]
        if teacher and teacher.training and teacher.training.curve
        else None
    )
    for size, members in by_size(result).items():
        curves = {
            name: c.training.curve for name, c in once_per_training(members).items() if c.training and c.training.curve
        }
        if not curves:
            continue
        legend = [Entry(name, look[name]) for name in curves]
        legend += [Entry(t("charts.teacher_end"), TEACHER._replace(marker="", dash=REFERENCE.dash))] if goal else []
        figure, axes = frame(210, None, t("charts.tokens"), t("charts.validation_loss"), legend)
        for name, curve in curves.items():
            points = [(step["tokens"], step["validation_loss"]) for step in curve]
            line(axes, points, look[name], every=max(1, len(points) // 6))
            rows += [[name, f"{x:,.0f}", numbers.significant(y, 4)] for x, y in points]
        if goal:
            axes.axhline(goal, color=INK, linestyle=REFERENCE.dash, linewidth=1.2)
        axes.xaxis.set_major_formatter(FuncFormatter(short_number))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        title = size or ""
        panels.append((title, to_svg(figure, f"training-{len(panels)}", title or t("charts.training.title"))))
    return finish("training", panels, rows, ["candidate", "tokens", "validation_loss"], result, t, "training")


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
        arms = {look[name]: arm_label(result.candidates[name], points, result) for name in points}
        gates = bounds(result, f"quality.{task}.retained", "latency.decode_speedup")
        legend = [Entry(label, style, "marker") for style, label in arms.items()]
        legend += [Entry(t("charts.teacher"), TEACHER, "marker")]
        legend += [Entry(t("charts.gate"), REFERENCE)] if any(gates) else []
        figure, axes = frame(220, None, t("charts.speedup"), t("charts.retained"), legend)
        for name, (speed, kept) in points.items():
            axes.errorbar(
                speed.value,
                kept.value * 100,
                xerr=error_lengths(speed, 1),
                yerr=error_lengths(kept, 100),
                fmt=look[name].marker,
                color=look[name].colour,
                markersize=7,
                linewidth=1.4,
                capsize=2.5,
            )
            rows.append([t.task(task), name, shown(speed, t), shown(kept, t, 100)])
        if len(points) <= 12 and len({result.candidates[name].size for name in points}) > 1:
            for name, (speed, kept) in points.items():
                axes.annotate(
                    result.candidates[name].size,
                    (speed.value, kept.value * 100),
                    (6, 5),
                    size=9,
                    color=MUTED,
                    textcoords="offset points",
                )
        axes.plot([1], [100], TEACHER.marker, color=INK, markersize=6)
        for bound, draw in zip(gates, (axes.axhline, axes.axvline), strict=True):
            if bound is not None:
                draw(bound * (100 if draw == axes.axhline else 1), color=MUTED, linestyle=REFERENCE.dash, linewidth=1.2)
        panels.append((t.task(task), to_svg(figure, f"trade-off-{len(panels)}", t.task(task))))
    columns = ["task", "candidate", "decode_speedup", "retained"]
    return finish("trade_off", panels, rows, columns, result, t, "latency", words=2)
