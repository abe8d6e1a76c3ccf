"""The PoC spec: one frozen, validated tree. featkd/specfile.py reads it from YAML; where the documents come from is in
source.py, what a student learns from in teaching.py, how it is trained in training.py, what judges it in judging.py,
what prices it in pricing.py.

Unknown keys are errors. What can change a result stands here or in the recorded environment.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from featkd.judging import Audit, Gate, Guardrails, Latency, Quality, Section
from featkd.pricing import Cost, Serving
from featkd.source import Data
from featkd.teaching import Distillation, Recipe, TeacherSignal, recipes
from featkd.training import Compute, Optimisation, TeacherTraining

ARMS = ("sft", "logit-kd", "feature-kd")


class CandidateName(NamedTuple):
    name: str
    arm: str
    size: str
    precision: str


class Teacher(Section):
    """The model to replace. Exactly one of `model`, `train`."""

    model: str | None = Field(
        None, description="A folder with a causal LM and its tokenizer, or a hub id (written 'hub:owner/name')."
    )
    train: TeacherTraining | None = Field(None, description="Train one on the data instead.")
    reference_perplexity: float | None = Field(
        None, gt=1, description="Perplexity per token that a given teacher is known for on text it knows well."
    )
    reference_factor: float = Field(
        3.0, ge=1, description="How many times that it may be on the data: far above, the teacher does not know them."
    )
    serving: Serving | None = Field(
        None,
        description="What it costs as it is served today. Without this it is priced by the speed of its own export "
        "here, which the report says.",
    )
    if_inadequate: Literal["stop", "warn"] = Field(
        "stop", description="What to do when the teacher is no better than chance or than the plain student."
    )
    licence: str | None = Field(None, description="Of a given teacher, e.g. apache-2.0; for the report.")
    licence_allows_distillation: bool | None = Field(
        None, description="Whether it lets other models be trained with its outputs; not set: not known."
    )
    if_licence_forbids: Literal["stop", "warn"] = Field(
        "warn", description="What to do where the licence does not allow it, or it is not known whether it does."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Teacher":
        if (self.model is None) == (self.train is None):
            raise ValueError("give exactly one of model, train")
        return self


class Student(Section):
    """A size: a student shape, or a model to start from. Of a shape, what is not given is the teacher's."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.]*$", description="Name of the size, e.g. 's' or '0.5b'.")
    layers: int | None = Field(None, ge=1, description="Number of blocks.")
    model: str | None = Field(
        None,
        description="Instead of a shape: a folder with a causal LM of any family that has the teacher's tokenizer, or "
        "a hub id (written 'hub:owner/name').",
    )
    hidden_size: int | None = Field(None, ge=8, description="Width of the residual stream.")
    heads: int | None = Field(None, ge=1, description="Attention heads.")
    intermediate_size: int | None = Field(None, ge=8, description="Width of the MLP.")
    init: Literal["random", "copy", "slice", "pca"] = Field(
        "random",
        description="The first weights. random; copy: evenly spaced teacher layers, as wide as they are; slice: of "
        "such layers the most important channels, heads and MLP neurons; pca: as slice, but of the residual stream its "
        "principal directions, with embeddings and head of their own even where the teacher's are tied.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Student":
        if (self.model is None) == (self.layers is None):
            raise ValueError("give exactly one of layers (a shape) and model (a folder to start from)")
        if self.model and (self.hidden_size or self.heads or self.intermediate_size or self.init != "random"):
            raise ValueError("model: it has its own shape and weights: give name and model alone")
        return self

    @model_validator(mode="after")
    def _init_fits_the_width(self) -> "Student":
        if self.init == "copy" and (self.hidden_size or self.heads or self.intermediate_size):
            raise ValueError("init: copy keeps the teacher's width: give layers alone, or write init: slice")
        if self.init == "pca" and not self.hidden_size:
            raise ValueError("init: pca turns the residual stream to narrow it: give hidden_size, or write init: slice")
        return self

    @property
    def field(self) -> str:
        return f"students.{self.name}.model"


class Export(Section):
    precisions: list[Literal["fp32", "fp16", "int8", "int4"]] = Field(
        ["fp32"],
        min_length=1,
        description="ONNX precisions of the students, each a candidate. fp16: on cuda; int8: dynamic; int4: "
        "weights alone.",
    )
    parity_tolerance: float = Field(1e-4, gt=0, description="Largest |logit difference| to PyTorch on held-out text.")


class Report(Section):
    languages: list[Literal["en", "ja"]] = Field(["en", "ja"], min_length=1, description="Pages to write.")


class Tracking(Section):
    experiment: str | None = Field(None, description="MLflow experiment. Default: the spec's name.")


class Spec(Section):
    """One PoC."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Name of the PoC: lower case, digits, dashes.")
    title: str = Field("", description="The business case in a few words, for the report.")
    data: Data
    teacher: Teacher
    students: list[Student] = Field(min_length=1, description="The sizes to try, largest first.")
    arms: list[Literal["sft", "logit-kd", "feature-kd"]] = Field(
        list(ARMS), min_length=1, description="Ways to train a student. sft is the control and is always needed."
    )
    ablations: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], dict[str, Any]] = Field(
        default_factory=dict,
        description="Further arms, named feature-kd-NAME: feature-kd with other options of `distillation`. "
        "E.g. no-direction: {direction_weight: 0}.",
    )
    seeds: list[int] = Field([0], min_length=1, description="Replicates. The first one ships.")
    block_size: int = Field(256, ge=8, description="Tokens per training sequence.")
    training: Optimisation
    distillation: Distillation = Distillation()
    teacher_signal: TeacherSignal = TeacherSignal()
    export: Export = Export()
    quality: Quality = Quality()
    guardrails: Guardrails = Guardrails()
    latency: Latency = Latency()
    cost: Cost = Cost()
    gates: list[Gate] = Field(default_factory=list, description="Rules a candidate must pass to be a go.")
    promotion: Literal["automatic", "approval"] = Field(
        "automatic",
        description="How a recommended student becomes champion in MLflow's registry: by itself, where the teacher "
        "is it or a blocking gate was passed against the student that is; or when a person approves it.",
    )
    audit: Audit = Audit()
    report: Report = Report()
    tracking: Tracking = Tracking()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _coherent(self) -> "Spec":
        if "sft" not in self.arms:
            raise ValueError("arms: sft is missing; it is the control that shows what distillation adds")
        if self.ablations and "feature-kd" not in self.arms:
            raise ValueError("ablations: feature-kd is missing in arms; they are held against it")
        for arm, recipe in recipes(self.arms, self.distillation, self.ablations).items():
            place = "distillation" if arm in ARMS else f"ablations.{arm.removeprefix('feature-kd-')}"
            self.teacher_signal.check(recipe, place)
        for field, values in {
            "arms": self.arms,
            "seeds": self.seeds,
            "students.name": [student.name for student in self.students],
            "quality.tasks": self.quality.tasks,
            "export.precisions": self.export.precisions,
        }.items():
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: has a value twice; write each once")
        if len(self.seeds) > 1 and any(size.init != "random" or size.model for size in self.students):
            raise ValueError(
                "seeds: init: copy, slice and pca and a given model start from the same weights with every seed; "
                "write one seed"
            )
        if self.compute.processes > 1 and self.teacher_signal.cached:
            raise ValueError(
                "teacher_signal: a cached one is read by one process; write compute.processes: 1, or online"
            )
        for field, training in {"training": self.training, "teacher.train": self.teacher.train}.items():
            size = training and (training.micro_batch_size or training.batch_size)
            if size and size % self.compute.processes:
                name = "micro_batch_size" if training.micro_batch_size else "batch_size"
                raise ValueError(f"compute.processes: {self.compute.processes} must divide {field}.{name} {size}")
        if self.teacher.train:
            self.check_latency_fits(self.block_size)
        if "heldout_routing" in self.quality.tasks and not (self.data.builtin or self.data.label_field):
            raise ValueError("quality.tasks: heldout_routing needs data.label_field, the column with the class")
        if self.teacher.reference_perplexity and "heldout_perplexity" not in self.quality.tasks:
            raise ValueError(
                "teacher.reference_perplexity: is held against heldout_perplexity; add it to quality.tasks"
            )
        if self.cost.error_task and self.cost.error_task not in self.quality.tasks:
            raise ValueError(f"cost.error_task: {self.cost.error_task} is not a task of quality.tasks")
        if self.cost.error_task == "heldout_perplexity":
            raise ValueError("cost.error_task: heldout_perplexity has no right answers; write a task that counts them")
        for gate in self.gates:
            check = gate.metric.removeprefix("guardrails.").removesuffix(".worse")
            if gate.metric.startswith("guardrails.") and check not in self.guardrails.checks:
                if "." in check or not self.guardrails.tasks:  # a group's tasks have names of their own
                    raise ValueError(f"gates: {gate.metric}: guardrails gives {', '.join(self.guardrails.checks)}")
            section, *task = gate.metric.split(".")[:-1]
            known = [*self.quality.tasks, "held_out"] if section == "fidelity" else self.quality.tasks
            if section in ("quality", "fidelity") and ".".join(task) not in known:
                raise ValueError(f"gates: {gate.metric} names a task that quality.tasks does not list")
        return self

    def rules(self, against: str) -> list[Gate]:
        """The gates against the teacher, or the champion."""
        return [gate for gate in self.gates if gate.against == against]

    def check_latency_fits(self, positions: int) -> None:
        """Raises ValueError when the latency measurement needs more positions than the models have."""
        need = self.latency.prompt_tokens + self.latency.new_tokens - 1
        if need > positions:
            raise ValueError(
                f"latency: prompt_tokens and new_tokens make {need} tokens, the models take {positions}: lower them"
            )

    def section(self, *names: str) -> dict[str, Any]:
        """The named sections as plain JSON values, for a stage's digest."""
        return self.model_dump(mode="json", include=set(names))

    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))

    def recipes(self) -> dict[str, Recipe]:
        """Every arm, ablations included, to what its students learn from."""
        return recipes(self.arms, self.distillation, self.ablations)

    def candidates(self) -> list[CandidateName]:
        """Every arm x size x precision, in the order of the spec: sizes first, then arms."""
        plain = len(self.students) == 1 and self.export.precisions == ["fp32"]
        return [
            CandidateName(arm if plain else "-".join([arm, size.name, precision]), arm, size.name, precision)
            for size in self.students
            for arm in self.recipes()
            for precision in self.export.precisions
        ]


def digest(value: Any) -> str:
    """sha256 of canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
