"""A student on its way. Its random state, optimiser and clipping are its own: no matter who learns beside it."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from featkd.align.head import Objective, fused_loss
from featkd.align.relations import QKV
from featkd.distill.alignment import PROBE_TOKENS, Alignment, align
from featkd.distill.batches import MicroBatch, probe
from featkd.distill.forward import Forward
from featkd.distill.parallel import ALONE, Processes
from featkd.distill.runtime import Runtime
from featkd.distill.signal import Signal
from featkd.teaching import Recipe
from featkd.training import Optimisation

FINAL_RATE = 0.1
BETAS = (0.9, 0.95)


@dataclass(eq=False)
class Learner:
    """recipe: what it learns from a teacher; None is plain fine-tuning. Trains on from where its weights are."""

    name: str
    model: Any
    seed: int
    recipe: Recipe
    training: Optimisation
    size: str = ""
    copied_share: float = 0.0
    alignment: Alignment | None = None
    optimiser: Any = None
    forward: Any = None
    processes: Processes = ALONE
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def taught(self) -> bool:
        return self.recipe is not None

    @property
    def aligned(self) -> bool:
        return self.recipe is not None and self.recipe.has_features

    def needs_features(self, progress: float) -> bool:
        return self.alignment is not None and self.alignment.strength(progress) > 0

    def prepare(self, teacher: Any | None, blocks: np.ndarray, run: Runtime) -> None:
        """Move to the device and make projectors and optimiser. blocks: training text, for what is fitted on it."""
        self.processes = run.processes
        self.processes.shard(self.model)
        self.model.to(run.device).train()
        self.forward = Forward(self.model, teacher.config.vocab_size if teacher is not None else None)
        if self.aligned:
            its = probe(blocks, PROBE_TOKENS, run)
            self.alignment = align(self.model, teacher, self.recipe, self.seed, its)
            self.alignment.projectors.to(run.device)
        groups = []
        for parameters in self.processes.apart([parameter for _, parameter in self._parameters()]):
            groups += [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.training.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=self.training.learning_rate,
            betas=BETAS,
            fused=True,
        )

    def add_gradients(self, signal: Signal, batch: MicroBatch, step: int, steps: int, run: Runtime) -> float:
        """Add the gradients of a micro-batch to those of the step; returns its share of the step's loss.

        A loss that is not finite leaves no gradients.
        """
        torch.manual_seed(self.seed * 1_000_003 + step + (batch.number << 40))
        with run.autocast():
            loss = batch.share * self._loss(signal, batch, step / steps)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
        return value

    def update(self, step: int, steps: int) -> None:
        parameters = [parameter for _, parameter in self._parameters()]
        self.processes.sum_gradients(parameters)
        self.processes.clip(parameters, self.training.grad_clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.training.learning_rate * _rate(step, steps, self.training.warmup)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _loss(self, signal: Signal, batch: MicroBatch, progress: float) -> torch.Tensor:
        aligned = self.needs_features(progress)
        blocks = self.alignment.blocks() if aligned else None
        penalty = self.training.activation_penalty
        with ExitStack() as stack:
            reader = stack.enter_context(QKV(self.model, blocks[0])) if blocks else None
            output = self.forward(batch.ids, batch.keep, batch.positions, aligned or penalty > 0)
        taught = signal.outputs_for(self.recipe, self.forward.rows) if self.taught else None
        objective = _objective(self.recipe) if self.taught else Objective()
        loss = fused_loss(output.states, self.forward.head, batch.targets, taught, objective)
        if aligned:
            qkv = (reader.take(), signal.qkv[blocks[1]]) if blocks else None
            loss = loss + self.alignment.loss(output.hidden, signal.hidden, batch.valid, qkv, loss, progress)
        if penalty:
            loss = loss + penalty * mean_square(output.hidden, batch.valid)
        return loss

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """All that is trained, by name; tied weights once."""
        found = [(f"model.{name}", p) for name, p in self.model.named_parameters()]
        if self.alignment:
            found += [(f"projectors.{name}", p) for name, p in self.alignment.projectors.named_parameters()]
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs of it beside `facts`: weights and the optimiser's state. Of several processes the
        first has them, and all must ask."""
        return self.processes.gathered(self._held())

    def _held(self) -> dict[str, torch.Tensor]:
        found = {name: parameter.detach() for name, parameter in self._parameters()}
        for number, state in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
        return found

    def facts(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "seconds": self.seconds,
            "curve": self.curve,
            "guard": self.alignment and self.alignment.guard(),
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Back to where `tensors` and `facts` were taken. After `prepare`."""
        for name, parameter in self._parameters():
            parameter.copy_(self.processes.like(tensors[name], parameter))
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, number, key = name.split(".")
                state.setdefault(int(number), {})[key] = self.processes.like(value, trained[int(number)])
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.seconds, self.curve = facts["seconds"], facts["curve"]
        if self.alignment:
            self.alignment.restore(facts["guard"])

    def memory_bytes(self) -> int:
        """Weights, their gradients and the optimiser's state, projectors included; in this process."""
        held = [*(parameter for _, parameter in self._parameters()), *self._held().values()]
        return sum(self.processes.local_bytes(tensor) for tensor in held)


def mean_square(hidden: tuple[torch.Tensor, ...], valid: torch.Tensor) -> torch.Tensor:
    """Activation regularisation (arXiv 1708.01009): the mean square of the states below the last block, whose state
    is behind a norm layer. hidden: [batch, block, hidden] each; valid [batch, block] bool."""
    return torch.stack([state[valid].float().square().mean() for state in hidden[:-1]]).mean()


def _objective(recipe: Any) -> Objective:
    return Objective(recipe.objective, recipe.mix, recipe.temperature, recipe.ce_weight, recipe.top_k)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up, cosine down to FINAL_RATE."""
    ramp = max(1, round(steps * warmup))
    if step < ramp:
        return (step + 1) / ramp
    progress = (step - ramp) / max(1, steps - ramp)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
