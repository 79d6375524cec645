"""Judging a model under an epsilon: a noisy table of scores by outcome, charged like everything else that leaves.

Sites count events and others in fixed groups of the linear predictor, one patient one unit in one cell. Area, calibration
in the large and errors follow from the table alone, with intervals that hold the noise beside the chance of sampling.
A site's own figures can't be given here: they would each be charged.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.steps import LARGEST_PREDICTOR, TAKES, predictors
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Sum, step
from medfed.methods.newton import sigmoid

FloatArray = NDArray[np.float64]
Z95 = 1.959963984540054

# Lower edges of the groups of the linear predictor, the same in every study, so that they cost nothing. 0 is among
# them: a risk of one half, where a prediction changes sides.
EDGES = np.array([-LARGEST_PREDICTOR, -4.0, -3.0, -2.25, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.25, 3.0, 4.0])
MOST_GROUPS = len(EDGES)


@step(
    reads=("test", "valid"),
    takes={**TAKES, "edges": Input("bins", limit=LARGEST_PREDICTOR)},
    releases={"scored": Sum("bins,2", unit_bound=1.0)},
)
def scored_counts(site: Site, *, models: FloatArray, centres: FloatArray, scales: FloatArray, edges: FloatArray) -> Out:
    """Patients without and with the event in each group of predicted risk, with noise."""
    predictor, outcome = predictors(site, models, centres, scales)
    group = np.clip(np.searchsorted(edges, predictor, side="right") - 1, 0, len(edges) - 1)
    cells = np.zeros((len(outcome), len(edges), 2))
    cells[np.arange(len(outcome)), group, (outcome > 0.5).astype(np.int64)] = 1.0
    return Out({"scored": cells})


def judge_privately(federation: Federation, fits: Mapping[str, FloatArray]) -> dict[str, Any]:
    """What a report shows of a model's noisy table: overall figures, no site's own."""
    total = federation.on("test").sum(scored_counts, edges=EDGES, **fits)
    return {
        "overall": noisy_summary(total["scored"], total.noise.get("scored", 0.0)),
        "sites_counted": list(total.sites),
        "line": {},
        "by_site": {},
        "not_shown": {},
    }


def noisy_summary(scored: FloatArray, deviation: float) -> dict[str, Any]:
    """Figures from counts (groups, 2: without, with the event) whose entries carry noise of this deviation.

    The risk of a group is that of its middle. Brier score, log-loss and accuracy are those of the group's risk.
    """
    others, events = np.asarray(scored, dtype=np.float64).T
    e, o = float(events.sum()), float(others.sum())
    rows = max(e + o, 1.0)
    middle = np.append((EDGES[:-1] + EDGES[1:]) / 2, EDGES[-1] + 1.0)
    middle[0] = EDGES[1] - 1.0
    risk = sigmoid(middle)
    expected = float(risk @ (events + others))
    area, variance = noisy_area(others, events, deviation)
    found: dict[str, Any] = {
        "rows": rows,
        "events": max(e, 0.0),
        "area": area,
        "area_variance": variance,
        "brier": float((events @ (1 - risk) ** 2 + others @ risk**2) / rows),
        "log_loss": float((events @ -np.log(risk) + others @ -np.log1p(-risk)) / rows),
        "accuracy": float((events[middle > 0].sum() + others[middle < 0].sum()) / rows),
        "observed_to_expected": e / expected if expected > 0 and e > 0 else None,
        "expected": expected,
    }
    if e > 0 and expected > 0:
        # log(observed / expected): Poisson chance of the events (Altman), and the noise of both sums, by the delta method.
        gradient = np.stack([-risk / expected, 1 / e - risk / expected])
        spread = np.sqrt(1 / e + deviation**2 * float((gradient**2).sum()))
        found["oe_low"], found["oe_high"] = (float(e / expected * np.exp(sign * Z95 * spread)) for sign in (-1, 1))
    return found


def noisy_area(others: FloatArray, events: FloatArray, deviation: float) -> tuple[float | None, float | None]:
    """Area under the curve of grouped scores, and its variance: DeLong's for sampling, and the noise's by the delta method.

    None where the noise could have made up all events or all others.
    """
    e, o = float(events.sum()), float(others.sum())
    beyond = 2 * deviation * np.sqrt(len(events))
    if e <= beyond or o <= beyond or min(e, o) < 1:
        return None, None
    below = np.cumsum(others) - others / 2
    above = e - np.cumsum(events) + events / 2
    area = float(events @ below) / (e * o)
    slope_events, slope_others = (below / o - area) / e, (above / e - area) / o
    of_noise = deviation**2 * float(slope_events @ slope_events + slope_others @ slope_others)
    held_events, held_others = np.maximum(events, 0.0), np.maximum(others, 0.0)
    of_sampling = (
        float(held_events @ (below / o - area) ** 2) / e**2 + float(held_others @ (above / e - area) ** 2) / o**2
    )
    return float(np.clip(area, 0.0, 1.0)), of_noise + of_sampling
