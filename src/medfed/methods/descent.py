"""Local gradient descent of a linear or logistic model: what FedAvg and SCAFFOLD do at a site. One site, and stacked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.site import Site, Sites
from medfed.methods.newton import sigmoid
from medfed.methods.standardise import standardised, standardised_stack
from medfed.methods.weights import Mask, effective_patients, ordinary_patients

FloatArray = NDArray[np.float64]


def mean_response(eta: FloatArray, family: str) -> FloatArray:
    """Fitted mean of the outcome at a linear predictor."""
    return sigmoid(eta) if family == "logistic" else np.asarray(eta)


def losses(eta: FloatArray, outcome: FloatArray, family: str) -> FloatArray:
    """Loss of each row at a linear predictor: log-loss in nats, or half the squared residual."""
    if family == "logistic":
        return np.asarray(np.logaddexp(0, eta) - outcome * eta)
    return np.asarray(0.5 * (outcome - eta) ** 2)


def information_weights(eta: FloatArray, family: str) -> FloatArray:
    """How much each row weighs in the information at a linear predictor: a model that isolates patients gives few weight."""
    if family == "logistic":
        risk = sigmoid(eta)
        return np.asarray(risk * (1 - risk))
    return np.ones_like(eta)


def ordinary_of(eta: FloatArray, y: FloatArray, family: str, mask: Mask = 1.0) -> FloatArray | None:
    """To how many patients of ordinary weight these rows add up (see ``Out``); None where all weigh the same."""
    if family != "logistic":
        return None
    return ordinary_patients(information_weights(eta, family) * mask, y, mask)


def rests_on(
    x: FloatArray, y: FloatArray, models: tuple[FloatArray, ...], family: str, mask: Mask = 1.0
) -> dict[str, Any]:
    """What training states (see ``Out``): the least at any of these models, (p,) or one a site (S, p).

    Where training has led is looked at like where it began: how fast it moves is the call's to choose, by scale and drift.
    """
    etas = [(x @ model[..., None])[..., 0] for model in models]
    ordinary = [ordinary_of(eta, y, family, mask) for eta in etas]
    return {
        "effective_patients": np.min(
            [effective_patients(information_weights(eta, family) * mask) for eta in etas], axis=0
        ),
        "ordinary_patients": None if ordinary[0] is None else np.min(np.array(ordinary), axis=0),
    }


def penalty_weights(p: int, l2: float) -> FloatArray:
    """l2 for every coefficient but the intercept, (p,)."""
    return np.asarray(l2 * (np.arange(p) > 0), dtype=np.float64)


def descend(
    site: Site, model: FloatArray, centre: FloatArray, scale: FloatArray, drift: FloatArray | float = 0.0
) -> tuple[FloatArray, int]:
    """``local_epochs`` passes of mini-batch gradient descent from ``model`` (p,); returns the model and steps taken.

    Settings: rate, batch, local_epochs, l2 (per patient: the penalty is (l2 / 2) x sum of squares on the mean loss), family.
    drift (p,) is added to each gradient (SCAFFOLD's correction).
    """
    settings = site.settings
    x, y = standardised(site, centre, scale)
    ridge = penalty_weights(len(model), settings["l2"])
    weights, steps = model.copy(), 0
    for block in site.blocks(settings["batch"], settings["local_epochs"]):
        residual = mean_response(x[block] @ weights, settings["family"]) - y[block]
        weights = weights - settings["rate"] * (residual @ x[block] / len(residual) + ridge * weights + drift)
        steps += 1
    return weights, steps


def descend_stacked(
    sites: Sites, model: FloatArray, centre: FloatArray, scale: FloatArray, drift: Any = 0.0
) -> tuple[FloatArray, NDArray[np.int64]]:
    """The same for S sites at once: models (S, p) and steps (S,). drift: (S, p) or 0."""
    settings = sites.settings
    x, y = standardised_stack(sites, centre, scale)
    ridge = penalty_weights(len(model), settings["l2"])
    weights = np.repeat(model[None], len(x), 0)
    steps = np.zeros(len(x), np.int64)
    for block in sites.blocks(settings["batch"], settings["local_epochs"]):
        part, mask = x[:, block], sites.mask[:, block]
        eta = (part @ weights[..., None])[..., 0]
        residual = (mean_response(eta, settings["family"]) - y[:, block]) * mask
        count = mask.sum(1)
        busy = count > 0
        steps += busy
        gradient = (residual[:, None] @ part)[:, 0] / np.maximum(count, 1)[:, None] + ridge * weights + drift
        weights = weights - settings["rate"] * gradient * busy[:, None]
    return weights, steps
