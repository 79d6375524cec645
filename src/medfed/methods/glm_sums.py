"""What one site adds to a generalised linear model: its rows' derivatives, summed; its own intercept maximised over.

The mathematics behind the steps of ``glm``. A site's intercept is solved for on its own rows and eliminated from score
and information by Schur complement, which leaves the sums of the joint fit (Murphy and van der Vaart 2000).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.site import Site
from medfed.federation.step import Out
from medfed.methods.design_matrix import blocks, smallest_cell
from medfed.methods.families import Derivatives, derivatives, pearson, shape_derivatives, site_effect
from medfed.methods.newton import upper

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class At:
    """Rows of a block at given coefficients: x (terms, b), eta, y, weight (b,), derivatives in eta."""

    x: FloatArray
    eta: FloatArray
    y: FloatArray
    weight: FloatArray | float
    d: Derivatives


def evaluated(site: Site, inputs: Mapping[str, FloatArray]) -> Iterator[At]:
    """The site's rows at the call's coefficients. None where the site's own intercept has no maximum: no information."""
    family, alpha = str(site.settings["family"]), float(np.exp(inputs["log_alpha"]))
    middle, width = (float(value) for value in inputs["outcome"])
    beta, own = inputs["beta"], 0.0

    def read() -> Iterator[tuple[FloatArray, FloatArray, FloatArray, FloatArray | float]]:
        for block in blocks(site, inputs["centre"], inputs["scale"]):
            yield block.x, beta @ block.x + block.offset / width, (block.y - middle) / width, block.weight

    if site.settings["site_effects"]:
        parts = [
            (eta, y, np.broadcast_to(np.asarray(weight, dtype=np.float64), y.shape)) for _, eta, y, weight in read()
        ]
        eta, y, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
        own = site_effect(family, eta, y, weights, alpha)
        if np.isnan(own):
            return
    for x, eta, y, weight in read():
        eta = eta + own
        yield At(x, eta, y, weight, derivatives(family, eta, y, weight, alpha))


def _without_intercept(score: FloatArray, information: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Score (m,) and information (m, m) of a site with its intercept, index 0, maximised over: Schur complement."""
    if not information[0, 0] > 0:
        return np.zeros_like(score), np.zeros_like(information)
    share = information[0] / information[0, 0]
    score, information = score - share * score[0], information - np.outer(share, information[0])
    score[0], information[0], information[:, 0] = 0.0, 0.0, 0.0
    return score, information


def weight_sums(site: Site) -> tuple[float, float]:
    """Sum of the weights of the site's rows, and of their logarithms."""
    name = site.study.weight
    if name is None:
        return float(site.table.rows), 0.0

    def compute() -> tuple[float, float]:
        sums = [(float(w.sum()), float(np.log(w).sum())) for (w,) in site.table.batches([name])]
        return sum(weight for weight, _ in sums), sum(logs for _, logs in sums)

    return site.memo("weight sums", {}, compute)


def accumulated(site: Site, inputs: Mapping[str, FloatArray], *, shape: bool) -> Out:
    """The releases of ``glm_terms``; with ``shape`` also those in log alpha, all on the observed information."""
    q, family = len(inputs["beta"]), str(site.settings["family"])
    m = q + shape
    score, information, fit = np.zeros(m), np.zeros((m, m)), np.zeros(6)
    weights = squares = 0.0
    for at in evaluated(site, inputs):
        weight = at.d.observed if shape else at.d.expected
        score[:q] += at.x @ at.d.residual
        information[:q, :q] += (at.x * weight) @ at.x.T
        if shape:
            more = shape_derivatives(at.eta, at.y, at.weight, float(np.exp(inputs["log_alpha"])))
            score[q] += more.score.sum()
            information[:q, q] += at.x @ more.with_eta
            information[q, q] += more.curvature.sum()
        fit[:3] += [at.d.log_likelihood, at.d.deviance, pearson(family, at.d, at.eta, at.y, at.weight)]
        weights += float(weight.sum())
        squares += float(weight @ weight)
    information[q:, :q] = information[:q, q:].T
    if site.settings["site_effects"]:
        score, information = _without_intercept(score, information)
    fit[3:] = site.table.rows, *weight_sums(site)
    release = {"score": score[:q], "information": upper(information[:q, :q]), "fit": fit}
    if shape:
        release["shape"] = np.stack([information[q], np.append(np.zeros(q), score[q])])
    rests_on = weights * weights / squares if squares > 0 else np.inf
    return Out(release, effective_patients=min(rests_on, smallest_cell(site)))


def sandwich(site: Site, inputs: Mapping[str, FloatArray], *, clustered: bool) -> Out:
    """Bread and meat of a sandwich at given coefficients; one cluster is the site."""
    q, alpha = len(inputs["beta"]), float(np.exp(inputs["log_alpha"]))
    shape = site.settings["family"] == "negative_binomial" and not site.settings["alpha"]
    own = bool(site.settings["site_effects"])
    m = q + shape
    information, meat, sums = np.zeros((m, m)), np.zeros((m, m)), np.zeros(m)
    share = np.zeros(m)

    def rows() -> Iterator[tuple[At, FloatArray, Any]]:
        for at in evaluated(site, inputs):
            each = np.empty((m, len(at.eta)))
            np.multiply(at.x, at.d.residual, out=each[:q])
            more = shape_derivatives(at.eta, at.y, at.weight, alpha) if shape else None
            if more is not None:
                each[q] = more.score
            yield at, each, more

    for at, each, more in rows():
        information[:q, :q] += (at.x * at.d.observed) @ at.x.T
        if more is not None:
            information[:q, q] += at.x @ more.with_eta
            information[q, q] += more.curvature.sum()
        sums += each.sum(1)
        if not clustered and not own:
            meat += _outer(site, at, each)
    information[q:, :q] = information[:q, q:].T
    if own:
        share = information[0] / information[0, 0] if information[0, 0] > 0 else share
        sums, information = _without_intercept(sums, information)
        if not clustered:
            for at, each, _ in rows():
                each -= share[:, None] * each[0]
                meat += _outer(site, at, each)
    if clustered:
        meat = np.outer(sums, sums)
    meat /= float(inputs["unit"])
    return Out(
        {
            "information": upper(information[:q, :q]),
            "meat": upper(meat[:q, :q]),
            "shape": np.stack([information[q], meat[q]]) if shape else np.zeros((2, q + 1)),
        },
        effective_patients=smallest_cell(site),
    )


def _outer(site: Site, at: At, each: FloatArray) -> FloatArray:
    # A row that stands for w patients (a frequency) adds its score w times, not w squared times.
    return (each / at.weight if site.settings["weights"] == "frequency" else each) @ each.T
