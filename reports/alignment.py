"""How hidden states were aligned, and what the held-out check said of it: one paragraph per feature candidate."""

from featkd.result import Alignment, Result
from reports import numbers, view
from reports.text import Text


def stated(result: Result, t: Text) -> list[str]:
    """One paragraph for each way of alignment, with the names of the candidates that had it."""
    found: dict[str, list[str]] = {}
    for name, candidate in view.students(result).items():
        alignment = candidate.training and candidate.training.alignment
        if alignment:
            found.setdefault(_said(alignment, t), []).append(name)
    return [t("alignment.of", candidates=t.listing(names), said=said) for said, names in found.items()]


def _said(alignment: Alignment, t: Text) -> str:
    similar = alignment.similarity or [None] * len(alignment.layer_pairs)
    pairs = [
        t("alignment.pair", student=s, teacher=teacher)
        if cka is None
        else t("alignment.pair_similar", student=s, teacher=teacher, cka=numbers.significant(cka, 2))
        for (s, teacher), cka in zip(alignment.layer_pairs, similar, strict=True)
    ]
    why = "last" if alignment.layer_map.startswith("last-") else alignment.layer_map
    guard = "unguarded" if not alignment.guarded else "kept" if alignment.dropped_at is None else "dropped"
    return t("alignment.separator").join(
        [
            t("alignment.layers", pairs=t.listing(pairs), why=t.code("layer_map", why)),
            t.code("projector", alignment.projector),
            t(f"alignment.{guard}", at=round(100 * (alignment.dropped_at or 0))),
        ]
    )
