"""Declared ranges that are far too wide beside the values: what is said where a model fails of that, not of the values.

Sums are taken on the declared range and rounded, so that values which fill too little of it look like one; and sites
refuse a column that is scaled up too far (``gate.check_steepness``). Nothing here stops a model that could be fitted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.gate import LARGEST_FEATURE
from medfed.federation.here import Here
from medfed.methods.design_matrix import ranges_of
from medfed.methods.summaries import variance_told
from medfed.study.design import Formula

FloatArray = NDArray[np.float64]
Ranges = Mapping[str, tuple[float, float]]

# A column whose deviation is no more than this share of the way to the end of its range is scaled by the range instead.
LEAST_DEVIATION = 1 / 500


def looks_constant(name: str, low: float, high: float, variance: float, known: float, sites: int) -> FederationError:
    """The sentence for a column whose deviation is lost in the rounding. variance: on the range from 0 to 1."""
    # Sums were taken about the range's end, on the range itself.
    told = np.isfinite(variance_told(np.array(variance), np.array(known), sites, scale=1.0))
    one_value = "" if told else "the same value for every patient who was counted, or "
    return FederationError(
        f"{name} has {one_value}values too close together beside its declared range, {low:g} to {high:g}; narrow the range in the "
        f"study to what the values can be, or leave it out"
    )


def refuse_blown_up(
    federation: Any, names: Sequence[str], low: FloatArray, high: FloatArray, centre: FloatArray, scale: FloatArray
) -> None:
    """FederationError, naming the column, where every site would refuse this scaling: of too small a deviation.

    All (p,). A federation of one table has no sites that could refuse.
    """
    if isinstance(federation, Here):
        return
    largest = np.maximum(np.abs(low - centre), np.abs(high - centre)) / scale
    if (largest <= LARGEST_FEATURE).all():
        return
    worst = int(largest.argmax())
    name, bottom, top, deviation = names[worst], low[worst], high[worst], scale[worst]
    raise FederationError(
        f"the declared range of {name!r}, {bottom:g} to {top:g}, is too wide beside its values, whose standard deviation is about "
        f"{deviation:.2g}; narrow the range in the study to what the values can be, or leave it out"
    )


def scaled_by_range(formula: Formula, centre: FloatArray, scale: FloatArray) -> Ranges:
    """Columns whose values fill too little of their range to be scaled by their deviation (``scaling``), and these ranges."""
    low, high, numeric = ranges_of(formula)
    ends = np.maximum(high - centre, centre - low) * LEAST_DEVIATION
    return {
        formula.names[index]: (float(low[index]), float(high[index]))
        for index in np.flatnonzero(numeric & (scale >= ends * (1 - 1e-12)) & (scale <= ends * (1 + 1e-12)))
    }


def too_wide(name: str, ranges: Ranges, otherwise: str) -> FederationError:
    """The sentence for a fit that runs away in one of ``ranges``, whose coefficient is large for the range alone."""
    low, high = ranges[name]
    return FederationError(
        f"the fit runs away in {name!r}: its declared range, {low:g} to {high:g}, is too wide beside its values, or "
        f"{otherwise}; narrow the range in the study to what the values can be, and if it still runs away, leave it out"
    )
