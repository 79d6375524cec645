"""Heart disease under an epsilon, by the recipe of benchmarks/private_heart.py; skipped without the data (MEDFED_DATA)."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from private_heart import EPSILONS, TARGETS, heart_tables, measure

DATA = Path(os.environ.get("MEDFED_DATA", ""))
needs_data = pytest.mark.skipif(
    not DATA.name or not list(DATA.rglob("processed.cleveland.data")), reason="MEDFED_DATA does not hold the files"
)


@needs_data
def test_noise_takes_little_of_the_auc_of_four_hospitals(tmp_path: Path) -> None:
    """Median loss over 8 splits, noise drawn anew: full noise at every hospital, and shares of it."""
    study, tables = heart_tables(DATA, tmp_path / "made")
    areas = measure(study, tables, 8)
    exact = np.array(areas[None, "exact"])
    assert 0.82 < np.median(exact) < 0.92
    for epsilon in EPSILONS:
        for kind in ("plain", "shares"):
            # Twice the target of 100 draws: 8 differ more by chance.
            assert np.median(exact - np.array(areas[epsilon, kind])) < 2 * TARGETS[epsilon], (epsilon, kind)
