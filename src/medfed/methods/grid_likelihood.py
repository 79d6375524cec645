"""Cox's partial likelihood where only totals over the cells of a time grid are known: hazards and means at risk.

Times within a cell count as tied, at the cell's end; who is censored in a cell is at risk to its end. So the figures are
those of a pooled fit to the grouped times (Breslow 1974, Efron 1977 for the ties). Pure functions of totals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def at_risk(leaving: FloatArray) -> FloatArray:
    """Sums over those at risk in each cell (cells, ...), from sums over those who leave in it (cells, ...)."""
    return np.asarray(np.cumsum(leaving[::-1], axis=0)[::-1])


@dataclass(frozen=True)
class GridHazard:
    """steps (cells,): of the baseline hazard at x = 0. less (cells,): by how much of a step less those with an event
    in the cell count (Efron; zeros for Breslow). log_risk: sum over events of the log of their risk set's weight.
    """

    steps: FloatArray
    less: FloatArray
    log_risk: float


def _tied_events(events: FloatArray, ties: str) -> tuple[NDArray[np.int64], FloatArray]:
    """The cell of each event (E,), and the share of the tied events' weight that is taken off for it (E,)."""
    each = np.rint(events).astype(np.int64)
    cell = np.repeat(np.arange(len(each)), each)
    if ties == "breslow":
        return cell, np.zeros(len(cell))
    place = np.arange(len(cell)) - np.repeat(np.cumsum(each) - each, each)
    return cell, place / each[cell]


def grid_hazard(events: FloatArray, risk: FloatArray, event_risk: FloatArray, ties: str) -> GridHazard:
    """Hazard steps. (cells,) each: events, and sums of exp(x beta) over who leaves in a cell and who has the event in it."""
    cell, share = _tied_events(events, ties)
    whole = at_risk(risk)[cell] - share * event_risk[cell]
    count = len(events)
    return GridHazard(
        steps=np.asarray(np.bincount(cell, weights=1.0 / whole, minlength=count), dtype=np.float64),
        less=np.asarray(np.bincount(cell, weights=share / whole, minlength=count), dtype=np.float64),
        log_risk=float(np.log(whole).sum()),
    )


def mean_products(
    events: FloatArray,
    risk: FloatArray,
    event_risk: FloatArray,
    sums: FloatArray,
    event_sums: FloatArray,
    ties: str,
    marks: FloatArray,
) -> FloatArray:
    """Sum over events of mean mean' of x in the risk set, times ``marks`` (cells,): (q, q).

    sums, event_sums: (cells, q), sums of x exp(x beta) over who leaves in a cell and who has the event in it.
    """
    cell, share = _tied_events(events, ties)
    whole = at_risk(risk)[cell] - share * event_risk[cell]
    means = (at_risk(sums)[cell] - share[:, None] * event_sums[cell]) / whole[:, None]
    return np.asarray((means * marks[cell][:, None]).T @ means)
