"""The C-index over pairs of patients of different sites, from counts by cell of time and group of scores.

No two patients of different sites can be compared as they are, so scores are cut into groups and times into cells, of
which none has a small count. Within sites the same pairs are also counted exactly: that tells the error of grouping.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from medfed.federation.federation import Federation
from medfed.federation.merging import NoCells
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Sum, step
from medfed.methods.concordance import Pairs, c_index, count_pairs
from medfed.methods.cox import TAKES, risk_patients, slopes_of
from medfed.methods.grid_likelihood import at_risk
from medfed.methods.time_grid import CUTS, merged_cuts, on_cuts, site_cells

FloatArray = NDArray[np.float64]

GROUPS = 20
# Who is in which group hangs on the model as on the edges: either is another one where it moves a patient.
_GROUPED = {
    **{name: replace(declared, model=True) for name, declared in TAKES.items()},
    "cuts": CUTS,
    "edges": Input("bins", limit=1e3, model=True),
}


@step(reads="train", takes=TAKES, releases={"sum": Sum(limit_per_row=1e3), "square": Sum(limit_per_row=1e6)})
def score_spread(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Sum and sum of squares of the model's linear predictor over the patients."""
    x = slopes_of(site, centre, scale)
    eta = x @ beta[1:]
    return Out({"sum": eta.sum(), "square": (eta * eta).sum()}, effective_patients=risk_patients(x, beta[1:]))


def _groups(
    site: Site, beta: FloatArray, centre: FloatArray, scale: FloatArray, edges: FloatArray
) -> tuple[NDArray[np.int64], float]:
    """Group (n,) of each patient's score; the last group has no upper edge."""
    x = slopes_of(site, centre, scale)
    group = np.searchsorted(edges[:-1], x @ beta[1:], side="left").astype(np.int64)
    return group, risk_patients(x, beta[1:])


@step(
    reads="train",
    takes=_GROUPED,
    releases={
        "events_by_score": Count("bins,time_cells", zero_is_small=False, merges="together"),
        "censored_by_score": Count("bins,time_cells", zero_is_small=False, merges="together"),
    },
)
def score_table(
    site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray, cuts: FloatArray, edges: FloatArray
) -> Out:
    """Patients with the event, and censored ones, by group of the model's score and cell of the time grid."""
    group, effective = _groups(site, beta, centre, scale, edges)
    cells = site_cells(site, cuts)
    table = np.zeros((2, len(edges), cells.count))
    np.add.at(table, (1 - cells.event.astype(np.int64), group, cells.cell), 1.0)
    return Out({"events_by_score": table[0], "censored_by_score": table[1]}, effective_patients=effective)


@step(
    reads="train",
    takes=_GROUPED,
    releases={"grouped_pairs": Sum("3", limit_per_row=1e6)},
)
def grouped_pairs_within(
    site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray, cuts: FloatArray, edges: FloatArray
) -> Out:
    """Pairs of this site's patients that grouped scores put in the order of their events, in cells of the time grid."""
    group, effective = _groups(site, beta, centre, scale, edges)
    cells = site_cells(site, cuts)
    pairs = count_pairs(_cell_times(cells.cell, cells.event), cells.event, group.astype(np.float64))
    return Out({"grouped_pairs": pairs.totals}, effective_patients=effective)


def _cell_times(cell: NDArray[np.int64], event: FloatArray) -> FloatArray:
    """Times (n,) that leave pairs of one cell without an order: who is censored goes before its events."""
    return np.asarray(cell - 0.5 * (1.0 - event))


@dataclass(frozen=True)
class AcrossSites:
    """C-index over all pairs: exact within sites, grouped across them.

    value, standard_error: of all pairs together. across: of pairs across sites alone. pairs_within, pairs_across: how
    many can be compared. largest_error: what ties within groups could move ``value`` by at most; each counts one half.
    grouping_error: C of the grouped pairs within sites minus that of the exact ones, where both are known.
    """

    value: float
    standard_error: float
    across: float
    pairs_within: float
    pairs_across: float
    largest_error: float
    grouping_error: float
    groups: int
    cells: int


def table_pairs(events: FloatArray, leaving: FloatArray) -> Pairs:
    """Pairs of a table: for who has the event in cell k and group b, and for who leaves there; (cells, groups) each.

    Laid out as ``Pairs`` of the table's 2 x cells x groups kinds of patients, events first; multiply by their numbers.
    """
    later = at_risk(leaving) - leaving
    earlier = np.cumsum(events, axis=0) - events
    below, above = (np.cumsum(later, axis=1) - later), (np.cumsum(earlier[:, ::-1], axis=1)[:, ::-1] - earlier)
    as_longer = np.stack(
        [above + 0.5 * earlier, earlier, np.broadcast_to(earlier.sum(1, keepdims=True), earlier.shape)]
    )
    as_shorter = np.stack([below + 0.5 * later, later, np.broadcast_to(later.sum(1, keepdims=True), later.shape)])
    kinds = np.concatenate([(as_longer + as_shorter).reshape(3, -1), as_longer.reshape(3, -1)], axis=1)
    return Pairs(kinds[0], kinds[1], kinds[2])


