"""The sections of a spec that candidates are judged by: tasks, timing, gates, audits."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Quality(Section):
    """lm-eval tasks, run on the exported model."""

    tasks: list[str] = Field(
        ["heldout_perplexity", "heldout_continuation"],
        min_length=1,
        description="heldout_perplexity, heldout_continuation, heldout_routing (made from the held-out documents), "
        "heldout_exact_match, heldout_f1 (the answer generated to held-out prompts), heldout_choice (the one chosen "
        "among data.choices_field or among all responses), or any lm-eval task by name.",
    )
    include: str | None = Field(None, description="A folder with your own lm-eval YAML tasks.")
    max_examples: int = Field(400, ge=8, description="Examples per task.")
    context_tokens: int = Field(64, ge=4, description="Tokens shown before a continuation.")
    continuation_tokens: int = Field(32, ge=2, description="Tokens of each candidate continuation.")
    answer_tokens: int = Field(
        64, ge=1, description="Most tokens of a response that is to be generated; longer ones are not asked for."
    )
    batch_size: int = Field(32, ge=1, description="Sequences per batch.")


SUITES = ("crows_pairs", "winogender", "stereoset", "bbq")


FIGURES = {  # of each suite, as featkd.measure.guardrails tells them
    "own": ("stereotype",),
    "crows_pairs": ("stereotype",),
    "winogender": ("stereotype",),
    "stereoset": ("stereotype", "sense"),
    "bbq": ("ambiguous_bias", "disambiguated_bias", "ambiguous_accuracy", "disambiguated_accuracy"),
}
OF_GENERATION = ("repetition", "empty", "endless", "drift", "personal_data")


class Guardrails(Section):
    """Bias suites and a look at what is generated; each model beside the teacher. Paths are relative to the spec."""

    own: bool = Field(True, description="A small suite of featkd's own words, in the language of the data.")
    crows_pairs: list[str] = Field(default_factory=list, description="CrowS-Pairs, CSV files.")
    winogender: list[str] = Field(
        default_factory=list, description="Winogender's all_sentences.tsv, occupations-stats.tsv beside it."
    )
    stereoset: list[str] = Field(default_factory=list, description="StereoSet, JSON files.")
    bbq: list[str] = Field(default_factory=list, description="BBQ, JSONL files or globs.")
    tasks: list[str] = Field(default_factory=list, description="lm-eval tasks by name, e.g. truthfulqa_mc1, toxigen.")
    max_examples: int = Field(1000, ge=8, description="Examples per suite, of each of its classes as many.")
    generations: int = Field(64, ge=0, description="Held-out prompts continued, greedily and sampled; 0: none.")
    new_tokens: int = Field(48, ge=8, description="Tokens of each.")

    @property
    def checks(self) -> list[str]:
        """What will be told; an lm-eval group of tasks only by its own name."""
        suites = [f"{suite}.{figure}" for suite, all_ in FIGURES.items() if getattr(self, suite) for figure in all_]
        return suites + [f"generation.{flag}" for flag in OF_GENERATION if self.generations] + self.tasks

    @property
    def asked(self) -> bool:
        return bool(self.own or self.tasks or self.generations or any(getattr(self, suite) for suite in SUITES))


class Latency(Section):
    """Measured in a fresh process per candidate, candidates interleaved in rounds."""

    prompt_tokens: int = Field(64, ge=1, description="Length of the prompt, the same for all.")
    new_tokens: int = Field(64, ge=2, description="Tokens generated, the same for all; the end token is ignored.")
    warmup: int = Field(2, ge=1, description="Generations discarded at the start of each process.")
    repeats: int = Field(10, ge=3, description="Generations measured per process.")
    batch_sizes: list[Annotated[int, Field(ge=2)]] = Field(
        [4, 16], description="Requests answered side by side, measured besides one at a time: the throughput curve."
    )
    rounds: int = Field(
        5, ge=1, description="Processes per candidate; order rotates so that drift hits all alike. One has no interval."
    )


class Gate(Section):
    """One rule. Metrics: quality.<task>.retained, quality.<task>.ratio, quality.<task>.estimate (the score itself),
    quality.<task>.overlap (share of its examples that stand in the training text), fidelity.<task>.agreement,
    fidelity.<task>.kl, of fidelity also of held_out, the next tokens of held-out text,
    latency.decode_speedup, latency.ttft_speedup, memory.rss_ratio, roi.payback_months, roi.monthly_saving (after
    upkeep), roi.npv, guardrails.<check>.worse (how much worse than the teacher, e.g.
    guardrails.crows_pairs.stereotype.worse, guardrails.generation.repetition.worse)."""

    metric: str = Field(
        pattern=r"^(quality\.[\w.-]+\.(retained|ratio|estimate|overlap)|fidelity\.[\w.-]+\.(agreement|kl)|guardrails\.[\w.-]+\.worse"
        r"|latency\.(decode|ttft)_speedup|memory\.rss_ratio|roi\.(payback_months|monthly_saving|npv))$",
        description="What is judged.",
    )
    at_least: float | None = Field(None, description="Pass when the whole interval is at or above this.")
    at_most: float | None = Field(None, description="Pass when the whole interval is at or below this.")
    severity: Literal["block", "warn"] = Field("block", description="block decides; warn only tells.")
    against: Literal["teacher", "champion"] = Field(
        "teacher",
        description="What a student is held against. champion: what serves now by MLflow's registry; while no student "
        "does, the teacher.",
    )

    @model_validator(mode="after")
    def _coherent(self) -> "Gate":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least, at_most")
        absolute = self.metric.endswith((".estimate", ".overlap"))
        if self.against == "champion" and (absolute or self.metric.startswith("fidelity.held_out.")):
            why = "is held against nothing" if absolute else "is measured beside the teacher alone"
            raise ValueError(f"against: {self.metric} {why}; leave against out")
        return self


FIGURES_OF_LOGS = {  # and by how much each may be worse than it was, if the spec does not say
    "surprise": 0.1, "far_off": 0.05, "divergence": 0.1, "disagreement": 0.03,
    "repetition": 0.02, "empty": 0.01, "drift": 0.02, "personal_data": 0.01, "feedback": 0.05,
}  # fmt: skip


class Audit(Section):
    """The logs of the champion in service, looked at again and again: does it still answer as it did?"""

    prompt_field: str = Field("prompt", description="Field with what was asked. Dots reach into nested fields.")
    response_field: str = Field("response", description="Field with what the champion answered.")
    time_field: str = Field("time", description="Field with the time: ISO 8601, or seconds since 1970.")
    feedback_field: str | None = Field("feedback", description="Field with a number, higher is better; may be missing.")
    where: dict[str, str | int | bool] = Field(
        default_factory=dict, description="Fields that tell the champion's answers from others', e.g. model: my-poc-2."
    )
    examples: int = Field(
        200, ge=30, description="Prompts whose answers are looked at, per audit; the first one has to have so many."
    )
    looks: int = Field(52, ge=1, description="Audits among which a false alarm may be raised once, with:")
    false_alarm: float = Field(0.05, gt=0, lt=0.5, description="Probability of one false alarm or more in them.")
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="By how much a figure may be worse than at the first audit, e.g. empty: 0.02."
    )
    limits: dict[str, float] = Field(
        default_factory=dict, description="What a figure may be at most, from the first audit on; feedback at least."
    )
    fail_safe: Literal["none", "previous", "teacher"] = Field(
        "none", description="At an alarm the champion is the version before it again, or the teacher; none: only told."
    )

    @model_validator(mode="after")
    def _known_figures(self) -> "Audit":
        for name in [*self.margins, *self.limits]:
            if name not in FIGURES_OF_LOGS:
                raise ValueError(f"no figure {name}; write one of {', '.join(FIGURES_OF_LOGS)}")
        if "far_off" in self.limits:
            raise ValueError("limits: far_off is a figure beside the first audit; write a limit of surprise")
        return self
