"""How much of the teacher's inner states is in a student, layer by layer, before and after training."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from featkd.result import Candidate, Result
from reports import numbers
from reports.chart_parts import Chart, arm_label, finish, once_per_training
from reports.svg import INK, MUTED, Entry, Style, frame, line, styles, to_svg
from reports.text import Text
from reports.view import students

NUMBERED = 8  # layers, up to which the cells hold numbers
BEFORE, AFTER = Style(MUTED, "o", (0, (6, 2))), Style(INK, "s", "-")


def layers(result: Result, t: Text) -> Chart:
    """CKA of one student as two maps, and cosine and norm ratio of all arms of its size by layer."""
    known = {name: c for name, c in students(result).items() if c.transfer.after and c.transfer.before}
    if not known:
        return finish("layers", [], [], [], result, t, "transfer")
    name = result.recommendation.candidate
    name = name if name in known else next((n for n, c in known.items() if c.arm == "feature-kd"), next(iter(known)))
    chosen, panels = known[name], []
    for when in ("before", "after"):
        cka = getattr(chosen.transfer, when).cka
        cell = min(26.0, 220 / len(cka))
        figure, axes = frame(cell * len(cka), None, t("charts.teacher_layer"), t("charts.student_layer"))
        _map(axes, cka)
        title = t(f"charts.layers.{when}", candidate=name)
        panels.append((title, to_svg(figure, f"layers-{when}", title)))
    alike = once_per_training({n: c for n, c in known.items() if c.size == chosen.size})
    for measure in ("cosine", "norm_ratio"):
        panels.append((t(f"charts.layers.{measure}"), _curves(measure, alike, result, t)))
    rows = [
        [n, str(layer), *_told(c, layer)]
        for n, c in once_per_training(known).items()
        for layer in range(len(c.transfer.after.cosine))
    ]
    columns = ["candidate", "layer", "cka_before", "cka_after", "cosine_before", "cosine_after", "norm_before",
               "norm_after"]  # fmt: skip
    return finish("layers", panels, rows, columns, result, t, "transfer", words=2)


def _map(axes: Axes, cka: list[list[float]]) -> None:
    """The darker, the more alike; ink that follows the page."""
    wide = len(cka[0])
    numbered = max(wide, len(cka)) <= NUMBERED
    darkest = 0.5 if numbered else 0.85
    for y, row in enumerate(cka):
        for x, value in enumerate(row):
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=INK, alpha=darkest * min(1.0, max(0.0, value)))
            )
            if numbered:
                axes.text(x, y, numbers.fixed(value, 2), color=INK, size=9, ha="center", va="center")
    axes.set(xlim=(-0.5, wide - 0.5), ylim=(-0.5, len(cka) - 0.5))
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(9, integer=True))


def _curves(measure: str, members: dict[str, Candidate], result: Result, t: Text) -> object:
    look = styles(result.candidates)
    legend = [Entry(arm_label(c, members, result), look[name]) for name, c in members.items()]
    legend.append(Entry(t("charts.before"), BEFORE))
    figure, axes = frame(170, None, t("charts.student_layer"), "", legend)
    for name, candidate in members.items():
        for layers_, style in (
            (candidate.transfer.before, BEFORE._replace(marker=look[name].marker)),
            (candidate.transfer.after, look[name]),
        ):
            line(axes, list(enumerate(getattr(layers_, measure))), style, every=1)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    return to_svg(figure, f"layers-{measure}", t(f"charts.layers.{measure}"))


def _told(candidate: Candidate, layer: int) -> list[str]:
    """CKA: with the teacher's layer at the same depth."""
    both = (candidate.transfer.before, candidate.transfer.after)
    depth = (len(both[1].cka[0]) - 1) / max(1, len(both[1].cka) - 1)
    figures = [
        *(one.cka[layer][round(layer * depth)] for one in both),
        *(one.cosine[layer] for one in both),
        *(one.norm_ratio[layer] for one in both),
    ]
    return [numbers.significant(value, 2) for value in figures]
