"""The sections of a spec that say what a student learns from, and how that reaches it. Formulas and sources:
featkd/align/README.md."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from featkd.judging import Section

TERMS = ("l2_weight", "direction_weight", "norm_weight", "nd_weight", "gram_weight", "cka_weight", "relation_weight")
OUTPUTS = {"objective", "mix", "top_k", "temperature", "ce_weight"}
WITH_PROJECTOR = ("l2_weight", "direction_weight", "nd_weight")


def _layer_map(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"uniform|auto|last-[1-9][0-9]*", value):
        return value
    pairs = value if isinstance(value, list) else [None]
    if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return value
    raise ValueError(
        "write uniform, auto, last-2 or the like, or pairs of hidden-state indices of student and teacher: "
        "[[0, 0], [1, 2]]"
    )


class Distillation(Section):
    """What the arms add to plain fine-tuning."""

    objective: Literal["forward-kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl"] = Field(
        "forward-kl", description="Divergence between teacher and student; forward-kl was best in arXiv 2407.14679."
    )
    mix: float = Field(
        0.5, ge=0, le=1, description="Share b of the mixture in jsd and the skewed ones (0.1 in arXiv 2402.03898)."
    )
    top_k: int | None = Field(
        None, ge=1, description="forward-kl on the teacher's k likeliest tokens and one bucket for all others."
    )
    temperature: float = Field(1.0, gt=0, description="Softens both distributions; 1 was best in arXiv 2407.14679.")
    ce_weight: float = Field(0.1, ge=0, le=1, description="Weight of cross-entropy beside the distillation loss.")
    l2_weight: float = Field(0.05, ge=0, description="Weight of the projected L2, relative to the teacher's norm.")
    direction_weight: float = Field(1.0, ge=0, description="Weight of 1 - cosine.")
    norm_weight: float = Field(
        0.1, ge=0, description="Weight of the squared relative norm error, scale apart; it keeps states small."
    )
    nd_weight: float = Field(0.0, ge=0, description="Weight of the norm-and-direction term (arXiv 2305.17007).")
    gram_weight: float = Field(0.0, ge=0, description="Weight of the difference of token similarities; no projector.")
    cka_weight: float = Field(0.0, ge=0, description="Weight of 1 - linear CKA; no projector (arXiv 1905.00414).")
    relation_weight: float = Field(
        0.0, ge=0, description="Weight of the Q, K, V relations of the last pair's blocks (arXiv 2012.15828)."
    )
    relation_heads: int = Field(4, ge=1, description="Relation heads; must divide the widths of Q, K, V on both sides.")
    projector: Literal["auto", "none", "linear", "orthonormal", "pca", "low-rank", "mlp"] = Field(
        "auto", description="From the student's width to the teacher's. auto: linear, none between equal widths."
    )
    projector_rank: int | None = Field(
        None, ge=1, description="Rank of projector: low-rank. Default: a quarter of the smaller width."
    )
    projector_frozen: float = Field(
        1 / 3, ge=0, le=1, description="Share of training in which projector: pca stays as fitted."
    )
    layer_pairs: Annotated[list[tuple[int, int]] | str, BeforeValidator(_layer_map)] = Field(
        "uniform",
        description="(student, teacher) hidden-state indices, 0 the embedding; uniform: embedding, 1/3 and 2/3 of the "
        "depth; last-k: the k blocks before the last; auto: the student layers of uniform, each with the teacher layer "
        "most similar to it (CKA).",
    )
    balance: Literal["fixed", "dynamic"] = Field(
        "fixed", description="dynamic: feature terms are scaled to weigh as much as the distillation loss, each step."
    )
    decay: float = Field(0.25, ge=0, le=1, description="Feature terms fade to zero over this last share of training.")
    guard: bool = Field(
        True,
        description="Drop the feature terms for good when the same student without them does better on held-out text.",
    )

    @model_validator(mode="after")
    def _coherent(self) -> "Distillation":
        if self.top_k and self.objective != "forward-kl":
            raise ValueError(f"top_k: goes with objective: forward-kl, not with {self.objective}")
        if self.projector_rank and self.projector != "low-rank":
            raise ValueError(f"projector_rank: goes with projector: low-rank, not with {self.projector}")
        if self.relation_weight and isinstance(self.layer_pairs, list) and 0 in (self.layer_pairs or [(0, 0)])[-1]:
            raise ValueError("relation_weight: takes the last of layer_pairs, which has no block: write one above 0")
        return self

    @property
    def has_features(self) -> bool:
        return any(getattr(self, term) for term in TERMS)

    @property
    def has_projector(self) -> bool:
        return any(getattr(self, term) for term in WITH_PROJECTOR)

    def outputs_only(self) -> "Distillation":
        """The same without feature terms: what logit-kd learns from. All that it does not use is at its default."""
        return Distillation(**self.model_dump(include=OUTPUTS), **dict.fromkeys(TERMS, 0.0))


Recipe = Distillation | None  # None: plain fine-tuning, without a teacher


class TeacherSignal(Section):
    """How the teacher reaches its students: at work beside them, or read from a cache that one pass of it has made.

    A cache pays where the teacher is dear: many epochs, arms or sizes added later, more students side by side in the
    memory that it leaves. Outputs and features (hidden states) are chosen each for themselves.
    """

    outputs: Literal["online", "top-k", "last-hidden"] = Field(
        "online",
        description="What logits are learned from. top-k: log-probabilities of the likeliest tokens, for objective: "
        "forward-kl alone; last-hidden: the state before the head in bf16, from which all logits follow.",
    )
    features: Literal["online", "int8"] = Field(
        "online",
        description="What hidden states are learned from. int8: their main directions (PCA) in a byte each, with the "
        "exact norm, of the layers that some arm needs.",
    )
    top_k: int = Field(64, ge=1, description="Of outputs: top-k. Tokens kept; all others are one bucket.")
    feature_dimensions: int | None = Field(
        None, ge=1, description="Of features: int8. Directions kept, at a byte each. Default: half the teacher's width."
    )

    @property
    def cached(self) -> bool:
        return self.outputs != "online" or self.features != "online"

    def of(self, recipe: Recipe) -> dict[str, Any]:
        """What of it changes the weights of a student with this recipe; nothing where all that it needs is online."""
        found: dict[str, Any] = {}
        if recipe is not None and self.outputs != "online":
            found["outputs"] = [self.outputs, self.top_k] if self.outputs == "top-k" else [self.outputs]
        if recipe is not None and recipe.has_features and self.features != "online":
            found["features"] = [self.features, self.feature_dimensions]
        return found

    def check(self, recipe: Recipe, place: str) -> None:
        """Raises ValueError, with the recipe's place in the spec, where it needs what is not kept."""
        if recipe is None:
            return
        if self.outputs == "top-k" and recipe.objective != "forward-kl":
            raise ValueError(
                f"{place}.objective: {recipe.objective} needs every logit, teacher_signal.outputs: top-k keeps some; "
                "write forward-kl, or outputs: last-hidden"
            )
        if self.outputs == "top-k" and recipe.top_k and recipe.top_k > self.top_k:
            raise ValueError(
                f"{place}.top_k: {recipe.top_k} is above the {self.top_k} tokens that teacher_signal.top_k keeps"
            )
        if self.features == "int8" and recipe.relation_weight:
            raise ValueError(
                f"{place}.relation_weight: Q, K and V are not kept; write teacher_signal.features: online, or 0"
            )


def recipes(arms: list[str], wanted: Distillation, ablations: dict[str, dict[str, Any]]) -> dict[str, Recipe]:
    """Arm to what its students learn from. An ablation is feature-kd with some of its options changed.

    Raises ValueError that names the ablation and the option.
    """
    known = {"sft": None, "logit-kd": wanted.outputs_only(), "feature-kd": wanted}
    found = {arm: known[arm] for arm in arms}
    for name, changes in ablations.items():
        try:
            recipe = Distillation.model_validate({**wanted.model_dump(exclude_unset=True), **changes})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, ["ablations", name, *first["loc"]]))
            raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
        if recipe in found.values():
            twin = next(arm for arm, other in found.items() if other == recipe)
            raise ValueError(f"ablations.{name}: the same as {twin}; change an option of distillation, or leave it out")
        found[f"feature-kd-{name}"] = recipe
    return found
