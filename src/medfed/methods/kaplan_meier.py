"""Survival curves by group, and tests between them, from counts on a time grid whose cells show no small count.

One call for the counts by declared interval, merged by rule on the total; with groups, one more for the log-rank test
within sites, which is exact and needs no grid. Curves, bands, RMST and medians are worked out from the merged counts
(``survival_curves``), and equal the pooled ones with every time moved to the end of its cell.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, StudyError
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Step, Sum, step
from medfed.methods.newton import symmetric, upper
from medfed.methods.survival_curves import curve_of, log_rank, log_rank_sums
from medfed.methods.time_grid import cell_ends, declared_intervals, merged_cuts, on_cuts, refuse_no_cells
from medfed.study import Study

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LEVELS = Input("groups", limit=1e4, model=True)


def group_levels(study: Study, by: str) -> tuple[str, ...]:
    """The groups that curves are drawn for: a code variable's levels, or one group of everybody.

    StudyError where the study has no such variable, or it is no code.
    """
    if not by:
        return ("",)
    variable = study.variables.get(by)
    if variable is None or variable.type != "code" or variable.role not in ("arm", "covariate", "cohort"):
        raise StudyError(
            f"study {study.name!r}, method.settings.by: {by!r} is no arm, covariate or cohort variable of type code; "
            "name one, or leave `by` out for one curve"
        )
    return (*(variable.codes or ()), *(("unknown",) if variable.missing == "unknown" else ()))


def _groups(site: Site, levels: FloatArray) -> IntArray:
    """Group (n,) of each patient, from 0."""
    by = str(site.settings["by"])
    if not by:
        return np.zeros(site.table.rows, dtype=np.int64)
    (values,) = site.table.arrays(by)
    codes = values.astype(np.int64)
    return np.where(codes < 0, len(levels) - 1, codes)


@step(
    reads="train",
    takes={"levels": _LEVELS},
    releases={"events": Count("times,groups"), "censored": Count("times,groups")},
)
def counts_by_time_and_group(site: Site, *, levels: FloatArray) -> Out:
    """Patients with the event, and censored ones, by declared time interval and group: (times, groups) each."""
    (event,) = site.table.arrays("event")
    counts = np.zeros((2, int(site.sizes["times"]), len(levels)))
    np.add.at(counts, (1 - event.astype(np.int64), declared_intervals(site), _groups(site, levels)), 1.0)
    return Out({"events": counts[0], "censored": counts[1]})


@step(
    reads="train",
    takes={"levels": _LEVELS},
    releases={
        "difference": Sum("groups", limit_per_row=2),
        "variance": Sum("triangle(groups)", limit_per_row=1),
    },
)
def log_rank_within(site: Site, *, levels: FloatArray) -> Out:
    """Observed less expected events by group, given who is at risk at this site, and their variance."""
    times, event = site.table.arrays("time", "event")
    group = _groups(site, levels)
    distinct, at = np.unique(times, return_inverse=True)
    events, leaving = np.zeros((len(distinct), len(levels))), np.zeros((len(distinct), len(levels)))
    np.add.at(events, (at, group), event)
    np.add.at(leaving, (at, group), 1.0)
    observed, expected, variance = log_rank_sums(events, leaving)
    return Out({"difference": observed - expected, "variance": upper(variance)})


@dataclass(frozen=True)
class CurvesState:
    """cuts: (cells,) declared intervals up to each cell's end. events, censored: (cells, groups) of ``levels``.

    grid_difference: (2, groups) most by which a curve differs from the one on declared intervals, at the ends of cells
    and at any time.
    """

    levels: list[str]
    cuts: IntArray
    events: FloatArray
    censored: FloatArray
    grid_difference: FloatArray
    within: dict[str, Any]
    sites: list[str]
    held_back: dict[str, Any]
    rounds: int


@dataclass(frozen=True)
class KaplanMeier:
    """Settings: by (the code variable whose groups are compared; none: one curve), minimum_cell (of events and of others
    who leave, in each cell and group; never below the study's).
    """

    by: str = ""
    minimum_cell: int = 10

    steps: ClassVar[tuple[Step, ...]] = (counts_by_time_and_group, log_rank_within)

    def __post_init__(self) -> None:
        if self.minimum_cell < 1:
            raise ValueError("minimum_cell is at least 1")

    def start(self, study: Study) -> CurvesState:
        if study.time is None:
            raise StudyError(f"study {study.name!r}: times to an event are asked for; write `task: {{kind: survival}}`")
        none = np.zeros((0, 1))
        levels = list(group_levels(study, self.by))
        return CurvesState(levels, np.zeros(0, np.int64), none, none, np.zeros((2, 0)), {}, [], {}, 0)

    def advance(self, federation: Federation, state: CurvesState) -> CurvesState:
        levels = np.arange(len(group_levels(federation.study, self.by)), dtype=np.float64)
        if state.rounds == 0:
            total = federation.sum(counts_by_time_and_group, levels=levels)
            held = {site: {"kind": f.kind, "reason": f.reason} for site, f in total.failures.items()}
            counted = self._merged(federation.study, state, total["events"], total["censored"])
            return replace(counted, sites=list(total.sites), held_back=held, rounds=1)
        total = federation.roster(state.sites).sum(log_rank_within, levels=levels)
        if list(total.sites) != list(state.sites):
            raise FederationError(
                f"the counts came from {', '.join(state.sites)}, the test within sites from {', '.join(total.sites)}; "
                "start a new run when all of them answer"
            )
        kept = [group_levels(federation.study, self.by).index(level) for level in state.levels]
        variance = symmetric(total["variance"], len(levels))[np.ix_(kept, kept)]
        expected = state.events.sum(0) - total["difference"][kept]
        test = asdict(log_rank(state.events.sum(0), expected, variance))
        return replace(state, within=test, rounds=2)

    def _merged(self, study: Study, state: CurvesState, events: FloatArray, censored: FloatArray) -> CurvesState:
        """Counts on merged cells. FederationError without events, or where a group has too few for any cell."""
        if not events.sum() > 0:
            raise FederationError("no patient who was counted has the event; there is no curve to draw")
        there = np.flatnonzero((events + censored).sum(0) > 0)
        events, censored, levels = (
            events[:, there],
            censored[:, there],
            [state.levels[index] for index in there.tolist()],
        )
        least = float(max(self.minimum_cell, study.privacy.minimum_cell))
        few = [
            level
            for level, had, lost in zip(levels, events.sum(0), censored.sum(0), strict=True)
            if had < least or 0 < lost < least
        ]
        if least > 1 and few:
            which = f" in the group {' and '.join(map(repr, few))}" if self.by else ""
            raise refuse_no_cells(f"events, or patients without one,{which}")
        if least > 1:
            counts = np.concatenate([events, censored], axis=1)
            may_be_empty = np.arange(counts.shape[1]) >= len(levels)
            cuts = merged_cuts(counts, np.full(counts.shape[1], least), may_be_empty)
        else:
            cuts = np.arange(1, len(events) + 1)
        if cuts is None:
            raise refuse_no_cells("events, or patients without one,")
        merged, lost = on_cuts(events, cuts), on_cuts(censored, cuts)
        whole = np.arange(1, len(events) + 1)
        difference = [
            _differences(
                curve_of(cell_ends(study, whole), events[:, index], censored[:, index]).survival,
                curve_of(cell_ends(study, cuts), merged[:, index], lost[:, index]).survival,
                cuts,
            )
            for index in range(len(levels))
        ]
        return replace(
            state, levels=levels, cuts=cuts, events=merged, censored=lost, grid_difference=np.array(difference).T
        )

    def done(self, state: CurvesState) -> bool:
        return state.rounds >= (2 if len(state.levels) > 1 and state.rounds else 1)

    def result(self, state: CurvesState) -> Mapping[str, Any]:
        tests: dict[str, Any] = {}
        if len(state.levels) > 1:
            sums = log_rank_sums(state.events, state.events + state.censored)
            tests = {"log_rank": asdict(log_rank(*sums)), "log_rank_within": dict(state.within)}
        return {
            "model": "kaplan_meier",
            "by": self.by,
            "levels": list(state.levels),
            "cuts": state.cuts,
            "events": state.events,
            "censored": state.censored,
            "grid_difference": state.grid_difference,
            **tests,
            "rounds": state.rounds,
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
        }


def _differences(fine: FloatArray, merged: FloatArray, cuts: IntArray) -> tuple[float, float]:
    """Most by which two step curves differ at the ends of cells, and at any time. fine: (times,); merged: (cells,)."""
    before = np.concatenate([[1.0], merged])
    at = np.searchsorted(cuts, np.arange(1, len(fine) + 1), side="right")
    return float(np.abs(fine[cuts - 1] - merged).max()), float(np.abs(fine - before[at]).max())
