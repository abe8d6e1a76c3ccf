"""What the result document says of how a candidate behaves: like the teacher or not, and within bounds or not."""

from pydantic import Field

from featkd.parts import Interval, Part


class Calibration(Part):
    """Are probabilities of answers as often right as they say? Of the choices' probabilities, which sum up to 1."""

    ece: Interval = Field(description="Expected calibration error: mean |confidence - accuracy| over ten bins.")
    brier: Interval = Field(description="Mean squared distance to the right answer, summed over choices: 0 to 2.")
    brier_difference: Interval = Field(description="Paired: candidate - teacher; above 0 is worse.")


class WorstClass(Part):
    """The class of examples where the candidate falls furthest behind the teacher."""

    name: str
    examples: int
    classes: int = Field(description="How many were looked at; the interval allows for that.")
    difference: Interval = Field(description="Paired difference in accuracy: candidate - teacher.")


class Agreement(Part):
    """How a candidate's answers relate to the teacher's on one multiple-choice task."""

    examples: int
    agreement: Interval = Field(description="Share of examples with the teacher's answer.")
    correct_to_wrong: Interval = Field(description="Share the teacher had right and the candidate has wrong.")
    wrong_to_correct: Interval = Field(description="Share the teacher had wrong and the candidate has right.")
    mcnemar_p: float = Field(
        description="Of the two shares above being the same in truth; exact, two-sided, examples taken as unrelated."
    )
    on_right: Interval | None = Field(None, description="Agreement where the teacher is right.")
    on_wrong: Interval | None = Field(None, description="Agreement where it is wrong: does it copy mistakes?")
    kl: Interval | None = Field(None, description="From the teacher's distribution over choices to this one, nats.")
    calibration: Calibration | None = None
    worst_class: WorstClass | None = Field(None, description="Where examples have classes.")


class Tokens(Part):
    """Next tokens of held-out text, given what is before them."""

    tokens: int
    kl: Interval = Field(description="From the teacher's distribution to the candidate's, nats per token.")
    agreement: Interval = Field(description="Share of tokens of which both have the same first choice.")


class Layers(Part):
    """States of a student beside the teacher's: layer 0 is the embedding, n the output of block n."""

    cka: list[list[float]] = Field(description="Debiased linear CKA [student layers + 1, teacher layers + 1].")
    cosine: list[float] = Field(
        description="Per student layer, mean cosine of the teacher's state at the same depth with what the best linear "
        "map makes of the student's, on text that the map has not seen."
    )
    norm_ratio: list[float] = Field(description="Mean norm of that over the teacher's, of centred states.")


class Transfer(Part):
    """What of the teacher's representations is in a student, in float32 and before it is exported."""

    why: str | None = None
    tokens: int | None = None
    before: Layers | None = Field(None, description="With its first weights.")
    after: Layers | None = Field(None, description="As it was trained.")


class Fidelity(Part):
    why: str | None = None
    held_out: Tokens | None = None
    tasks: dict[str, Agreement] = Field(default_factory=dict)


class Check(Part):
    """One figure of a bias suite or of generated texts."""

    estimate: Interval
    worse: Interval | None = Field(None, description="Paired difference to the teacher, above 0 for the worse.")
    higher_is_better: bool
    ideal: float | None = Field(None, description="The best there is: 0.5 of a preference among two, 0 of a bias.")
    examples: int
    documents: int = Field(description="What the examples vary; as many, where each stands alone.")


class Guardrails(Part):
    why: str | None = None
    checks: dict[str, Check] = Field(default_factory=dict, description="By suite and figure: crows_pairs.stereotype.")
