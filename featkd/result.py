"""The result document, schema `featkd.result/1`: all that a report, MLflow or the command line may read.

It carries numbers and codes, no sentences: the report turns codes into English or Japanese. A section that is
empty says why in `why`.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from featkd.behaviour import (  # noqa: F401
    Agreement,
    Calibration,
    Check,
    Fidelity,
    Guardrails,
    Layers,
    Tokens,
    Transfer,
    WorstClass,
)
from featkd.candidate import (  # noqa: F401  (readers of the document import nothing but this module)
    Alignment,
    Candidate,
    Decision,
    Energy,
    GateOutcome,
    Latency,
    Memory,
    OperatingPoint,
    Parity,
    Quality,
    Roi,
    Scenario,
    Score,
    Sensitivity,
    Signal,
    Times,
    Training,
    Verdict,
)
from featkd.parts import Interval, Part

SCHEMA = "featkd.result/1"


class Comparison(Part):
    """A paired difference between two candidates on one task: a - b (perplexity: ratio a / b)."""

    task: str
    a: str
    b: str
    kind: Literal["difference", "ratio"]
    estimate: Interval


class SizePoint(Part):
    """One student on one task, by its size."""

    candidate: str
    parameters: int
    file_bytes: int | None = Field(None, description="The ONNX files, where memory was measured.")
    quality: Interval
    optimal: bool = Field(
        description="Pareto-optimal by the estimates: no student of at most its size is better, no smaller one as good."
    )
    lead: Comparison | None = Field(
        None, description="Paired, to the best other student of at most its size; None where there is no other."
    )
    standing: Literal["on", "off", "open"] = Field(
        description="On or off the frontier where the whole interval of its lead says so, else open."
    )


class SizeCurve(Part):
    """Size against quality on one task, the smallest student first."""

    task: str
    measure: Literal["retained", "ratio", "estimate"] = Field(
        description="What of a score is meant: as the gate has it."
    )
    higher_is_better: bool
    at_least: float | None = Field(None, description="The gate on this measure.")
    at_most: float | None = None
    points: list[SizePoint]


class Crossing(Part):
    """At how many parameters a line through the students of one arm crosses a gate, see featkd.decide.frontier."""

    metric: str = Field(description="Of the gate.")
    arm: str
    precision: str
    parameters: Interval


class Sizes(Part):
    """How small a student may be: the frontier of size against quality, and the smallest that passes."""

    sizes: int = Field(description="How many were tried.")
    smallest: str | None = Field(None, description="The smallest go; of several of one size the one of best quality.")
    undecided: list[str] = Field(
        default_factory=list,
        description="Smaller ones that are inconclusive, the smallest first; all of them where none is a go.",
    )
    why: str | None = Field(None, description="Code of what forbids every go, as in a decision.")
    curves: list[SizeCurve] = Field(default_factory=list)
    crossings: list[Crossing] = Field(default_factory=list, description="With three sizes or more.")


class AdequacyCheck(Part):
    task: str
    against: Literal["chance", "sft", "reference"] = Field(
        description="reference: the most perplexity that teacher.reference_perplexity and its factor allow."
    )
    control: str | None = Field(None, description="Against sft: which candidate the teacher was compared to.")
    teacher: Interval
    other: Interval
    passed: bool


class Adequacy(Part):
    """Is the teacher worth distilling from? If not, nothing below can be judged."""

    adequate: bool
    action: Literal["none", "warned", "stopped"]
    checks: list[AdequacyCheck]


class Rollout(Part):
    """How many requests reveal that a student in service loses more than its gate allows, in four of five cases."""

    task: str = Field(description="Whose gate takes the most requests.")
    margin: float = Field(description="The loss of accuracy that the gate allows.")
    expected: float = Field(description="The loss that was measured.")
    shadow_requests: int = Field(description="Answered by teacher and student both.")
    canary_requests: int = Field(description="Answered by the student alone, and as many by the teacher alone.")


class NextStep(Part):
    """What to try next, see featkd.decide.advice."""

    code: Literal["more-examples", "train-longer", "more-data", "larger-student", "cheaper-student", "other-layers"]
    candidate: str
    value: float | None = Field(None, description="What the code is about: examples, a share, how often.")
    task: str | None = None


class Recommendation(Part):
    candidate: str | None = None
    code: Literal["replace", "keep-teacher", "undecided", "teacher-inadequate"]
    next: list[NextStep] = Field(default_factory=list, description="Where there is no go, the most telling first.")
    rollout: Rollout | None = Field(None, description="Of the candidate; None without a gate on an accuracy.")


class Champion(Part):
    """A student of an earlier run that serves now, and that gates of this one are against."""

    version: str = Field(description="In MLflow's registry.")
    run_id: str
    candidate: str
    artefact: str = Field(description="Of its ONNX folder.")
    comparisons: list[Comparison] = Field(default_factory=list, description="Each student of this run with it.")
    why: Literal["other-tokenizer"] | None = Field(
        None, description="Why its guardrails, speed, memory and money are not compared."
    )


class DataSummary(Part):
    source: str
    digest: str
    documents: int
    training_documents: int
    held_out_documents: int
    near_duplicates_removed: int
    characters: int
    training_tokens: int = Field(description="Tokens in the training part; an epoch.")
    labels: list[str] = Field(default_factory=list)


class AssumptionRow(Part):
    name: str
    value: float
    unit: str
    source: str | None = None


class Stage(Part):
    name: str
    state: Literal["made", "reused", "skipped", "failed"]
    seconds: float
    digest: str | None = None
    note: str = ""


class Override(Part):
    """A person decided otherwise than the gates."""

    run_id: str
    candidate: str
    gates_said: str | None
    verdict: str
    reason: str
    decided_by: str
    time: str = Field(description="ISO 8601, UTC.")


class Result(Part):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["featkd.result/1"] = Field(SCHEMA, alias="schema")
    run_id: str
    priced_from: str | None = Field(None, description="Of a run that was priced again: whose measurements these are.")
    name: str
    title: str
    created: str = Field(description="ISO 8601, UTC.")
    spec: dict[str, Any]
    spec_digest: str
    environment: dict[str, Any] = Field(description="Hardware, threads, precision, versions, git commit.")
    data: DataSummary
    adequacy: Adequacy
    recommendation: Recommendation
    candidates: dict[str, Candidate]
    champion: Champion | None = Field(None, description="None where the teacher serves, or no gate is against it.")
    comparisons: list[Comparison] = Field(default_factory=list)
    sizes: Sizes | None = Field(None, description="With two sizes or more.")
    assumptions: list[AssumptionRow] = Field(default_factory=list)
    overrides: list[Override] = Field(default_factory=list, description="Of earlier runs of this PoC.")
    stages: list[Stage] = Field(default_factory=list)
    evidence: dict[str, str] = Field(default_factory=dict, description="Name to artefact digest.")

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=1)
