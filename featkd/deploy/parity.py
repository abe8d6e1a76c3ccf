"""Does the exported graph compute what PyTorch computes? On real held-out tokens, the ways it will be used."""

from pathlib import Path
from typing import Any

import numpy as np

from featkd.deploy.generate import Generator
from featkd.deploy.session import OnnxModel
from featkd.errors import InputError
from featkd.result import Parity

STEPS = 24
NEW_TOKENS = 16
NOT_A_NUMBER = 1e30


def check(model: Any, folder: Path, probe: list[list[int]], tolerance: float | None, threads: int) -> Parity:
    """Compare an ONNX folder with the PyTorch model it was made from, on the CPU.

    Args:
        model: the transformers causal LM, in float32 and in eval mode.
        folder: the exported folder.
        probe: token ids of real held-out texts, one list per text, lengths may differ.
        tolerance: largest |logit difference| that passes; None, for lower precisions: any that is a number.
        threads: CPU threads.

    Returns result.Parity. `checks` holds the largest |logit difference| of
        unpadded: each text alone, left_padded: all texts in one batch, padded on the left,
        and those of `generation`, on the graph that generates;
    and `generation`: the share of greedily generated tokens that differ (0 passes; a token may differ without
    failing only where PyTorch's two best logits are closer than the tolerance). `mean_kl`: from PyTorch's distribution
    to the exported model's, nats per token.
    Raises InputError when the probe is empty.
    """
    probe = [ids for ids in probe if len(ids) >= 2]
    if not probe:
        raise InputError("the parity check needs held-out texts of at least two tokens")
    exported = OnnxModel(folder, threads, "cpu")
    if exported.max_positions:
        probe = [ids[: exported.max_positions] for ids in probe]
    expected = [torch_logits(model, ids) for ids in probe]
    alone = [exported.logits(np.array([ids]), np.ones((1, len(ids)), np.int64))[0] for ids in probe]
    checks = {
        "unpadded": _worst(alone, expected),
        "left_padded": _worst(_left_padded(exported, probe), expected),
        **generation(model, folder, probe, threads),
    }
    generator = Generator(folder, threads)
    differ = _generated(model, generator, probe[0], tolerance or 0.0)
    worst = max(checks.values())
    same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in zip(alone, expected, strict=True)])
    return Parity(
        passed=worst < NOT_A_NUMBER if tolerance is None else bool(worst <= tolerance and differ == 0),
        max_abs_difference=worst,
        tolerance=tolerance,
        argmax_agreement=float(same.mean()),
        mean_kl=float(np.mean(np.concatenate([_divergence(a, b) for a, b in zip(expected, alone, strict=True)]))),
        tokens=int(same.size),
        checks={**checks, "generation": differ},
        graph=generator.graph,
    )


def generation(model: Any, folder: Path, probe: list[list[int]], threads: int) -> dict[str, float]:
    """Largest |logit difference| of the graph that generates, through its cache.

    stepwise: the first text token by token; prefill: each text alone, half of it as its prompt; batched: all texts
    side by side, their halves as prompts of different lengths.
    """
    generator = Generator(folder, threads)
    probe = [ids[: generator.max_positions] for ids in probe]
    halves = [(len(ids) + 1) // 2 for ids in probe]
    expected = [torch_logits(model, ids)[half - 1 :] for ids, half in zip(probe, halves, strict=True)]
    few = probe[0][:STEPS]
    alone = [generator.forced([ids], [half])[0] for ids, half in zip(probe, halves, strict=True)]
    return {
        "stepwise": _worst(generator.forced([few], [1]), [torch_logits(model, few)]),
        "prefill": _worst(alone, expected),
        "batched": _worst(generator.forced(probe, halves), expected),
    }


def torch_logits(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def _left_padded(exported: OnnxModel, probe: list[list[int]]) -> list[np.ndarray]:
    longest = max(map(len, probe))
    ids = np.zeros((len(probe), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(probe):
        ids[row, longest - len(text) :] = text
        mask[row, longest - len(text) :] = 1
    logits = exported.logits(ids, mask)
    return [logits[row, longest - len(text) :] for row, text in enumerate(probe)]


def _generated(model: Any, generator: Generator, prompt: list[int], tolerance: float) -> float:
    """Share of generated tokens that differ from PyTorch's greedy choice, ties within the tolerance apart."""
    room = (generator.max_positions or 1 << 30) - NEW_TOKENS
    prompt = prompt[: max(1, min(len(prompt) // 2, room))]
    count = NEW_TOKENS if room >= 1 else generator.max_positions - len(prompt) + 1
    tokens = generator.generate(prompt, count)
    logits = torch_logits(model, prompt + tokens[:-1])[len(prompt) - 1 :]
    short = logits.max(-1) - logits[np.arange(count), tokens]
    return float((short > 2 * tolerance).mean())


def _worst(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest |difference|; infinite where a figure is not a number."""
    worst = float(np.max([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]))  # max() drops a NaN
    return worst if np.isfinite(worst) else NOT_A_NUMBER


def _divergence(of: np.ndarray, to: np.ndarray) -> np.ndarray:
    """KL divergence of softmaxed logits [n, vocab], nats: [n]."""
    log_p, log_q = (logits - _log_total(logits) for logits in (of.astype(np.float64), to.astype(np.float64)))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def _log_total(logits: np.ndarray) -> np.ndarray:
    top = logits.max(-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
