"""Counts, means and histograms under differential privacy, in one round: what a table of patients looks like, with noise.

Every patient adds one unit of each coded variable to one level, one value of each number to its mean, and one unit to a
bin of its declared range; terms of all variables lie in one vector, scaled so that its norm is at most 1. Intervals are
those of the noise: they speak of these patients, not of others like them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.private_glm import COUNT_ERROR, patient_count
from medfed.privacy.plan import ExpectedError, Planned
from medfed.study import Study

FloatArray = NDArray[np.float64]
Z95 = 1.959963984540054
LEVEL_ERROR = "the number of patients with a code"
MEAN_ERROR = "the mean of {name} ({unit})"
BIN_ERROR = "the number of patients in a bin of a histogram"


def described(study: Study) -> tuple[list[str], list[str]]:
    """Names of the variables that are described: of type code, of type number; a date or text is not."""
    codes = [name for name, variable in study.variables.items() if variable.type == "code"]
    return codes, [name for name, variable in study.variables.items() if variable.type == "number"]


def levels_of(study: Study) -> list[tuple[str, str]]:
    """(variable, level) of every coded variable, in the order of the counts."""
    codes, _ = described(study)
    return [(name, level) for name in codes for level in (study.variables[name].codes or ())]


def _one_hot(values: NDArray[Any], levels: int) -> FloatArray:
    """(n, levels): 1 at each value from 0 to levels - 1, zeros where it is missing (-1)."""
    hot = np.zeros((len(values), levels))
    known = np.flatnonzero(values >= 0)
    hot[known, values[known].astype(np.int64)] = 1.0
    return hot


def _numbers(site: Site) -> FloatArray:
    """(n, numbers) on the declared ranges, -1 to 1, values held to them; NaN where missing."""
    study = site.study
    columns = []
    for name in described(study)[1]:
        low, high = study.variables[name].range or (0.0, 1.0)
        (values,) = site.table.arrays(name)
        columns.append(np.clip((2.0 * values - low - high) / (high - low), -1.0, 1.0))
    return np.stack(columns, -1)


@step(releases={"levels": Sum("described_codes", unit_bound=1.0)})
def noisy_levels(site: Site) -> Out:
    """How many patients have each level of each coded variable, with noise."""
    study, codes = site.study, described(site.study)[0]
    hot = [_one_hot(site.table.arrays(name)[0], len(study.variables[name].codes or ())) for name in codes]
    return Out({"levels": np.concatenate(hot, 1) / np.sqrt(len(codes))})


@step(releases={"means": Sum("described_numbers,2", unit_bound=1.0)})
def noisy_means(site: Site) -> Out:
    """For each number how many patients have it, and the sum of its values on the declared range, with noise."""
    values = _numbers(site)
    known = np.isfinite(values)
    pairs = np.stack([known, np.where(known, values, 0.0)], -1).astype(np.float64)
    return Out({"means": pairs / np.sqrt(2.0 * values.shape[1])})


@step(takes={"edges": Input("bins", limit=1.0)}, releases={"histograms": Sum("described_numbers,bins", unit_bound=1.0)})
def noisy_histograms(site: Site, *, edges: FloatArray) -> Out:
    """How many patients lie in each bin of the declared range of each number, with noise."""
    values = _numbers(site)
    bins = np.searchsorted(edges, np.nan_to_num(values), side="right") - 1
    hot = (bins[..., None] == np.arange(len(edges))) & np.isfinite(values)[..., None]
    return Out({"histograms": hot / np.sqrt(values.shape[1])})


@dataclass(frozen=True)
class PrivateDescribeState:
    """levels (L,) in the order of ``levels_of``; means (N, 2); histograms (N, bins); noise: deviation of one entry of each.

    names: of the numbers; ranges (N, 2); places: variable and level of each of L.
    """

    places: list[list[str]]
    names: list[str]
    ranges: FloatArray
    patients: float
    levels: FloatArray
    means: FloatArray
    histograms: FloatArray
    noise: dict[str, float]
    rounds: int
    sites: list[str]


@dataclass(frozen=True)
class PrivateDescribe:
    """Settings: bins (of each histogram), and how the budget is shared: count_, levels_, means_, histograms_weight.

    Twice the weight is half the noise.
    """

    bins: int = 10
    count_weight: float = 0.5
    levels_weight: float = 1.0
    means_weight: float = 1.0
    histograms_weight: float = 1.0

    steps: ClassVar[tuple[Step, ...]] = (patient_count, noisy_levels, noisy_means, noisy_histograms)

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError("bins is at least 2")
        if not min(self.count_weight, self.levels_weight, self.means_weight, self.histograms_weight) > 0:
            raise ValueError("weights are above 0")

    def private_calls(self, study: Study) -> Mapping[Step, Planned]:
        """One call of each step that the study has variables for."""
        codes, numbers = described(study)
        planned = {patient_count: Planned(1, weight=self.count_weight)}
        if codes:
            planned[noisy_levels] = Planned(1, weight=self.levels_weight)
        if numbers:
            planned[noisy_means] = Planned(1, weight=self.means_weight)
            planned[noisy_histograms] = Planned(1, weight=self.histograms_weight)
        return planned

    def expected_errors(self, study: Study, noise: Mapping[Step, float], patients: float) -> list[ExpectedError]:
        """SD of counts, means and bins. noise: SD in a step's total, over the bound of a patient; patients: with values."""
        codes, numbers = described(study)
        found = [ExpectedError(COUNT_ERROR, noise[patient_count], {})]
        if codes:
            found.append(ExpectedError(LEVEL_ERROR, noise[noisy_levels] * math.sqrt(len(codes)), {}))
        if numbers:
            each = noise[noisy_means] * math.sqrt(2 * len(numbers)) / patients
            for name in numbers:
                low, high = study.variables[name].range or (0.0, 1.0)
                unit = study.variables[name].unit or "1"
                found.append(ExpectedError(MEAN_ERROR, each * (high - low) / 2, {"name": name, "unit": unit}))
            found.append(ExpectedError(BIN_ERROR, noise[noisy_histograms] * math.sqrt(len(numbers)), {}))
        return found

    def start(self, study: Study) -> PrivateDescribeState:
        numbers = described(study)[1]
        ranges = np.array([study.variables[name].range or (0.0, 1.0) for name in numbers], np.float64).reshape(-1, 2)
        found = [list(place) for place in levels_of(study)]
        return PrivateDescribeState(
            found, numbers, ranges, 0.0, np.zeros(len(found)), np.zeros((len(numbers), 2)),
            np.zeros((len(numbers), self.bins)), {}, 0, [],
        )  # fmt: skip

    def advance(self, federation: Federation, state: PrivateDescribeState) -> PrivateDescribeState:
        codes = len({name for name, _ in state.places})
        total = federation.sum(patient_count)
        state = replace(state, patients=float(total["patients"]), sites=list(total.sites), rounds=1)
        noise = {"patients": total.noise.get("patients", 0.0)}
        federation = federation.roster(total.sites)
        if codes:
            found = federation.sum(noisy_levels)
            state = replace(state, levels=found["levels"] * np.sqrt(codes))
            noise["levels"] = found.noise.get("levels", 0.0) * float(np.sqrt(codes))
        if numbers := len(state.names):
            found = federation.sum(noisy_means)
            state = replace(state, means=found["means"] * np.sqrt(2.0 * numbers))
            noise["means"] = found.noise.get("means", 0.0) * float(np.sqrt(2.0 * numbers))
            found = federation.sum(noisy_histograms, edges=-1.0 + 2.0 * np.arange(self.bins) / self.bins)
            state = replace(state, histograms=found["histograms"] * np.sqrt(numbers))
            noise["histograms"] = found.noise.get("histograms", 0.0) * float(np.sqrt(numbers))
        return replace(state, noise=noise)

    def done(self, state: PrivateDescribeState) -> bool:
        return state.rounds > 0

    def result(self, state: PrivateDescribeState) -> Mapping[str, Any]:
        levels: dict[str, dict[str, Any]] = {}
        for (name, level), count in zip(state.places, state.levels, strict=True):
            levels.setdefault(name, {})[level] = with_noise(float(count), state.noise["levels"])
        means, histograms = {}, {}
        for index, name in enumerate(state.names):
            low, high = state.ranges[index]
            known, summed = state.means[index]
            means[name] = noisy_mean(
                float(known), float(summed), state.noise["means"], low=float(low), high=float(high)
            )
            edges = np.linspace(low, high, state.histograms.shape[1] + 1)
            histograms[name] = {
                "edges": edges, "counts": state.histograms[index], "deviation": state.noise["histograms"],
            }  # fmt: skip
        return {
            "patients": with_noise(state.patients, state.noise["patients"]),
            "levels": levels,
            "means": means,
            "histograms": histograms,
            "sites": list(state.sites),
        }


def with_noise(value: float, deviation: float) -> dict[str, float]:
    """A noisy count, the standard deviation of its noise, and the 95 % interval of the count itself."""
    return {"value": value, "deviation": deviation, "low": value - Z95 * deviation, "high": value + Z95 * deviation}


def noisy_mean(known: float, total: float, deviation: float, *, low: float, high: float) -> dict[str, float | None]:
    """Mean in the study's units of values whose count and sum on -1 to 1 carry noise of this deviation each.

    The interval is by the delta method: deviation x sqrt(1 + mean^2) / known, held to the range. None where the noisy
    count is within twice its noise of 0.
    """
    if not known > 2 * deviation:
        return {"value": None, "deviation": None, "low": None, "high": None, "known": known}
    half = (high - low) / 2
    mean = float(np.clip(total / known, -1.0, 1.0))
    error = deviation * float(np.sqrt(1 + mean * mean)) / known * half
    value = low + (mean + 1) * half
    return {
        "value": value, "deviation": error, "low": max(low, value - Z95 * error), "high": min(high, value + Z95 * error),
        "known": known,
    }  # fmt: skip
