"""The time grid of a survival study: declared intervals, and neighbours merged so that no cell shows a small count.

Intervals are (0, w], (w, 2w], ...; a time of 0 is in the first. The counts by declared interval are asked for once, as
a total over sites; neighbours are merged by rule on that total, and only merged cells go on: into questions (``cuts``),
states and results. Under secure sums they are merged before the total is opened (``federation.merging``): it stands at
the last interval of each merged cell, and what is merged here is what more the method needs. Every step that works on cells releases their counts with it, so that whoever judges counts judges
the cells too, and a site answers on one set of cuts a study.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, PolicyViolation
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Step, step
from medfed.study import Study

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CUTS = Input("time_cells", limit=5000, model=True)
# What every step on cells also releases: a cell has events and others who leave, and the latter may be nobody.
CELL_COUNTS = {"events": Count("time_cells"), "censored": Count("time_cells", zero_is_small=False)}


def interval_of(times: FloatArray, interval: float, count: int) -> IntArray:
    """Index (n,) of the declared interval of each time, from 0. A time on a border belongs to the interval it ends."""
    index = np.ceil(np.asarray(times) / interval - 1e-9).astype(np.int64) - 1
    return np.clip(index, 0, count - 1)


@dataclass(frozen=True)
class Cells:
    """A site's patients on merged cells. cell, event: (n,); count: how many cells."""

    cell: IntArray
    event: FloatArray
    count: int

    def sums(self, values: FloatArray) -> FloatArray:
        """Sums of (n,) or (n, q) by cell: (cells,) or (cells, q)."""
        total = np.zeros((self.count, *np.shape(values)[1:]))
        np.add.at(total, self.cell, values)
        return total

    def counts(self) -> dict[str, FloatArray]:
        """The releases of ``CELL_COUNTS``."""
        return {"events": self.sums(self.event), "censored": self.sums(1.0 - self.event)}


def declared_intervals(site: Site) -> IntArray:
    """Index (n,) of each patient's declared interval."""
    (times,) = site.table.arrays("time")
    variable = site.study.variables[site.study.time or ""]
    return interval_of(times, variable.interval or 1.0, variable.intervals)


def site_cells(site: Site, cuts: FloatArray) -> Cells:
    """The site's patients on the cells that end after ``cuts`` (cells,) declared intervals each, the last with the grid.

    PolicyViolation where the cuts are no such numbers.
    """
    ends = np.asarray(cuts).astype(np.int64)
    rising = len(ends) > 0 and bool(np.all(np.diff(ends, prepend=0) > 0)) and ends[-1] == site.sizes["times"]
    if not rising or not np.array_equal(ends, cuts):
        raise PolicyViolation("cuts are whole numbers of declared intervals, rising to the end of the grid")

    def compute() -> IntArray:
        return np.searchsorted(ends, declared_intervals(site), side="right").astype(np.int64)

    (event,) = site.table.arrays("event")
    return Cells(site.memo("cells", {"cuts": cuts}, compute), event, len(ends))


def merged_cuts(
    counts: FloatArray, least: FloatArray, may_be_empty: NDArray[np.bool_] | None = None
) -> IntArray | None:
    """Ends (cells,) of merged neighbours, so that each count of each cell reaches its least; None where none can.

    counts: (times, columns). least: (columns,). may_be_empty: (columns,) whether 0 will do as well, false everywhere by
    default. From the start, intervals are joined until all counts suffice; what is left at the end joins the last cell.
    Where one patient is enough everywhere, nothing is small and nothing is merged.
    """
    if np.all(np.asarray(least) <= 1):
        return np.arange(1, len(counts) + 1)
    counts = np.asarray(counts, dtype=np.float64)
    empty = np.zeros(counts.shape[1], dtype=bool) if may_be_empty is None else may_be_empty

    def suffices(cell: FloatArray) -> bool:
        return bool(np.all((cell >= least) | (empty & (cell == 0))))

    cells: list[FloatArray] = []
    ends: list[int] = []
    now = np.zeros(counts.shape[1])
    for index, row in enumerate(counts):
        now = now + row
        if suffices(now):
            cells.append(now)
            ends.append(index + 1)
            now = np.zeros(counts.shape[1])
    if ends and ends[-1] < len(counts):
        cells[-1] = cells[-1] + now
        ends[-1] = len(counts)
    # What was left may spoil a count of the last cell that was 0 before.
    while cells and not suffices(cells[-1]):
        spoilt = cells.pop()
        ends.pop()
        if cells:
            cells[-1] = cells[-1] + spoilt
            ends[-1] = len(counts)
    return np.array(ends, dtype=np.int64) if ends else None


def on_cuts(counts: FloatArray, cuts: IntArray) -> FloatArray:
    """Sums of counts (times, ...) over the cells that end at ``cuts``: (cells, ...)."""
    return np.asarray(np.add.reduceat(counts, np.concatenate([[0], cuts[:-1]]), axis=0))


