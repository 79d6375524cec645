"""Intervals that a table of results needs: proportions, two arms, means, coefficients. Counts and sums in, numbers out.

Each function names its source. Where a formula has no finite interval (a zero cell under a ratio), the interval is
(0, infinity): nothing is added to the data behind the reader's back.
"""

import math
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval, in the unit of the value."""

    value: float
    low: float
    high: float


def normal_quantile(level: float = 0.95) -> float:
    """How many standard errors a two-sided interval of this level reaches to each side: 1.96 for 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"an interval's level lies between 0 and 1, not {level}")
    return float(special.ndtri(0.5 + level / 2))


def two_sided_p(value: float, standard_error: float) -> float:
    """P of a value at least this far from 0 under a normal law; 1 for an exact 0."""
    if value == 0:
        return 1.0
    return 0.0 if standard_error == 0 else float(2 * special.ndtr(-abs(value) / standard_error))


def wald(value: float, standard_error: float, *, level: float = 0.95) -> Estimate:
    """value +- z standard errors."""
    half = normal_quantile(level) * standard_error
    return Estimate(value, value - half, value + half)


def wald_ratio(coefficient: float, standard_error: float, *, level: float = 0.95) -> Estimate:
    """exp of a coefficient on the log scale (odds, risk, hazard or rate ratio) and of its Wald interval."""
    log = wald(coefficient, standard_error, level=level)
    return Estimate(math.exp(log.value), math.exp(log.low), math.exp(log.high))


def wilson(events: float, rows: float, *, level: float = 0.95) -> Estimate:
    """Proportion events/rows with the score interval, which stays inside 0 to 1 and is good for few patients.

    Wilson 1927; recommended by Brown, Cai & DasGupta 2001.
    """
    _require_counts(events, rows)
    z = normal_quantile(level)
    share = events / rows
    centre = (events + z * z / 2) / (rows + z * z)
    half = z / (rows + z * z) * math.sqrt(rows * share * (1 - share) + z * z / 4)
    low = 0.0 if events == 0 else centre - half
    high = 1.0 if events == rows else centre + half
    return Estimate(share, low, high)


def risk_difference(
    events: float, rows: float, reference_events: float, reference_rows: float, *, level: float = 0.95
) -> Estimate:
    """Risk minus the reference arm's risk; hybrid of two score intervals (Newcombe 1998, method 10)."""
    risk = wilson(events, rows, level=level)
    base = wilson(reference_events, reference_rows, level=level)
    difference = risk.value - base.value
    below = math.hypot(risk.value - risk.low, base.high - base.value)
    above = math.hypot(risk.high - risk.value, base.value - base.low)
    return Estimate(difference, difference - below, difference + above)


def risk_ratio(
    events: float, rows: float, reference_events: float, reference_rows: float, *, level: float = 0.95
) -> Estimate:
    """Risk over the reference arm's risk; Wald on the log scale (Katz et al. 1978).

    No event in either arm: the interval is (0, infinity); the value is then 0, infinity, or NaN where neither has one.
    """
    _require_counts(events, rows)
    _require_counts(reference_events, reference_rows)
    if events == 0 or reference_events == 0:
        return _without_interval(events, reference_events)
    ratio = (events / rows) / (reference_events / reference_rows)
    variance = 1 / events - 1 / rows + 1 / reference_events - 1 / reference_rows
    return wald_ratio(math.log(ratio), math.sqrt(variance), level=level)


def odds_ratio(
    events: float, rows: float, reference_events: float, reference_rows: float, *, level: float = 0.95
) -> Estimate:
    """Odds over the reference arm's odds; Wald on the log scale (Woolf 1955). An empty cell: interval (0, infinity)."""
    _require_counts(events, rows)
    _require_counts(reference_events, reference_rows)
    cells = (events, rows - events, reference_events, reference_rows - reference_events)
    across, along = cells[0] * cells[3], cells[1] * cells[2]
    if min(cells) == 0:
        return _without_interval(across, along)
    return wald_ratio(math.log(across / along), math.sqrt(sum(1 / cell for cell in cells)), level=level)


def _require_counts(events: float, rows: float) -> None:
    if not 0 <= events <= rows or rows == 0:
        raise ValueError(f"{events:g} events of {rows:g} patients is not a proportion")


def _without_interval(above: float, below: float) -> Estimate:
    value = math.nan if above == below == 0 else math.inf if below == 0 else 0.0
    return Estimate(value, 0.0, math.inf)