def _coarsened(
    events: FloatArray, censored: FloatArray, minimum: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Ends of merged cells and of merged groups of a table (cells, groups), none with a small count; None if impossible.

    Fewer groups leave room for more cells. Few groups tie scores, which pulls C towards one half; few cells leave pairs
    out that are close in time, which are harder to order. So the table is chosen that is least coarse both ways.
    """
    best: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    for factor in (2, 3, 4, 6, 8, 12, 16):
        by_group = np.stack([events.sum(0), censored.sum(0)], axis=1)
        groups = merged_cuts(by_group, np.full(2, factor * minimum))
        if groups is None or len(groups) < 2:
            break
        columns = [on_cuts(counts.T, groups).T for counts in (events, censored)]
        counts = np.concatenate(columns, axis=1)
        may_be_empty = np.arange(counts.shape[1]) >= len(groups)
        cells = merged_cuts(counts, np.full(counts.shape[1], minimum), may_be_empty)
        if cells is None or len(cells) < 2:
            continue
        if best is None or min(len(cells), len(groups)) > min(map(len, best)):
            best = cells, groups
    return best


def _few_cells(events: FloatArray, minimum: float) -> NDArray[np.int64]:
    """Ends of merged cells, as many as leave each of about as many groups of scores four times the minimum of events."""
    wanted = max(2, int(np.sqrt(events.sum() / (4.0 * minimum))))
    shares = np.cumsum(events) / events.sum()
    ends = np.searchsorted(shares, np.arange(1, wanted) / wanted) + 1
    return np.unique(np.append(ends, len(events)))


def _as_merged(patients: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Ends of all cells, and of the groups that sites have merged: those of a total (cells, groups) that hold anybody."""
    groups = np.flatnonzero(patients.sum(0) > 0) + 1
    if len(groups) < 2 or len(patients) < 2:
        return None
    groups[-1] = patients.shape[1]
    return np.arange(1, len(patients) + 1), groups


def across_sites(
    federation: Federation,
    inputs: dict[str, Any],
    within: FloatArray,
    patients: float,
    minimum: float,
    events_by_cell: FloatArray,
) -> tuple[AcrossSites | None, list[tuple[str, ...]]]:
    """The C-index over all pairs, and the sites counted in each call. inputs: beta, centre, scale and cuts of a fit.

    within: (3,) exact pairs, as ``Pairs.totals``. events_by_cell: (cells,) of the fit's time grid. None where no table of scores and times is without a small count.
    """
    scored = {name: inputs[name] for name in ("beta", "centre", "scale")}
    spread = federation.sum(score_spread, **scored)
    mean = float(spread["sum"]) / patients
    deviation = np.sqrt(max(float(spread["square"]) / patients - mean * mean, 1e-12))
    count = min(GROUPS, federation.study.evaluation.bins)
    # The last group is open above; its edge is only there to be sent.
    edges = np.append(mean + deviation * norm.ppf(np.arange(1, count) / count), 1e3)
    cuts = np.asarray(inputs["cuts"])
    if federation.is_secure and federation.study.privacy.minimum_cell > 1:
        # Groups are merged before the table is opened, each time cell and kind at once: leave them enough to be merged to.
        cuts = cuts[_few_cells(events_by_cell, minimum) - 1]
    try:
        table = federation.sum(score_table, **scored, cuts=cuts, edges=edges)
    except NoCells:
        return None, [spread.sites]
    found_events, found_censored = (table[f"{kind}_by_score"].T for kind in ("events", "censored"))
    coarse = (
        _as_merged(found_events + found_censored) if table.merged else _coarsened(found_events, found_censored, minimum)
    )
    if coarse is None:
        return None, [spread.sites, table.sites]
    cells, groups = coarse
    events, censored = (on_cuts(on_cuts(counts, cells).T, groups).T for counts in (found_events, found_censored))
    asked = {**scored, "cuts": cuts[cells - 1], "edges": edges[groups - 1]}
    grouped = federation.sum(grouped_pairs_within, **asked)
    kinds = table_pairs(events, events + censored)
    numbers = np.concatenate([events.reshape(-1), censored.reshape(-1)])
    everyone = Pairs(*(np.sqrt(numbers) * part for part in (kinds.right, kinds.tied, kinds.comparable)))
    totals = 0.5 * np.array([numbers @ part for part in (kinds.right, kinds.tied, kinds.comparable)])
    apart = totals - grouped["grouped_pairs"]
    right, comparable = within[0] + apart[0], within[2] + apart[2]
    found = AcrossSites(
        value=float(right / comparable),
        standard_error=c_index(totals, everyone.squares(1.0), 1.0).standard_error,
        across=float(apart[0] / apart[2]) if apart[2] > 0 else float("nan"),
        pairs_within=float(within[2]),
        pairs_across=float(apart[2]),
        largest_error=float(0.5 * apart[1] / comparable),
        grouping_error=float(grouped["grouped_pairs"][0] / grouped["grouped_pairs"][2] - within[0] / within[2]),
        groups=len(groups),
        cells=len(cells),
    )
    return found, [spread.sites, table.sites, grouped.sites]
