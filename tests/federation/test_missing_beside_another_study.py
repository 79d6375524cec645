"""A site is missing in a new study, and the other sites remember totals with it: the run says who, waits, and goes on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from secure_faults import SITES, Proxy, Silence, engine_of, run, study_of

from medfed.errors import FederationError
from medfed.federation.call import Failure
from medfed.federation.secure_sentences import gone, missing_from, not_without
from medfed.language import translator


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


@pytest.mark.parametrize("said", [missing_from, not_without, gone])
def test_who_is_missing_is_said_in_chinese_as_a_whole(said: Callable[..., str]) -> None:
    """Before, only the reason in the middle was translated."""
    text = said(
        "package.module.count_units", {"c", "d"}, {"c": Failure("unreachable", "the site's folder is not here")}
    )
    told = translator("zh")(text)
    assert told.startswith("count_units：")
    assert "c, d" in told
    assert "同一问题" in told
    assert "folder" not in told