def cell_ends(study: Study, cuts: Sequence[int] | IntArray) -> FloatArray:
    """The times at which merged cells end, in the study's unit: (cells,)."""
    return np.asarray(cuts, dtype=np.float64) * (study.variables[study.time or ""].interval or 1.0)


def refuse_no_cells(what: str) -> FederationError:
    """What to say where the whole follow-up as one cell has too few."""
    return FederationError(
        f"there is no time grid that shows no small count: {what} over the whole of follow-up are fewer than may be seen; "
        "invite more sites, or join levels in the study"
    )


_TIMES = {
    "events": Count("times", merges="together"),
    "censored": Count("times", zero_is_small=False, merges="together"),
}
_LEVELS = Count("times,indicators", zero_is_small=False, merges="together")


@step(reads="train", releases=_TIMES)
def counts_by_time(site: Site) -> Out:
    """Patients with the event, and censored ones, by declared time interval: (times,) each."""
    (event,) = site.table.arrays("event")
    cells = Cells(declared_intervals(site), event, int(site.sizes["times"]))
    return Out(cells.counts())


def _by_level(site: Site, *, by_event: bool) -> Out:
    event, features = site.table.arrays("event", "features")
    cells = Cells(declared_intervals(site), event, int(site.sizes["times"]))
    indicators = [index for index, column in enumerate(site.study.design.columns) if column.kind == "indicator"]
    levels = np.ascontiguousarray(features[:, indicators])
    released = {**cells.counts(), "with_level": cells.sums(levels), "without_level": cells.sums(1.0 - levels)}
    if by_event:
        own = event[:, None]
        released |= {
            "events_with_level": cells.sums(levels * own),
            "events_without_level": cells.sums((1.0 - levels) * own),
        }
    return Out(released)


@step(reads="train", releases={**_TIMES, "with_level": _LEVELS, "without_level": _LEVELS})
def counts_by_time_and_level(site: Site) -> Out:
    """Patients by declared time interval and event, and of them those with and without each coded level: (times, indicators)."""
    return _by_level(site, by_event=False)


@step(
    reads="train",
    releases={
        **_TIMES,
        "with_level": _LEVELS,
        "without_level": _LEVELS,
        "events_with_level": _LEVELS,
        "events_without_level": _LEVELS,
    },
)
def counts_by_time_level_and_event(site: Site) -> Out:
    """Patients by declared time interval, event and coded level, with the level and without it: (times, indicators)."""
    return _by_level(site, by_event=True)


CELLS = ("covariates", "events")


def check_cells(cells: str, minimum_cell: int) -> None:
    """ValueError for settings that a grid does not have."""
    if cells not in CELLS:
        raise ValueError(f"cells is {' or '.join(map(repr, CELLS))}, not {cells!r}")
    if minimum_cell < 1:
        raise ValueError("minimum_cell is at least 1")


def counting_steps(cells: str, *, by_event: bool = False) -> tuple[Step, ...]:
    """The steps that ``merged_grid`` may ask with these settings."""
    if cells == "events":
        return (counts_by_time,)
    return (counts_by_time, counts_by_time_level_and_event if by_event else counts_by_time_and_level)


@dataclass(frozen=True)
class MergedGrid:
    """Cells merged by rule on the total: cuts (cells,), and their counts (cells,)."""

    cuts: IntArray
    events: FloatArray
    censored: FloatArray


def merged_grid(federation: Federation, least: float, *, cells: str, values: int, by_event: bool = False) -> MergedGrid:
    """Ask for the counts by declared interval, and merge them for a model of the study's covariates.

    Each cell has ``least`` events, nobody or as many who are censored, and as many patients as there are ``values`` in
    a release for it. With cells "covariates" the patients of a coded level who leave in it, and those of no such level,
    are nobody or as many; by_event: those among them with the event too. FederationError where two cells are too many.
    """
    coded = any(column.kind == "indicator" for column in federation.study.design.columns)
    by_level = cells == "covariates" and least > 1 and coded
    total = federation.sum(counting_steps("covariates" if by_level else "events", by_event=by_event)[-1])
    events, leaving = total["events"][:, None], (total["events"] + total["censored"])[:, None]
    columns, needed, may_be_empty = (
        [events, leaving],
        [least, max(least, float(values if least > 1 else 1))],
        [False] * 2,
    )
    others = [leaving - events]
    if by_level:
        others += [total["with_level"], total["without_level"]]
        if by_event:
            others += [total["events_with_level"], total["events_without_level"]]
    for counts in others:
        columns.append(counts)
        needed += [least] * counts.shape[1]
        may_be_empty += [True] * counts.shape[1]
    cuts = merged_cuts(np.concatenate(columns, axis=1), np.array(needed), np.array(may_be_empty))
    if cuts is None:
        raise refuse_no_cells("events, or patients of a coded level,")
    if len(cuts) < 2:
        raise FederationError(
            "every border in the time grid would show a small count, so that all of follow-up becomes one cell; use "
            "cox.Cox, which needs no grid, or here `cells: events`" + (" or `ties: breslow`" if by_event else "")
        )
    return MergedGrid(cuts, on_cuts(total["events"], cuts), on_cuts(total["censored"], cuts))
