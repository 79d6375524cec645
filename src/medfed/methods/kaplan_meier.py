"""Survival curves by group, and tests between them, from counts on a time grid whose cells show no small count.

One call for the counts by declared interval, merged for each group by rule on the total; with groups, one more for the
log-rank test within sites, which is exact and needs no grid. Curves, bands, RMST and medians come from the merged
counts (``kaplan_meier_fit``), and equal the pooled ones with every time moved to the end of its cell. The log-rank test
over all sites is one figure, which shows no cell: it is taken on the declared intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, StudyError
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Step, Sum, step
from medfed.methods.newton import symmetric, upper
from medfed.methods.survival_curves import curve_of, log_rank, log_rank_sums, lowest_survival, restricted_mean
from medfed.methods.time_grid import cell_ends, declared_intervals, merged_cuts, on_cuts, refuse_no_cells
from medfed.study import Study

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_LEVELS = Input("compared", limit=1e4, model=True)


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
    releases={
        "events": Count("times,compared", merges="apart"),
        "censored": Count("times,compared", zero_is_small=False, merges="apart"),
    },
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
        "difference": Sum("compared", limit_per_row=2),
        "variance": Sum("triangle(compared)", limit_per_row=1),
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
    """curves: by index of ``levels``, cuts (declared intervals up to each cell's end), events, censored: (cells,) each,
    and what merging changes (``_grid_changes``). log_rank, within: the tests on the declared grid, and within sites. merged_before: whether
    counts were merged before they were seen.
    """

    levels: list[str]
    curves: dict[str, Any]
    log_rank: dict[str, Any]
    within: dict[str, Any]
    sites: list[str]
    held_back: dict[str, Any]
    rounds: int
    merged_before: bool = False


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
        return CurvesState(list(group_levels(study, self.by)), {}, {}, {}, [], {}, 0)

    def advance(self, federation: Federation, state: CurvesState) -> CurvesState:
        everyone = group_levels(federation.study, self.by)
        levels = np.arange(len(everyone), dtype=np.float64)
        if state.rounds == 0:
            total = federation.sum(counts_by_time_and_group, levels=levels)
            held = {site: {"kind": f.kind, "reason": f.reason} for site, f in total.failures.items()}
            counted = self._merged(federation.study, state, total["events"], total["censored"], known=not total.merged)
            return replace(counted, sites=list(total.sites), held_back=held, rounds=1)
        total = federation.roster(state.sites).sum(log_rank_within, levels=levels)
        if list(total.sites) != list(state.sites):
            raise FederationError(
                f"the counts came from {', '.join(state.sites)}, the test within sites from {', '.join(total.sites)}; "
                "start a new run when all of them answer"
            )
        kept = [everyone.index(level) for level in state.levels]
        observed = np.array([np.sum(state.curves[str(index)]["events"]) for index in range(len(kept))])
        variance = symmetric(total["variance"], len(levels))[np.ix_(kept, kept)]
        test = log_rank(observed, observed - total["difference"][kept], variance)
        return replace(state, within=asdict(test), rounds=2)

    def _merged(
        self, study: Study, state: CurvesState, events: FloatArray, censored: FloatArray, *, known: bool
    ) -> CurvesState:
        """Curves on merged cells, and the test. FederationError without events, or where a group has too few for a cell.

        known: whether counts are of declared intervals, or stand at the ends of cells that sites have merged. Then the test
        is taken on the cells that all groups share, and what merging changes is a bound.
        """
        if not events.sum() > 0:
            raise FederationError("no patient who was counted has the event; there is no curve to draw")
        there = np.flatnonzero((events + censored).sum(0) > 0)
        events, censored, levels = (
            events[:, there],
            censored[:, there],
            [state.levels[index] for index in there.tolist()],
        )
        least = float(max(self.minimum_cell, study.privacy.minimum_cell))
        cuts = [_own_cuts(events[:, index], censored[:, index], least) for index in range(len(levels))]
        if few := [level for level, own in zip(levels, cuts, strict=True) if own is None]:
            which = f" in the group {' and '.join(map(repr, few))}" if self.by else ""
            raise refuse_no_cells(f"events, or patients without one,{which}")
        chosen = _protected([own for own in cuts if own is not None], events.sum(0))
        curves = {
            str(index): {
                "cuts": own,
                "events": on_cuts(events[:, index], own),
                "censored": on_cuts(censored[:, index], own),
                "grid_changes": (_grid_changes if known else grid_bounds)(
                    study, events[:, index], censored[:, index], own
                ),
            }
            for index, own in enumerate(chosen)
        }
        shared = sorted(set.intersection(*(set(own.tolist()) for own in chosen)))
        test: dict[str, Any] = {}
        if len(levels) > 1 and known:
            test = asdict(log_rank(*log_rank_sums(events, events + censored)))
        elif len(levels) > 1 and len(shared) > 1:
            common = np.array(shared, dtype=np.int64)
            sums = log_rank_sums(on_cuts(events, common), on_cuts(events + censored, common))
            test = {**asdict(log_rank(*sums)), "cells": float(len(common))}
        return replace(state, levels=levels, curves=curves, log_rank=test, merged_before=not known)

    def done(self, state: CurvesState) -> bool:
        return state.rounds >= (2 if len(state.levels) > 1 and state.rounds else 1)

    def result(self, state: CurvesState) -> Mapping[str, Any]:
        tests = {"log_rank": dict(state.log_rank), "log_rank_within": dict(state.within)} if state.within else {}
        tests = {name: test for name, test in tests.items() if test}
        return {
            "model": "kaplan_meier",
            "by": self.by,
            "levels": list(state.levels),
            "curves": dict(state.curves),
            "patients": sum(
                float(np.sum(curve["events"]) + np.sum(curve["censored"])) for curve in state.curves.values()
            ),
            "merged_before": state.merged_before,
            **tests,
            "rounds": state.rounds,
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
        }


def _own_cuts(events: FloatArray, censored: FloatArray, least: float) -> IntArray | None:
    """Ends of one group's merged cells, from counts (times,)."""
    return merged_cuts(np.stack([events, censored], axis=1), np.full(2, least), np.array([False, True]))


def _protected(cuts: Sequence[IntArray], events: FloatArray) -> list[IntArray]:
    """Cuts of which none is missing in one group alone: a curve of everybody less the others would show its counts.

    Where one is, the group with the fewest events that has it loses it too. cuts: one array a group; events: (groups,).
    """
    kept = [set(own.tolist()) for own in cuts]
    for cut in sorted(set.union(*kept)):
        having = [index for index, own in enumerate(kept) if cut in own]
        if len(kept) > 1 and len(having) == len(kept) - 1:
            kept[min(having, key=lambda index: (events[index], index))].remove(cut)
    return [np.array(sorted(own), dtype=np.int64) for own in kept]


def _grid_changes(study: Study, events: FloatArray, censored: FloatArray, cuts: IntArray) -> FloatArray:
    """What merging changes against the declared intervals: most by which the curves differ at the ends of cells, and at
    any time; and the mean up to the end of the grid, less that on the declared intervals, in the time's unit. (3,)
    """
    whole = np.arange(1, len(events) + 1)
    fine = curve_of(cell_ends(study, whole), events, censored)
    merged = curve_of(cell_ends(study, cuts), on_cuts(events, cuts), on_cuts(censored, cuts))
    before = np.concatenate([[1.0], merged.survival])
    last = float(fine.time[-1])
    return np.array(
        [
            np.abs(fine.survival[cuts - 1] - merged.survival).max(),
            np.abs(fine.survival - before[np.searchsorted(cuts, whole, side="right")]).max(),
            restricted_mean(merged, last)[0] - restricted_mean(fine, last)[0],
        ]
    )


def grid_bounds(study: Study, events: FloatArray, censored: FloatArray, cuts: IntArray) -> FloatArray:
    """The same where only the merged counts are known: by how much they can differ from the declared intervals' (3,).

    In a merged cell all who are censored may leave before the first event, or after the last, so that the curve on the
    declared intervals ends between (n - c - d) / (n - c) and (n - d) / n of where it began, the latter being the merged one.
    """
    merged = curve_of(cell_ends(study, cuts), on_cuts(events, cuts), on_cuts(censored, cuts))
    width = np.diff(cuts, prepend=0)
    lowest = lowest_survival(merged, width)
    before, lowest_before = (np.concatenate([[1.0], curve[:-1]]) for curve in (merged.survival, lowest))
    interval = study.variables[study.time or ""].interval or 1.0
    # The first declared interval of a cell ends before anything has happened in it.
    area = interval * (before * width - (lowest_before + lowest * (width - 1)))
    return np.array([
        (merged.survival - lowest).max(),
        np.where(width > 1, before - lowest, merged.survival - lowest).max(),
        area.sum(),
    ])  # fmt: skip
