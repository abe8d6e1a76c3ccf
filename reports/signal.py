"""What was kept of the teacher, and learned from in its place: one paragraph per kind of cache."""

from featkd.result import Result, Signal
from reports import numbers, view
from reports.text import Text


def stated(result: Result, t: Text) -> list[str]:
    """One paragraph for each way to keep it, with the names of the candidates that had it."""
    found: dict[str, list[str]] = {}
    for name, candidate in view.students(result).items():
        signal = candidate.training and candidate.training.signal
        if signal:
            found.setdefault(_said(signal, t), []).append(name)
    return [t("alignment.of", candidates=t.listing(names), said=said) for said, names in found.items()]


def _said(signal: Signal, t: Text) -> str:
    parts = [t("signal.size", per_token=numbers.exact(signal.bytes_per_token), mb=numbers.size(signal.bytes / 1e6))]
    if signal.outputs == "online":
        parts.append(t("signal.online_outputs"))
    if signal.coverage is not None:
        parts.append(t("signal.top_k", k=signal.top_k, share=numbers.significant(100 * signal.coverage, 3)))
    if signal.kl is not None:
        parts.append(t("signal.last_hidden", kl=numbers.significant(signal.kl, 2)))
    if signal.features == "online":
        parts.append(t("signal.online_features"))
    if signal.cosine is not None:
        parts.append(t("signal.int8", dimensions=signal.dimensions, cosine=numbers.significant(signal.cosine, 3)))
    return t("alignment.separator").join(parts)
