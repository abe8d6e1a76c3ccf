"""What the result document says of one candidate: quality, cost, how it was trained, verdict."""

from typing import Literal

from pydantic import Field

from featkd.behaviour import Fidelity, Guardrails, Transfer
from featkd.parts import Interval, Part

Verdict = Literal["go", "no-go", "inconclusive"]


class Score(Part):
    """One task of one candidate."""

    metric: str = Field(description="acc, acc_norm, token_perplexity, ...")
    higher_is_better: bool
    estimate: Interval
    examples: int
    documents: int | None = Field(None, description="What the examples are from; as many, where each stands alone.")
    chance: float | None = Field(None, description="Guessing (accuracy) or a unigram model (perplexity).")
    difference: Interval | None = Field(None, description="Paired difference to the teacher: candidate - teacher.")
    retained: Interval | None = Field(
        None,
        description="(candidate - chance) / (teacher - chance); for perplexity the same of log-perplexities.",
    )
    overlap: Interval | None = Field(
        None, description="Share of the examples that stand in the training text for the most part."
    )
    ratio: Interval | None = Field(None, description="Perplexity only: candidate / teacher, 1 is as good.")


class Quality(Part):
    why: str | None = None
    tasks: dict[str, Score] = Field(default_factory=dict, description="Of the seed that ships.")
    recipe: dict[str, Score] = Field(
        default_factory=dict,
        description="Of the mean over seeds, where several were trained.",
    )
    replicates: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="Seed to task to estimate, where several seeds were trained."
    )


class Times(Part):
    """Quantiles of a time, ms; p99 is only indicative."""

    p50: Interval
    p90: Interval
    p99: float


class OperatingPoint(Part):
    """What a model does with so many requests side by side, in one batch. Figures are geometric means over rounds."""

    concurrency: int
    ttft_ms: Times = Field(description="Until every request has its first token, prompts already tokenised.")
    inter_token_ms: Times
    end_to_end_ms: Times = Field(description="Prompt and all new tokens.")
    prefill_tokens_per_s: Interval = Field(description="Of all requests together, as the next.")
    decode_tokens_per_s: Interval
    ttft_speedup: Interval | None = Field(None, description="Teacher's time over this model's, same concurrency.")
    decode_speedup: Interval | None = Field(None, description="Of the rates of the tokens after the first.")
    rounds_prefill_tokens_per_s: list[float] = Field(default_factory=list, description="Median of each round.")
    rounds_decode_tokens_per_s: list[float] = Field(default_factory=list, description="Median of each round.")


class Latency(Part):
    why: str | None = None
    provider: str | None = None
    points: list[OperatingPoint] = Field(
        default_factory=list, description="By concurrency, one request at a time first."
    )
    rounds_needed: int | None = Field(
        None, description="Rounds that would bring decode_speedup's interval to 5 %, if it is wider than that."
    )
    generations: int = Field(0, description="Measured one at a time; the next two are of these.")
    raw_ttft_ms: list[float] = Field(default_factory=list)
    raw_decode_tokens_per_s: list[float] = Field(default_factory=list)

    @property
    def alone(self) -> OperatingPoint | None:
        """One request at a time."""
        return self.points[0] if self.points else None

    @property
    def ttft_speedup(self) -> Interval | None:
        return self.alone and self.alone.ttft_speedup

    @property
    def decode_speedup(self) -> Interval | None:
        return self.alone and self.alone.decode_speedup


class Memory(Part):
    why: str | None = None
    peak_rss_bytes: Interval | None = Field(None, description="Peak of the serving process.")
    rss_above_import_bytes: Interval | None = Field(None, description="The same less the bare runtime.")
    rss_ratio: Interval | None = Field(None, description="Candidate's peak over the teacher's.")
    device_bytes: Interval | None = Field(None, description="On an accelerator: model, cache and runtime.")
    file_bytes: int | None = Field(None, description="The ONNX files: weights and both graphs.")
    cache_bytes_per_token: int | None = Field(None, description="KV cache: keys and values of a token, all layers.")


class Energy(Part):
    """What a counter of the machine told, idle power included; one request at a time."""

    why: str | None = None
    counter: str | None = Field(None, description="rapl (processor), nvml (GPU).")
    joules_per_1000_tokens: Interval | None = Field(None, description="Generated tokens, their prompts included.")
    ratio: Interval | None = Field(None, description="Candidate's over the teacher's.")


class Sensitivity(Part):
    """What the NPV is with one assumption off."""

    name: str = Field(description="Of the assumption; throughput: the student's, tokens/s, over its interval.")
    low: float
    high: float
    npv_low: float = Field(description="With the assumption at `low`.")
    npv_high: float


class Scenario(Part):
    name: Literal["pessimistic", "expected", "optimistic"]
    monthly_saving: float
    npv: float
    payback_months: float | Literal["never"]


