"""Federated standardisation: mean and standard deviation of the numeric features, from sums of values and squares.

Values are first put on the range that the study declares, so the sums are bounded whatever the unit. Missing values
(NaN) are left out, and become the mean, 0, once standardised. Intercept and indicators are left as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.federation import Federation, Total
from medfed.federation.gate import declared_ranges
from medfed.federation.site import Site, Sites
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.wide_ranges import looks_constant, refuse_blown_up
from medfed.study import Study

FloatArray = NDArray[np.float64]

CENTRE = Input("p", limit=1e9, meaning="centre")
SCALE = Input("p", limit=1e9, meaning="scale")


@step(
    reads="train",
    releases={
        "sums": Sum("p", limit_per_row=1),
        "squares": Sum("p", limit_per_row=1),
        "known": Sum("p", limit_per_row=1),
    },
)
def moments(site: Site) -> Out:
    """Sums of values and squares on the declared range, and how many are known: (p,) each."""
    (features,) = site.table.arrays("features")
    low, high, numeric = declared_ranges(site.study)
    unit = np.where(numeric, (features - low) / (high - low), 0.0)
    known = np.isfinite(unit) & numeric
    unit = np.where(known, unit, 0.0)
    return Out({"sums": unit.sum(0), "squares": (unit * unit).sum(0), "known": known.sum(0).astype(np.float64)})


def centre_and_scale(
    study: Study, sums: FloatArray, squares: FloatArray, known: FloatArray, sites: int
) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation (n in the denominator) in the study's units, (p,) each; 0 and 1 where not numeric.

    sites: how many were summed. Raises FederationError for a numeric feature that is constant, or known for nobody.
    """
    low, high, numeric = declared_ranges(study)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / known
        deviation = np.sqrt(np.maximum(squares / known - mean * mean, 0.0))
    for index in np.flatnonzero(numeric):
        name = study.design.columns[index].name
        if not known[index] > 0:
            raise FederationError(
                f"feature {name!r} is missing for every patient who was counted; leave it out of the study"
            )
        if not deviation[index] > 1e-6:  # of the declared range; the ring's rounding alone gives 1e-7
            raise looks_constant(
                f"feature {name!r}", low[index], high[index], deviation[index] ** 2, known[index], sites
            )
    centre = np.where(numeric, low + mean * (high - low), 0.0)
    scale = np.where(numeric, deviation * (high - low), 1.0)
    return centre, scale


def standardise(federation: Any) -> tuple[FloatArray, FloatArray]:
    """Centre and scale (p,) of the features over the federation's training rows, by which steps may be asked."""
    return scaling_of(federation, federation.sum(moments))


def scaling_of(federation: Any, total: Total) -> tuple[FloatArray, FloatArray]:
    """The same, of the total of ``moments``. FederationError where sites would refuse to scale by it."""
    study: Study = federation.study
    sums = total["sums"], total["squares"], total["known"]
    centre, scale = centre_and_scale(study, *sums, len(total.sites))
    low, high, numeric = declared_ranges(study)
    names = [column.name for column in study.design.columns]
    refuse_blown_up(federation, names, np.where(numeric, low, 0.0), np.where(numeric, high, 0.0), centre, scale)
    return centre, scale


def standardised(site: Site, centre: FloatArray, scale: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Features (n, p), standardised with missing values at the mean, and the outcome (n,)."""

    def compute() -> FloatArray:
        (features,) = site.table.arrays("features")
        x = (features - centre) / scale
        x[np.isnan(features)] = 0.0
        x.setflags(write=False)
        return x

    x = site.memo("standardised", {"centre": centre, "scale": scale}, compute)
    (y,) = site.table.arrays("outcome")
    return x, y


def standardised_stack(sites: Sites, centre: FloatArray, scale: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same for stacked sites: (S, n, p) and (S, n); rows beyond a site's own are zeros."""

    def compute(everyone: Sites) -> FloatArray:
        (features,) = everyone.arrays("features")
        x = (features - centre) / scale
        x[np.isnan(features)] = 0.0
        x *= everyone.mask[..., None]
        x.setflags(write=False)
        return x

    x = sites.memo("standardised", {"centre": centre, "scale": scale}, compute)
    (y,) = sites.arrays("outcome")
    return x, y


@dataclass(frozen=True)
class StandardiseState:
    """What a round of standardisation leaves."""

    centre: FloatArray
    scale: FloatArray
    rounds: int


@dataclass(frozen=True)
class Standardise:
    """Mean and standard deviation of every numeric feature, as a method of its own: one round."""

    steps: ClassVar[tuple[Step, ...]] = (moments,)

    def start(self, study: Study) -> StandardiseState:
        p = len(study.design.columns)
        return StandardiseState(np.zeros(p), np.ones(p), 0)

    def advance(self, federation: Federation, state: StandardiseState) -> StandardiseState:
        total = federation.sum(moments)
        sums = total["sums"], total["squares"], total["known"]
        centre, scale = centre_and_scale(federation.study, *sums, len(total.sites))
        return StandardiseState(centre, scale, state.rounds + 1)

    def done(self, state: StandardiseState) -> bool:
        return state.rounds > 0

    def result(self, state: StandardiseState) -> Mapping[str, Any]:
        return {"centre": state.centre, "scale": state.scale}
