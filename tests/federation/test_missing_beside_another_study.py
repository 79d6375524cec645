"""A site is missing in a new study, and the other sites remember totals with it: the run says who, waits, and goes on."""

from pathlib import Path

import numpy as np
import pytest
from secure_faults import SITES, Proxy, Silence, engine_of, run, study_of

from medfed.errors import FederationError


@pytest.mark.parametrize("stage", ["seal", "keys", "KeyList", "Delivery"])
def test_a_question_goes_on_when_the_missing_site_is_back(tmp_path: Path, stage: str) -> None:
    """Nobody signed the smaller set, so it binds nobody: before, the question could never be answered again."""
    first, second = study_of(), study_of(name="second")
    engine, _ = engine_of(tmp_path / "s", first)
    wanted = run(tmp_path / "c", engine, first)
    engine, _ = engine_of(tmp_path / "s", second)
    proxy = Proxy(engine, Silence({"c"}, stage, units=stage != "seal"))
    for _ in range(2):
        with pytest.raises(FederationError, match="c is missing .c unreachable: no conn.* give away .* ask again"):
            run(tmp_path / "c", proxy, second, name="second")
    result = run(tmp_path / "c", engine, second, name="second")
    assert result["sites"] == SITES
    assert (np.asarray(result["coefficients"]) == np.asarray(wanted["coefficients"])).all()
