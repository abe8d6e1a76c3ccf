"""What feature-kd adds to a step: its layer pairs, their projectors, the weighted terms, and the guard over them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from featkd.align.features import Weights, dynamic_weight, feature_loss, feature_weight
from featkd.align.layers import Pairs, layer_pairs, most_similar, similarities
from featkd.align.projectors import check_projector, principal_directions, projector
from featkd.align.relations import QKV, cka_loss, gram_loss, relation_loss
from featkd.models.probe import Probe
from featkd.teaching import Distillation

GUARD_FROM = 0.25
STANDARD_ERRORS = 2.0
FEWEST_BLOCKS = 8
PROBE_TOKENS = 8192
CKA_TOKENS = 1024

States = list[torch.Tensor]


@dataclass
class Alignment:
    """The feature terms of one student. They are off once `dropped_at`, a share of training, is set."""

    wanted: Distillation
    pairs: Pairs
    kind: str
    projectors: nn.ModuleList
    similarity: list[float] | None = None
    dropped_at: float | None = None
    looks: int = 0
    suspicions: int = 0

    def strength(self, progress: float) -> float:
        return 0.0 if self.dropped_at is not None else feature_weight(progress, self.wanted.decay)

    def blocks(self) -> tuple[int, int] | None:
        """(student, teacher) block whose Q, K and V are compared."""
        return self.pairs[-1] if self.wanted.relation_weight else None

    def loss(
        self,
        student: tuple[torch.Tensor, ...],
        teacher: dict[int, torch.Tensor],
        valid: torch.Tensor,
        qkv: tuple[Any, Any] | None,
        of_outputs: torch.Tensor,
        progress: float,
    ) -> torch.Tensor:
        """The weighted terms, a mean over layer pairs. student, teacher: hidden states by layer [batch, block, hidden];
        valid [batch, block] bool; qkv: those of student and teacher; of_outputs: the distillation loss beside it."""
        if self.kind == "pca":
            self.projectors.requires_grad_(progress >= self.wanted.projector_frozen)
        terms = [
            self._pair(student[s][valid], teacher[t][valid], projector)
            for (s, t), projector in zip(self.pairs, self.projectors, strict=True)
        ]
        total = torch.stack(terms).mean()
        if qkv:
            relation = relation_loss(*qkv, heads=self.wanted.relation_heads, mask=valid)
            total = total + self.wanted.relation_weight * relation
        strength = self.strength(progress)
        if self.wanted.balance == "dynamic":
            strength *= dynamic_weight(float(of_outputs.detach()), float(total.detach()))
        return strength * total

    def _pair(self, student: torch.Tensor, teacher: torch.Tensor, projector: nn.Module) -> torch.Tensor:
        wanted = self.wanted
        weights = Weights(wanted.l2_weight, wanted.direction_weight, wanted.norm_weight, wanted.nd_weight)
        total = student.new_zeros((), dtype=torch.float32)
        if any(weights):
            total = total + feature_loss(
                student, projector(student) if wanted.has_projector else teacher, teacher, weights
            )
        if wanted.gram_weight:
            total = total + wanted.gram_weight * gram_loss(student, teacher)
        if wanted.cka_weight:
            total = total + wanted.cka_weight * cka_loss(student, teacher, debiased=True)
        return total

    def judge(self, own: np.ndarray, without: np.ndarray, progress: float) -> None:
        """The guard: mean held-out losses per block of this student and of the same without feature terms.

        The terms are dropped for good when it is worse by STANDARD_ERRORS at two looks in a row, from GUARD_FROM of
        training to the fading of the terms.
        """
        last = 1 - self.wanted.decay
        if self.dropped_at is not None or not GUARD_FROM <= progress <= last or len(own) < FEWEST_BLOCKS:
            return
        self.looks += 1
        worse = own - without
        self.suspicions = self.suspicions + 1 if worse.mean() > STANDARD_ERRORS * _standard_error(worse) else 0
        if self.suspicions == 2:
            self.dropped_at = progress

    def guard(self) -> dict[str, Any]:
        """What it has found so far; `restore` takes it back."""
        return {"dropped_at": self.dropped_at, "looks": self.looks, "suspicions": self.suspicions}

    def restore(self, guard: dict[str, Any]) -> None:
        self.dropped_at, self.looks, self.suspicions = guard["dropped_at"], guard["looks"], guard["suspicions"]

    def record(self) -> dict[str, Any]:
        """A result.Alignment."""
        return {
            "layer_map": self.wanted.layer_pairs if isinstance(self.wanted.layer_pairs, str) else "given",
            "layer_pairs": self.pairs,
            "similarity": self.similarity,
            "projector": self.kind,
            "guarded": self.looks > 0,
            "dropped_at": self.dropped_at,
        }


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def align(student: Any, teacher: Any, wanted: Distillation, seed: int, probe: Probe) -> Alignment:
    """Choose the layers and make the projectors. probe: for what is fitted.

    Raises InputError where layers, widths or projector do not fit.
    """
    small, large = student.config, teacher.config
    pairs = layer_pairs(wanted.layer_pairs, small.num_hidden_layers, large.num_hidden_layers)
    similarity = None
    if wanted.layer_pairs == "auto":
        found = similarities(_states(student, probe, CKA_TOKENS), _states(teacher, probe, CKA_TOKENS))
        pairs = most_similar(pairs, found)
        similarity = [float(found[s, t]) for s, t in pairs]
    widths = (small.hidden_size, large.hidden_size)
    kind = check_projector(wanted.projector, *widths, wanted.projector_rank) if wanted.has_projector else "none"
    made = nn.ModuleList(
        projector(kind, *widths, wanted.projector_rank, seed * 1000 + number) for number in range(len(pairs))
    )
    if kind == "pca":
        states = _states(teacher, probe, PROBE_TOKENS)
        for linear, (_, layer) in zip(made, pairs, strict=True):
            linear.weight.data.copy_(principal_directions(states[layer], widths[0]))
    if wanted.relation_weight:
        QKV(student, pairs[-1][0]), QKV(teacher, pairs[-1][1])
    return Alignment(wanted, pairs, kind, made, similarity)


@torch.no_grad()
def _states(model: Any, probe: Probe, tokens: int) -> States:
    """All hidden states at up to so many valid tokens, each [tokens, hidden]."""
    training = model.training
    model.eval()
    kept, count = [], 0
    for options, valid in probe.blocks():
        found = model.base_model(**options, output_hidden_states=True).hidden_states
        kept.append([state[0][valid] for state in found])
        count += int(valid.sum())
        if count >= tokens:
            break
    model.train(training)
    return [torch.cat(layer)[:tokens].float() for layer in zip(*kept, strict=True)]
