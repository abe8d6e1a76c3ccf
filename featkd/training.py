"""The sections of a spec that say how training runs: shape, optimiser, machine."""

from typing import Literal

from pydantic import Field, model_validator

from featkd.judging import Section

FREE = ("memory_gb", "checkpoint_minutes")  # of `compute`: change no weights


class Shape(Section):
    """The shape of a Llama-like model."""

    hidden_size: int = Field(ge=8, description="Width of the residual stream.")
    layers: int = Field(ge=1, description="Number of blocks.")
    heads: int = Field(ge=1, description="Attention heads; must divide hidden_size.")
    intermediate_size: int = Field(ge=8, description="Width of the MLP.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Shape":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"heads: {self.heads} must divide hidden_size {self.hidden_size} into even parts")
        return self


class Optimisation(Section):
    """AdamW with linear warm-up and cosine decay to a tenth."""

    tokens: int = Field(ge=1, description="Training tokens, counted with padding. The same for every candidate.")
    batch_size: int = Field(16, ge=1, description="Blocks per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    warmup: float = Field(
        0.15, ge=0, lt=1, description="Share of the steps spent warming up; better than 0.05 in bench-quality."
    )
    weight_decay: float = Field(0.1, ge=0, description="On matrices, not on norms.")
    grad_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    activation_penalty: float = Field(
        0.0, ge=0, description="Weight of the mean square of the hidden states, in every arm (arXiv 1708.01009)."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Blocks per forward pass; gradients are added up over a batch. Fewer take less memory. Default: "
        "batch_size.",
    )

    @model_validator(mode="after")
    def _micro_batches(self) -> "Optimisation":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size: {self.micro_batch_size} must divide batch_size {self.batch_size}")
        return self


class TeacherTraining(Optimisation):
    """A teacher made by the pipeline: for trials and tests, where no model lies at hand."""

    shape: Shape = Field(description="The teacher's shape.")
    vocab_size: int = Field(8192, ge=300, description="Size of the byte-level BPE vocabulary trained on the data.")


class Compute(Section):
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes an accelerator where there is one.")
    threads: int | None = Field(None, ge=1, description="CPU threads. Default: the cores this process may use.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Training arithmetic. auto: bf16 where the processor multiplies it fast, else fp32."
    )
    processes: int = Field(
        1,
        ge=1,
        description="Processes that train together, each on its part of every batch: one per accelerator, or on the "
        "processor, where they divide its threads. Must divide micro_batch_size.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="fsdp: every process holds only its part of the blocks of teacher and students (FSDP2), for models "
        "too large for one accelerator. Embeddings and head stay whole in each.",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="Memory for training, in GB of 10^9 bytes; students that do not fit beside each other are trained "
        "in further passes of the teacher. Of each accelerator; on a processor of all processes together. Default: "
        "what is free.",
    )
    checkpoint_minutes: float = Field(
        5.0, ge=0, description="Time between checkpoints of a training; a killed run goes on from the last one."
    )

    @model_validator(mode="after")
    def _something_to_divide_among(self) -> "Compute":
        if self.sharding == "fsdp" and self.processes == 1:
            raise ValueError("sharding: fsdp divides models among processes: write processes: 2 or more, or none")
        return self
