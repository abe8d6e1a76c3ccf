"""The sections of a spec that price: how the teacher is served today, prices, volumes, what errors cost."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from featkd.judging import Section


def _bare_number(value: Any) -> Any:
    if isinstance(value, str):  # YAML reads 1e6 as text
        try:
            value = float(value)
        except ValueError:
            return value
    return {"value": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Assumption(Section):
    value: float = Field(ge=0, description="The figure.")
    source: str | None = Field(None, description="Where it comes from. Without one the report marks it 'unsourced'.")


Assumed = Annotated[Assumption, BeforeValidator(_bare_number)]


def _assumed(value: float, description: str) -> Any:
    return Field(Assumption(value=value), description=description + " A number, or {value, source}.")


class Serving(Section):
    """What the teacher costs as it is served today: prices of a hosted model, or rates of a machine of yours."""

    price_per_million_input_tokens: Assumed | None = Field(None, description="Of a hosted model.")
    price_per_million_output_tokens: Assumed | None = Field(None, description="Of a hosted model.")
    prefill_tokens_per_s: Assumed | None = Field(
        None, description="Prompt tokens per second of one machine, of all requests that it serves side by side."
    )
    decode_tokens_per_s: Assumed | None = Field(None, description="Generated tokens per second, likewise.")
    price_per_hour: Assumed | None = Field(None, description="Of that machine. Default: cost.price_per_hour.")

    @property
    def hosted(self) -> bool:
        return self.price_per_million_input_tokens is not None

    @model_validator(mode="after")
    def _one_kind(self) -> "Serving":
        prices = (self.price_per_million_input_tokens, self.price_per_million_output_tokens)
        rates = (self.prefill_tokens_per_s, self.decode_tokens_per_s)
        kinds = [None not in pair for pair in (prices, rates)]
        if sum(kinds) != 1 or any(pair.count(None) == 1 for pair in (prices, rates)):
            raise ValueError("give both prices per million tokens, or both rates in tokens per second")
        if kinds[0] and self.price_per_hour:
            raise ValueError("price_per_hour: is of a machine with rates, prices are per million tokens; leave it out")
        if kinds[1] and not all(rate.value for rate in rates):
            raise ValueError("prefill_tokens_per_s, decode_tokens_per_s: write more than 0")
        return self


class Cost(Section):
    """The business case. Every figure is an assumption that the report lists with its source. featkd.decide.case has
    the formulas."""

    currency: str = Field("USD", pattern="^[A-Z]{3}$", description="Of all prices and costs, an ISO 4217 code.")
    price_per_hour: Assumed = _assumed(1.0, "Price of one serving machine like the measured one, per hour.")
    requests_per_month: Assumed = _assumed(1_000_000, "Requests served, 1/month.")
    input_tokens_per_request: Assumed = _assumed(500, "Prompt tokens, 1/request.")
    output_tokens_per_request: Assumed = _assumed(200, "Generated tokens, 1/request.")
    utilisation: Assumed = _assumed(0.7, "Share of a machine's capacity that may be used at peak, 0 to 1.")
    peak_factor: Assumed = _assumed(3.0, "Peak load over mean load.")
    engineering_cost: Assumed = _assumed(10_000, "One-off work to put a student into service.")
    evaluation_cost: Assumed = _assumed(0, "Test data and reviews, once and for every re-distillation.")
    training_price_per_hour: Assumed = _assumed(1.0, "Price of the machine that distils, per hour.")
    monthly_upkeep: Assumed = _assumed(0, "Monitoring and on-call work, per month; taken off the saving.")
    redistillations_per_year: Assumed = _assumed(0, "How often a new student is trained: its training and evaluation.")
    error_cost: Assumed = _assumed(0, "What an answer costs that is wrong where the teacher's is right.")
    error_task: str | None = Field(
        None, description="The task of quality.tasks whose accuracy tells how many. Needed with error_cost."
    )
    max_ttft_ms: Assumed | None = Field(
        None,
        description="Longest time to first token that users accept, median, ms. With this or the next, each model is "
        "priced at the measured batch size that serves most and keeps them; without, at one request at a time.",
    )
    max_inter_token_ms: Assumed | None = Field(None, description="Longest time from token to token, median, ms.")
    horizon_months: int = Field(24, ge=1, le=240, description="Months over which the saving is counted.")
    discount_rate: Assumed = _assumed(0.08, "Yearly discount rate, 0.08 is 8 %.")
    spread: float = Field(
        0.25, gt=0, lt=1, description="How far each assumption may be off, in scenarios and tornado; 0.25 is 25 %."
    )

    @model_validator(mode="after")
    def _ranges(self) -> "Cost":
        if not 0 < self.utilisation.value <= 1:
            raise ValueError(f"utilisation: {self.utilisation.value} must be above 0 and at most 1")
        if self.peak_factor.value < 1:
            raise ValueError(f"peak_factor: {self.peak_factor.value} must be at least 1")
        if self.error_cost.value and self.error_task is None:
            raise ValueError("error_task: write the task whose wrong answers cost that")
        return self
