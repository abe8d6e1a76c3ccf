"""What every part of the result document is made of."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Part):
    """A figure with its 95 % interval. `low` and `high` are None where no interval was computed."""

    value: float
    low: float | None = None
    high: float | None = None
