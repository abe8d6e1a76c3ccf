"""Which channels of a teacher a narrower student keeps, found on a probe of the training text."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from featkd.models.layout import Layout
from featkd.models.probe import Probe

See = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of a module's inputs and outputs [tokens, width]


class Kept(NamedTuple):
    """stream: channels [width] of the teacher, or directions [teacher width, width]. blocks: of each of the teacher's
    blocks that is kept, channels by axis. lengths: of each norm, by path, the mean over tokens of the root mean square
    of what is kept over that of all."""

    stream: torch.Tensor
    blocks: dict[int, dict[str, torch.Tensor]]
    lengths: dict[str, float]

    @property
    def turned(self) -> bool:
        return self.stream.ndim == 2


def head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def choose(teacher: Any, layout: Layout, blocks: list[int], config: Any, init: str, probe: Probe) -> Kept:
    """blocks: those of the teacher that are kept. config: the student's. init: slice, or pca for the stream.

    Importance is the mean over tokens of |activation| in a sequence, and the L2 norm over sequences (Minitron, arXiv
    2407.14679): of what norms put out, summed over norms; of a head's output, its norm, summed over the heads of a
    key-value group; of what the last matrix of an MLP takes in. Directions are those of the norms' inputs, each token
    of length one, from the origin; one set for all norms, where each of SliceGPT (arXiv 2401.15024) has its own.
    """
    width = head_width(teacher.config)
    attention, mlp = layout.source("heads"), layout.source("neurons")
    norms = [layout.path(block, norm) for block in blocks for norm in layout.norms] + [layout.final_norm]
    see: dict[str, tuple[str, See]] = {}
    for path in norms:
        see[path] = ("stream", partial(_moments, centred=layout.layer_norm)) if init == "pca" else (path, _outputs)
    for block in blocks:
        path = layout.path(block, attention)
        see[path] = path, partial(_heads, width=width)
        path = layout.path(block, mlp)
        see[path] = path, _inputs
    found = _sums(teacher, see, probe)
    if init == "pca":
        stream = _directions(found["stream"], config.hidden_size, layout.layer_norm)
    else:
        stream = _largest(sum(found[norm].sqrt() for norm in norms), config.hidden_size)
    cuts = {
        block: _of_block(found[layout.path(block, attention)], found[layout.path(block, mlp)], teacher.config, config)
        for block in blocks
    }
    norms += [layout.path(block, norm) for block in blocks for norm in layout.post_norms]
    return Kept(stream, cuts, _lengths(teacher, layout, norms, stream, probe))


def cut(tensor: torch.Tensor, axis: int, kept: torch.Tensor | None) -> torch.Tensor:
    """Along `axis`, what is kept: channels by number, or directions. None keeps all."""
    if kept is None:
        return tensor
    if kept.ndim == 1:
        return tensor.index_select(axis, kept)
    return torch.tensordot(tensor, kept.to(tensor.dtype), dims=([axis], [0])).movedim(-1, axis)


def _sums(model: Any, see: dict[str, tuple[str, See]], probe: Probe) -> dict[str, torch.Tensor]:
    """see: by path of a module, the name of a sum over sequences, and what its inputs and outputs add to that."""
    total: dict[str, torch.Tensor] = {}
    its: torch.Tensor

    def hook(name: str, of: See) -> Callable:
        def add(_: Any, inputs: tuple, output: torch.Tensor) -> None:
            total[name] = total.get(name, 0) + of(inputs[0][0][its], output[0][its]).double()

        return add

    hooks = [model.get_submodule(path).register_forward_hook(hook(*of)) for path, of in see.items()]
    training = model.training
    model.eval()
    for options, valid in probe.blocks():
        its = valid
        model.base_model(**options)
    model.train(training)
    for handle in hooks:
        handle.remove()
    return total


def _outputs(_: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return output.abs().mean(0).square()


def _inputs(states: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return states.abs().mean(0).square()


def _heads(states: torch.Tensor, _: torch.Tensor, width: int) -> torch.Tensor:
    return states.unflatten(-1, (-1, width)).norm(dim=-1).mean(0).square()


def _moments(states: torch.Tensor, _: torch.Tensor, centred: bool) -> torch.Tensor:
    unit = F.normalize(states - states.mean(-1, keepdim=True) if centred else states, dim=-1)
    return unit.T @ unit


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The numbers of the highest, in ascending order; of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _of_block(heads: torch.Tensor, neurons: torch.Tensor, wide: Any, narrow: Any) -> dict[str, torch.Tensor]:
    width, all_heads = head_width(wide), wide.num_attention_heads
    group = all_heads // (getattr(wide, "num_key_value_heads", None) or all_heads)
    groups = _largest(heads.sqrt().unflatten(0, (-1, group)).sum(1), narrow.num_attention_heads // group)
    queries, keys = _spread(groups, group * width), _spread(groups, width)
    fused = [queries, all_heads * width + keys, (all_heads + all_heads // group) * width + keys]
    mlp = getattr(narrow, "intermediate_size", None) or narrow.n_inner
    return {"heads": queries, "keys": keys, "qkv": torch.cat(fused), "neurons": _largest(neurons, mlp)}


def _spread(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """Channels of the parts `numbers`, each `width` wide."""
    return (numbers[:, None] * width + torch.arange(width)).flatten()


def _directions(moments: torch.Tensor, count: int, centred: bool) -> torch.Tensor:
    """[hidden, count], float64, orthonormal: those of the largest second moments [hidden, hidden].

    centred: of states whose mean over channels a LayerNorm takes away. Then (1, 1, ...), along which they are nothing,
    is one of the directions, and becomes (1, 1, ...) in fewer channels.
    """
    if not centred:
        return torch.linalg.eigh(moments).eigenvectors[:, -count:].flip(-1)
    found = torch.linalg.eigh(moments + moments.trace() / len(moments)).eigenvectors[:, -count:].flip(-1)
    basis = torch.eye(count, dtype=moments.dtype)
    basis[:, 0] = 1
    return found @ torch.linalg.qr(basis).Q.T


def _lengths(model: Any, layout: Layout, norms: list[str], stream: torch.Tensor, probe: Probe) -> dict[str, float]:
    def see(path: str) -> See:
        module = model.get_submodule(path)
        epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", 0.0)

        def length(states: torch.Tensor) -> torch.Tensor:
            states = states - states.mean(-1, keepdim=True) if layout.layer_norm else states
            return (states.square().mean(-1) + epsilon).sqrt()

        return lambda states, _: (length(cut(states, -1, stream)) / length(states)).mean()

    sequences = int(probe.valid.any(1).sum())
    totals = _sums(model, {path: (path, see(path)) for path in norms}, probe)
    return {path: float(total) / sequences for path, total in totals.items()}
