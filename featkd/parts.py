"""What every part of the result document is made of."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Part):
    """A figure with its interval, of 95 % but for gates (`Decision.level`). `low`, `high`: None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
