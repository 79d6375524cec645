"""What sites release for a Cox model whose risk sets reach across sites: sums by cell of the merged time grid.

While the model is fitted only the risk weight of each cell leaves, one number; the cells' covariate sums leave once, at
the end, for the standard errors. Every release carries the cells' counts, and a site answers on one set of cuts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Sum, step
from medfed.methods.cox import PAIRS, TAKES, pair_sums, risk_patients, slopes_of
from medfed.methods.newton import upper
from medfed.methods.risk_sets import RiskOrder, partial_likelihood
from medfed.methods.time_grid import CELL_COUNTS, CUTS, site_cells

FloatArray = NDArray[np.float64]

_RISK = Sum("time_cells", limit_per_row=1e4)
_ON_CELLS = {**TAKES, "cuts": CUTS}


def _risks(
    site: Site, beta: FloatArray, centre: FloatArray, scale: FloatArray, cuts: FloatArray
) -> tuple[Any, FloatArray, FloatArray]:
    """Cells, slopes (n, q) and weights exp(x beta) (n,)."""
    x = slopes_of(site, centre, scale)
    return site_cells(site, cuts), x, np.exp(x @ beta[1:])


@step(reads="train", takes=_ON_CELLS, releases={"risk": _RISK, "event_risk": _RISK, **CELL_COUNTS})
def cell_risks(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray, cuts: FloatArray) -> Out:
    """Sums of relative risks of those who leave in each cell of the time grid; with Efron's ties, of the events too."""
    cells, x, risk = _risks(site, beta, centre, scale, cuts)
    own = cells.event if site.settings["ties"] == "efron" else np.zeros(len(risk))
    return Out(
        {"risk": cells.sums(risk), "event_risk": cells.sums(risk * own), **cells.counts()},
        effective_patients=risk_patients(x, beta[1:]),
        ordinary_patients=risk.sum(),  # one of the centre's weighs 1
    )


@step(
    reads="train",
    takes={
        **_ON_CELLS,
        "hazard": Input("time_cells", limit=1e6),
        "less": Input("time_cells", limit=1e6),
        "marks": Input("time_cells", limit=4.0),
    },
    releases={
        "observed": Sum("slopes", limit_per_row=1e3),
        "expected": Sum("slopes", limit_per_row=1e6),
        "second": Sum("triangle(slopes)", limit_per_row=1e8),
        **CELL_COUNTS,
    },
)
def cell_information(
    site: Site,
    *,
    beta: FloatArray,
    centre: FloatArray,
    scale: FloatArray,
    cuts: FloatArray,
    hazard: FloatArray,
    less: FloatArray,
    marks: FloatArray,
) -> Out:
    """Observed and expected covariate sums of the events, and second moments, under a given baseline hazard.

    hazard: (cells,) cumulative; less: (cells,) what is taken off for an event in the cell; marks: (cells,) weights of
    the observed events, with which hazard and less were multiplied.
    """
    cells, x, risk = _risks(site, beta, centre, scale, cuts)
    weight = risk * (hazard[cells.cell] - cells.event * less[cells.cell])
    return Out(
        {
            "observed": x.T @ (cells.event * marks[cells.cell]),
            "expected": x.T @ weight,
            "second": upper((x * weight[:, None]).T @ x),
            **cells.counts(),
        },
        # What hazard, less and marks pick out are cells, whose counts are under the rule for counts.
        effective_patients=risk_patients(x, beta[1:]),
        ordinary_patients=risk.sum(),
    )


@step(
    reads="train",
    takes=_ON_CELLS,
    releases={
        "risk": _RISK,
        "event_risk": _RISK,
        "sums": Sum("time_cells,slopes", limit_per_row=1e7),
        "event_sums": Sum("time_cells,slopes", limit_per_row=1e7),
        **CELL_COUNTS,
    },
)
def cell_means(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray, cuts: FloatArray) -> Out:
    """Sums of relative risks and of covariates weighted by them, of those who leave in each cell of the time grid."""
    cells, x, risk = _risks(site, beta, centre, scale, cuts)
    own = cells.event if site.settings["ties"] == "efron" else np.zeros(len(risk))
    return Out(
        {
            "risk": cells.sums(risk),
            "event_risk": cells.sums(risk * own),
            "sums": cells.sums(x * risk[:, None]),
            "event_sums": cells.sums(x * (risk * own)[:, None]),
            **cells.counts(),
        },
        effective_patients=risk_patients(x, beta[1:]),
        ordinary_patients=risk.sum(),
    )


@step(
    reads="train",
    takes=_ON_CELLS,
    releases={
        "score": Sum("slopes", limit_per_row=200),
        "information": Sum("triangle(slopes)", limit_per_row=4e4),
        "grouped_score": Sum("slopes", limit_per_row=200),
        "grouped_information": Sum("triangle(slopes)", limit_per_row=4e4),
        **CELL_COUNTS,
    },
)
def grouping_terms(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray, cuts: FloatArray) -> Out:
    """Terms of the site-stratified model on exact and on grouped times, which tell what the grid changes."""
    cells, x, _ = _risks(site, beta, centre, scale, cuts)
    (times,) = site.table.arrays("time")
    ties = site.settings["ties"]
    released: dict[str, Any] = {}
    for prefix, at in (("", times), ("grouped_", cells.cell.astype(np.float64))):
        order = RiskOrder.of(at, cells.event)
        terms = partial_likelihood(x[order.order], beta[1:], order, ties)
        released |= {f"{prefix}score": terms.score, f"{prefix}information": upper(terms.information)}
    return Out({**released, **cells.counts()}, effective_patients=risk_patients(x, beta[1:]))


@step(reads="train", takes=TAKES, releases=PAIRS)
def pairs_within(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Pairs of this site's patients that the model puts in the order of their events."""
    x = slopes_of(site, centre, scale)
    return Out(pair_sums(site, x @ beta[1:]), effective_patients=risk_patients(x, beta[1:]))
