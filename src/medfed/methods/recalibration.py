"""Recalibration of a risk model at a site: intercept alone, or intercept and slope, from the site's own patients.

logit(risk) = a + b x linear predictor (Cox 1958; Steyerberg 2004). A normal prior on the intercept's change keeps a
hospital with few patients near the model it received. The same terms sum across sites, so a group can recalibrate too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.fedavg import MODEL
from medfed.methods.newton import sigmoid
from medfed.methods.standardise import CENTRE, SCALE, standardised
from medfed.methods.weights import effective_patients, ordinary_patients
from medfed.study import Study

FloatArray = NDArray[np.float64]


def recalibration_terms(predictor: FloatArray, outcome: FloatArray, line: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Score (2,) and information (3,: aa, ab, bb) of intercept a and slope b; predictor and outcome (n,), line (2,)."""
    risk = sigmoid(line[0] + line[1] * predictor)
    residual, weight = outcome - risk, risk * (1 - risk)
    score = np.array([residual.sum(), residual @ predictor])
    information = np.array([weight.sum(), weight @ predictor, weight @ (predictor * predictor)])
    return score, information


@step(
    reads=("train", "valid"),
    takes={"model": MODEL, "centre": CENTRE, "scale": SCALE, "line": Input("2", limit=20.0, meaning="line")},
    releases={
        "score": Sum("2", limit_per_row=200),
        "information": Sum("3", limit_per_row=4e4),
        "rows": Sum(limit_per_row=1),
    },
)
def line_terms(site: Site, *, model: FloatArray, centre: FloatArray, scale: FloatArray, line: FloatArray) -> Out:
    """Terms of the recalibration line at (a, b) over the site's patients."""
    x, y = standardised(site, centre, scale)
    predictor = x @ model
    score, information = recalibration_terms(predictor, y, line)
    risk = sigmoid(line[0] + line[1] * predictor)
    return Out(
        {"score": score, "information": information, "rows": float(len(y))},
        effective_patients=float(effective_patients(risk * (1 - risk))),
        ordinary_patients=float(ordinary_patients(risk * (1 - risk), y)),
    )


@dataclass(frozen=True)
class LineState:
    """line: (intercept, slope); covariance (2, 2)."""

    line: FloatArray
    covariance: FloatArray
    change: float
    rounds: int


@dataclass(frozen=True)
class Recalibration:
    """Recalibrate a given model over the federation's sites (one site, or a group). Not a study's main method.

    model, centre, scale: (p,) as a fit returned them. slope: whether the slope is estimated too. prior_sd: of the
    intercept's change.
    """

    model: FloatArray
    centre: FloatArray
    scale: FloatArray
    slope: bool = False
    prior_sd: float = 1.5
    tolerance: float = 1e-10

    steps: ClassVar[tuple[Step, ...]] = (line_terms,)

    def start(self, study: Study) -> LineState:
        return LineState(np.array([0.0, 1.0]), np.zeros((2, 2)), 1e300, 0)

    def advance(self, federation: Federation, state: LineState) -> LineState:
        total = federation.sum(line_terms, model=self.model, centre=self.centre, scale=self.scale, line=state.line)
        aa, ab, bb = total["information"]
        information = np.array([[aa + 1 / self.prior_sd**2, ab], [ab, bb]])
        score = total["score"] - np.array([state.line[0] / self.prior_sd**2, 0.0])
        free = 2 if self.slope else 1
        delta = np.zeros(2)
        delta[:free] = np.linalg.solve(information[:free, :free], score[:free])
        if not np.isfinite(delta).all() or state.rounds > 50:
            raise FederationError("the recalibration does not converge: the site has too few outcomes of one kind")
        covariance = np.zeros((2, 2))
        covariance[:free, :free] = np.linalg.inv(information[:free, :free])
        return LineState(state.line + delta, covariance, float(np.abs(delta).max()), state.rounds + 1)

    def done(self, state: LineState) -> bool:
        return state.change < self.tolerance

    def result(self, state: LineState) -> Mapping[str, Any]:
        return {"intercept": float(state.line[0]), "slope": float(state.line[1]), "covariance": state.covariance}
