"""The frontier of size against quality, one panel per task."""

import math

from matplotlib.axes import Axes

from featkd.result import Result, SizeCurve, SizePoint
from reports import numbers
from reports.chart_parts import Chart, arm_label, finish, shown
from reports.svg import (
    INK,
    MUTED,
    PATH_ALPHA,
    PATH_WIDTH,
    REFERENCE,
    TEACHER,
    WIDTH,
    Entry,
    Style,
    error_lengths,
    frame,
    log_axis,
    styles,
    text_width,
    to_svg,
)
from reports.text import Text
from reports.view import is_share, teacher_of

APART = 5.0  # between arms of one size, in user units
NARROWEST = 4.0  # ratio of the ends of the size axis
PLOT_WIDTH = WIDTH - 66
FRONTIER, RING = Style(MUTED, "", "-"), Style(INK, "o", "-")


def sizes(result: Result, t: Text) -> Chart:
    """Parameters on a log axis against quality with its 95 % interval, a line per arm; the frontier and the gate."""
    panels, rows = [], []
    look = styles(result.candidates)
    for curve in result.sizes.curves:
        if not curve.points:
            continue
        score = next(c.quality.tasks[curve.task] for c in result.candidates.values() if curve.task in c.quality.tasks)
        scale = 100 if curve.measure == "retained" or (curve.measure == "estimate" and is_share(score.metric)) else 1
        points = {point.candidate: point for point in curve.points}
        arms = {look[name]: arm_label(result.candidates[name], points, result) for name in points}
        gate = curve.at_least if curve.at_least is not None else curve.at_most
        legend = [Entry(label, style) for style, label in arms.items()]
        legend += [Entry(t("charts.teacher"), TEACHER, "marker")]
        legend += [Entry(t("charts.gate"), REFERENCE)] if gate is not None else []
        legend += [Entry(t("charts.frontier"), FRONTIER, "path")]
        legend += [Entry(t("charts.surely"), RING, "ring")] if any(p.standing == "on" for p in curve.points) else []
        unit = {"retained": t("charts.retained"), "ratio": t("charts.perplexity_ratio")}.get(
            curve.measure, t("units.percent") if scale == 100 else t.code("metrics", score.metric)
        )
        better = t("charts.higher_better" if curve.higher_is_better else "charts.lower_better")
        figure, axes = frame(230, None, t("charts.parameters"), f"{unit} · {better}", legend)
        _axes(axes, curve, result, scale)
        where = _places(axes, curve.points, [look[name] for name in points], list(arms))
        if gate is not None:
            axes.axhline(gate * scale, color=MUTED, linestyle=REFERENCE.dash, linewidth=1.2)
        steps = [(where[p.candidate], p.quality.value * scale) for p in curve.points if p.optimal]
        steps.append((axes.get_xlim()[1], steps[-1][1]))
        axes.step(
            *zip(*steps, strict=True), where="post", color=MUTED, alpha=PATH_ALPHA, linewidth=PATH_WIDTH,
            solid_capstyle="butt",
        )  # fmt: skip
        for style in arms:
            mine = [p for p in curve.points if look[p.candidate] == style]
            across, up = [where[p.candidate] for p in mine], [p.quality.value * scale for p in mine]
            axes.plot(across, up, color=style.colour, linestyle=style.dash, linewidth=1.2)
            for x, y, p in zip(across, up, mine, strict=True):
                axes.errorbar(
                    x, y, yerr=error_lengths(p.quality, scale), fmt=style.marker, color=style.colour,
                    markersize=5.5, linewidth=1.3, capsize=2,
                )  # fmt: skip
        sure = [(where[p.candidate], p.quality.value * scale) for p in curve.points if p.standing == "on"]
        if sure:
            axes.plot(*zip(*sure, strict=True), "o", color=INK, markersize=11, fillstyle="none", mew=1.2)
        axes.margins(y=0.12)
        _name_sizes(axes, curve.points, result)
        rows += [_row(curve, point, scale, t) for point in curve.points]
        panels.append((t.task(curve.task), to_svg(figure, f"sizes-{len(panels)}", t.task(curve.task))))
    columns = ["task", "candidate", "standing", "parameters", "file_mb", "quality", "lead"]
    return finish("sizes", panels, rows, columns, result, t, "quality", words=3)


def _axes(axes: Axes, curve: SizeCurve, result: Result, scale: float) -> None:
    """Limits with room for every tick, and the teacher on its place."""
    teacher = teacher_of(result)
    own = teacher.training.parameters if teacher and teacher.training else None
    every = [point.parameters for point in curve.points] + ([own] if own else [])
    margin = max(1.25, math.sqrt(NARROWEST * min(every) / max(every)))
    log_axis(axes)
    axes.set_xlim(min(every) / margin, max(every) * margin)
    if curve.measure == "ratio" or (curve.measure == "estimate" and scale == 1 and not curve.higher_is_better):
        log_axis(axes, "y")
    if own and curve.measure != "estimate":
        axes.plot([own], [scale], TEACHER.marker, color=INK, markersize=6)
    elif own and curve.task in teacher.quality.tasks:
        estimate = teacher.quality.tasks[curve.task].estimate
        bars = error_lengths(estimate, scale)
        axes.errorbar(own, estimate.value * scale, yerr=bars, fmt=TEACHER.marker, color=INK, markersize=6, capsize=2)


def _places(axes: Axes, points: list[SizePoint], looks: list[Style], arms: list[Style]) -> dict[str, float]:
    """Where each point stands: at its size, arms beside each other so that their intervals can be told apart."""
    low, high = axes.get_xlim()
    unit = (high / low) ** (APART / PLOT_WIDTH)
    middle = (len(arms) - 1) / 2
    return {
        point.candidate: point.parameters * unit ** (arms.index(style) - middle)
        for point, style in zip(points, looks, strict=True)
    }


def _name_sizes(axes: Axes, points: list[SizePoint], result: Result) -> None:
    """The sizes' names along the top, as far as there is room for them."""
    low, high = axes.get_xlim()
    free = 0.0
    for parameters in sorted({point.parameters for point in points}):
        names = dict.fromkeys(result.candidates[p.candidate].size for p in points if p.parameters == parameters)
        name = ", ".join(names)
        middle = math.log(parameters / low) / math.log(high / low) * PLOT_WIDTH
        half = text_width(name, 9) / 2
        if middle - half >= free:
            axes.annotate(
                name, (parameters, 1), (0, -10), ("data", "axes fraction"), "offset points",
                size=9, color=MUTED, ha="center",
            )  # fmt: skip
            free = middle + half + 4


def _row(curve: SizeCurve, point: SizePoint, scale: float, t: Text) -> list[str]:
    lead = numbers.DASH
    if point.lead:
        by = 100 if point.lead.kind == "difference" and scale == 100 else 1
        lead = t("charts.against", lead=shown(point.lead.estimate, t, by), candidate=point.lead.b)
    return [
        t.task(curve.task),
        point.candidate,
        t.code("standing", point.standing),
        numbers.exact(point.parameters),
        numbers.size(point.file_bytes / 1e6) if point.file_bytes else numbers.DASH,
        shown(point.quality, t, scale),
        lead,
    ]
