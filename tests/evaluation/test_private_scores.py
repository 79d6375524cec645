"""Figures from a noisy table of scores: right without noise, and with intervals that hold noise and sampling both."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from medfed.evaluation.private_scores import EDGES, noisy_area, noisy_summary
from medfed.methods.newton import sigmoid


def drawn(rng: np.random.Generator, patients: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear predictor, outcome and the table (groups, 2) of a calibrated model."""
    predictor = rng.normal(-0.3, 1.3, patients)
    outcome = (rng.random(patients) < sigmoid(predictor)).astype(float)
    group = np.searchsorted(EDGES, predictor, side="right") - 1
    table = np.zeros((len(EDGES), 2))
    np.add.at(table, (group, outcome.astype(int)), 1.0)
    return group, outcome, table


def test_without_noise_the_figures_are_those_of_grouped_scores() -> None:
    group, outcome, table = drawn(np.random.default_rng(1))
    found = noisy_summary(table, 0.0)
    assert found["area"] == pytest.approx(roc_auc_score(outcome, group), abs=1e-12)
    assert (found["rows"], found["events"]) == (600.0, outcome.sum())
    middle = np.append((EDGES[:-1] + EDGES[1:]) / 2, EDGES[-1] + 1.0)
    middle[0] = EDGES[1] - 1.0
    risk = sigmoid(middle)[group]
    assert found["brier"] == pytest.approx(brier_score_loss(outcome, risk), abs=1e-12)
    assert found["observed_to_expected"] == pytest.approx(outcome.sum() / risk.sum())
    assert found["accuracy"] == pytest.approx(((risk > 0.5) == (outcome > 0.5)).mean())


@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_the_stated_variance_is_that_of_repeated_studies(deviation: float) -> None:
    """1,500 studies: the SD of the area is within 10 % of the stated one (chance alone: 2 %), the area nearly unbiased."""
    rng = np.random.default_rng(7)
    areas, stated, ratios, inside = [], [], [], 0
    for _ in range(1500):
        _, _, table = drawn(rng)
        noisy = table + rng.normal(0, deviation, table.shape) if deviation else table
        area, variance = noisy_area(noisy[:, 0], noisy[:, 1], deviation)
        assert area is not None
        assert variance is not None
        areas.append(area)
        stated.append(variance)
        found = noisy_summary(noisy, deviation)
        ratios.append(found["observed_to_expected"])
        inside += found["oe_low"] <= 1.0 <= found["oe_high"]
    assert np.std(areas) == pytest.approx(np.sqrt(np.mean(stated)), rel=0.1)
    exact = np.mean([noisy_area(t[:, 0], t[:, 1], 0.0)[0] for _, _, t in (drawn(rng) for _ in range(400))])  # type: ignore[misc]
    assert np.mean(areas) == pytest.approx(exact, abs=0.01)
    assert inside / 1500 > 0.94, "the interval of observed over expected is not too narrow"


def test_a_table_of_noise_alone_tells_no_area() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        noise = rng.normal(0, 5.0, (len(EDGES), 2))
        assert noisy_area(noise[:, 0], noise[:, 1], 5.0) == (None, None)
        assert noisy_summary(noise, 5.0)["area"] is None
