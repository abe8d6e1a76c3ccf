"""What MLflow is told of a spec and of a result, as plain values: tags, parameters and metrics under their keys."""

import json
import math
from collections.abc import Iterator
from typing import Any

from featkd.result import Candidate, Interval, Result

NOT_PARAMETERS = ("gates", "students")


def parent_tags(result: Result, description: str) -> dict[str, str]:
    recommendation = result.recommendation
    verdicts = {name: found.verdict.verdict for name, found in result.candidates.items() if found.verdict.verdict}
    return {
        "mlflow.note.content": description,
        "featkd.recommendation": recommendation.code,
        "featkd.recommended_candidate": recommendation.candidate or "none",
        "featkd.teacher_adequate": str(result.adequacy.adequate).lower(),
        **{f"verdict.{name}": verdict for name, verdict in verdicts.items()},
    }


def params(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec, flat: data.held_out, training.tokens, ... An assumption {value, source} is its value."""
    flat = dict(_flat({name: part for name, part in spec.items() if name not in NOT_PARAMETERS}))
    flat["students"] = ", ".join(student["name"] for student in spec.get("students", []))
    flat["gates"] = len(spec.get("gates", []))
    return flat


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and set(value) == {"value", "source"}:
            value = value["value"]
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            yield prefix + name, json.dumps(value) if isinstance(value, list) else value


def candidate_tags(candidate: Candidate) -> dict[str, str]:
    return {
        "arm": candidate.arm,
        "size": candidate.size or "",
        "seed": "" if candidate.seed is None else str(candidate.seed),
        "precision": candidate.precision,
        "verdict": candidate.verdict.verdict or candidate.verdict.why or "",
        "artefact": candidate.artefact or "",
    }


def metrics(candidate: Candidate) -> dict[str, float]:
    """What was measured of a candidate, under the keys that all candidates share."""
    latency, memory, money, training = candidate.latency, candidate.memory, candidate.roi, candidate.training
    found: dict[str, float | None] = {}
    for task, score in candidate.quality.tasks.items():
        found[f"quality/{task}"] = score.estimate.value
        found[f"quality/{task}_retained"] = _value(score.retained)
        found[f"quality/{task}_overlap"] = _value(score.overlap)
    for task, agreement in candidate.fidelity.tasks.items():
        found[f"fidelity/{task}_agreement"] = agreement.agreement.value
    found |= {
        "latency/decode_speedup": _value(latency.decode_speedup),
        "memory/peak_rss_mb": _mega(_value(memory.peak_rss_bytes)),
        "memory/device_mb": _mega(_value(memory.device_bytes)),
        "memory/file_mb": _mega(memory.file_bytes),
        "memory/cache_bytes_per_token": memory.cache_bytes_per_token,
        "energy/joules_per_1000_tokens": _value(candidate.energy.joules_per_1000_tokens),
        "cost/per_1m_input_tokens": _value(money.cost_per_million_input_tokens),
        "cost/per_1m_output_tokens": _value(money.cost_per_million_output_tokens),
        "roi/monthly_saving": _value(money.monthly_saving),
        "roi/npv": _value(money.npv),
    }
    if alone := latency.alone:
        for name in ("ttft_ms", "inter_token_ms", "end_to_end_ms"):
            times = getattr(alone, name)
            found |= {f"latency/{name}_p50": times.p50.value, f"latency/{name}_p90": times.p90.value}
    for point in latency.points:
        at = "" if point is alone else f"_at_{point.concurrency}"
        found[f"latency/decode_tokens_per_s{at}"] = point.decode_tokens_per_s.value
    if training:
        found |= {
            "training/seconds": training.seconds,
            "training/teacher_seconds": training.teacher_seconds,
            "training/memory_mb": _mega(training.memory_bytes),
            "training/tokens": training.tokens,
            "training/parameters": training.parameters,
        }
    return {key: float(value) for key, value in found.items() if value is not None and math.isfinite(value)}


def _value(interval: Interval | None) -> float | None:
    return interval.value if interval else None


def _mega(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6