class Roi(Part):
    """All money in the spec's `cost.currency`; formulas: featkd.decide.case."""

    why: str | None = None
    basis: Literal["export", "serving-figures", "hosted-price"] | None = Field(
        None, description="Of the teacher: how its cost is known. export: from our own export on the measured machine."
    )
    cost_per_million_input_tokens: Interval | None = None
    cost_per_million_output_tokens: Interval | None = None
    concurrency: int | None = Field(None, description="Requests side by side at which the rates were taken.")
    meets_target: bool | None = Field(None, description="Whether they keep the latency targets there, if any are set.")
    machines: int | None = Field(None, description="Whole machines needed at peak.")
    monthly_cost: Interval | None = None
    monthly_saving: Interval | None = Field(
        None,
        description="Teacher's monthly cost less the candidate's, its upkeep and errors; the rest follows from it.",
    )
    one_off_cost: float | None = None
    payback_months: float | Literal["never"] | None = None
    payback_months_low: float | Literal["never"] | None = None
    payback_months_high: float | Literal["never"] | None = None
    npv: Interval | None = None
    return_on_investment: Interval | None = Field(None, description="Over the horizon, undiscounted; 0.5 is 50 %.")
    cash_flow: list[float] = Field(default_factory=list, description="Cumulative, month 0 to the horizon.")
    break_even_requests: float | Literal["never"] | None = Field(
        None, description="The fewest requests per month with which the NPV is not negative."
    )
    sensitivities: list[Sensitivity] = Field(default_factory=list, description="The most telling first.")
    scenarios: list[Scenario] = Field(default_factory=list, description="All assumptions off at once; as assumed.")


class GateOutcome(Part):
    metric: str
    against: Literal["teacher", "champion"] = Field(
        "teacher",
        description="What it was judged against: the teacher, too, where a rule says champion and none serves.",
    )
    at_least: float | None = None
    at_most: float | None = None
    severity: Literal["block", "warn"]
    observed: Interval | None = None
    outcome: Literal["pass", "fail", "inconclusive", "missing"]
    examples_needed: int | None = Field(
        None, description="Inconclusive: examples of the task that would decide with a probability of 80 %."
    )


class Decision(Part):
    verdict: Verdict | None = None
    why: str | None = Field(
        None,
        description="Code: gates, no-gates, no-blocking-gates, baseline, parity-failed, export-failed, "
        "accuracy-failed, latency-failed, target-missed (of cost.max_ttft_ms or max_inter_token_ms), not-run, "
        "teacher-inadequate, "
        "no-control (the plain fine-tuned student was not measured), not-reached (a larger student of this arm is no "
        "go), ablation (it explains; no verdict).",
    )
    level: float | None = Field(
        None, description="Of the intervals that what examples tell was judged by (decide.sequence); None: not tested."
    )
    gates: list[GateOutcome] = Field(default_factory=list)


class Parity(Part):
    passed: bool
    max_abs_difference: float
    tolerance: float | None = Field(description="None for lower precisions, which the gates judge by task results.")
    argmax_agreement: float
    mean_kl: float | None = Field(None, description="From PyTorch's distribution to this one, nats per token.")
    tokens: int
    checks: dict[str, float] = Field(
        default_factory=dict,
        description="Largest |logit difference| per check: unpadded, left_padded, stepwise, prefill, batched; and the "
        "share of generated tokens that differ.",
    )
    graph: Literal["fused", "general"] = Field("general", description="What generates: generate.onnx or model.onnx.")
    general_why: str | None = Field(None, description="Why there is no generate.onnx.")


class Alignment(Part):
    """How hidden states were aligned. Layers are hidden-state indices, 0 the embedding."""

    layer_map: str = Field(description="uniform, last-k, auto, given.")
    layer_pairs: list[tuple[int, int]] = Field(description="(student, teacher).")
    similarity: list[float] | None = Field(None, description="auto: debiased linear CKA of each pair before training.")
    projector: str
    guarded: bool = Field(description="Compared with the same student without feature terms on held-out text.")
    dropped_at: float | None = Field(None, description="Share of training at which the guard dropped the terms.")


class Signal(Part):
    """What was kept of the teacher, and learned from instead of it; fidelity where it is least (layer, temperature)."""

    outputs: str = Field(description="online, top-k, last-hidden.")
    features: str | None = Field(None, description="online, int8; None where no hidden states are learned from.")
    top_k: int | None = None
    layers: list[int] = Field(default_factory=list, description="Of the kept hidden states, 0 the embedding.")
    dimensions: int | None = Field(None, description="Kept of each hidden state.")
    bytes_per_token: int
    bytes: int
    coverage: float | None = Field(None, description="top-k: mean probability of the kept tokens.")
    kl: float | None = Field(
        None, description="last-hidden: from what the teacher says to what is kept, nats per token."
    )
    cosine: float | None = Field(None, description="int8: mean between a hidden state and what is kept of it.")
    norm_error: float | None = Field(None, description="int8: mean relative error of its norm.")


class Training(Part):
    """What it cost to make a candidate."""

    seconds: float | None = Field(None, description="Its own, and its share of the teacher's pass.")
    teacher_seconds: float | None = Field(None, description="Its share of the teacher's pass.")
    memory_bytes: int | None = Field(
        None, description="Weights, gradients and optimiser while it was trained; projectors included."
    )
    tokens: int | None = None
    steps: int | None = None
    parameters: int
    copied_share: float = Field(0.0, description="Share of the weights copied from the teacher.")
    weights_sha256: str | None = None
    alignment: Alignment | None = None
    signal: Signal | None = Field(None, description="None: the teacher was at work beside its students.")
    curve: list[dict[str, float]] = Field(
        default_factory=list, description="Points {tokens, validation_loss}; nats per token."
    )


class Candidate(Part):
    arm: str
    size: str | None = None
    seed: int | None = None
    precision: str = "fp32"
    artefact: str | None = Field(None, description="Digest of the shipped ONNX folder.")
    training: Training | None = None
    parity: Parity | None = None
    failure: str | None = Field(None, description="Why it could not be exported or measured, in one line.")
    quality: Quality
    fidelity: Fidelity
    transfer: Transfer = Field(Transfer(why="not-reported"), description="Of the seed that ships.")
    guardrails: Guardrails
    latency: Latency
    memory: Memory
    energy: Energy
    roi: Roi
    verdict: Decision
