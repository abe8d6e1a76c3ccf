"""Numbers as a report prints them: never more digits than the interval supports.

The rounding rule is the Particle Data Group's (Review of Particle Physics, introduction, section 5.3): if the
three leading digits of the uncertainty are 100 to 354, keep two of them; otherwise one. The uncertainty here is
half the width of the 95 % interval.
"""

import math
from typing import Literal, NamedTuple

from featkd.result import Interval
from reports.text import Text

DASH = "\N{EM DASH}"
BARE_DIGITS = 3


class Figure(NamedTuple):
    """A printed figure. `range` is None where there is no interval: then it is not a finding."""

    value: str
    range: str | None = None

    def __str__(self) -> str:
        return f"{self.value} ({self.range})" if self.range else self.value


def figure(interval: Interval, t: Text, scale: float = 1.0) -> Figure:
    """The value times `scale` and its interval, all rounded to the place that the interval supports."""
    if not math.isfinite(interval.value):
        return Figure(DASH)
    if not has_interval(interval):
        return Figure(significant(interval.value * scale))
    low, high = interval.low * scale, interval.high * scale
    places = supported_places((high - low) / 2)
    if places is None:
        return Figure(significant(low), spread(significant(low), significant(high), t))
    if low > 0 and round(low, places) == 0:  # of a ratio whose bounds are orders of magnitude apart
        shown = [significant(number, 2) for number in (interval.value * scale, low, high)]
        return Figure(shown[0], spread(*shown[1:], t))
    return Figure(fixed(interval.value * scale, places), spread(fixed(low, places), fixed(high, places), t))


def has_interval(interval: Interval | None) -> bool:
    return (
        interval is not None
        and interval.low is not None
        and interval.high is not None
        and math.isfinite(interval.low)
        and math.isfinite(interval.high)
    )


def supported_places(half_width: float) -> int | None:
    """Decimal places supported by a half-width (negative: tens, hundreds); None for a width of zero."""
    if half_width <= 0:
        return None
    exponent = math.floor(math.log10(half_width))
    leading = half_width / 10**exponent
    return -exponent + (1 if leading < 3.545 else 0)


def payback(
    value: float | Literal["never"] | None,
    low: float | Literal["never"] | None,
    high: float | Literal["never"] | None,
    t: Text,
) -> Figure | None:
    """Months until the one-off cost is earned back; 'never' is a word."""
    if value is None:
        return None
    bounds = (low, high)
    if all(isinstance(number, int | float) for number in (value, *bounds)):
        return figure(Interval(value=value, low=low, high=high), t)
    shown = [t("money.never") if number == "never" else _months(number) for number in (value, *bounds)]
    if None in bounds or (value == "never" and set(bounds) == {"never"}):
        return Figure(shown[0], shown[0] if None not in bounds else None)
    return Figure(shown[0], t("format.range_words", low=shown[1], high=shown[2]))


def _months(value: float | None) -> str:
    return DASH if value is None else significant(value, 2)


def fixed(value: float, places: int) -> str:
    """Thousands separators, a true minus sign; negative `places` round to tens, hundreds, ..."""
    text = f"{round(value, places):,.{max(places, 0)}f}"
    if text.startswith("-"):
        text = text[1:] if not any(digit in text for digit in "123456789") else "\N{MINUS SIGN}" + text[1:]
    return text


def significant(value: float | None, digits: int = BARE_DIGITS) -> str:
    """A figure without an interval, in a few significant digits; zeros at the end would claim more."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    text = fixed(value, digits - 1 - math.floor(math.log10(abs(value))))
    return text.rstrip("0").rstrip(".") if "." in text else text


def size(value: float) -> str:
    """A counted size in its unit: one decimal, so that a column lines up; small ones in significant digits."""
    return fixed(value, 1) if value >= 1 else significant(value, 2)


def short(value: float) -> str:
    """A large count in two digits: 1.9M."""
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return significant(value / unit, 2) + sign
    return exact(value)


def exact(value: float) -> str:
    """A given figure (an assumption, a bound, a count) as it was given."""
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")


def percent(interval: Interval, t: Text) -> Figure:
    """A share as a percentage, the sign included."""
    shown = figure(interval, t, 100)
    return Figure(t("format.percent", value=shown.value), shown.range and t("format.percent", value=shown.range))


def spread(low: str, high: str, t: Text) -> str:
    signed = low.startswith("\N{MINUS SIGN}") or high.startswith("\N{MINUS SIGN}")
    return t("format.range_words" if signed else "format.range", low=low, high=high)
