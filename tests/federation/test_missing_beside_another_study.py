"""A site is missing in a new study, and the other sites remember totals with it: the run says who, waits, and goes on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_study, synthetic_tables
from secure_faults import OPEN, SITES, Proxy, Silence, engine_of, run, stage_of, study_of

from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.federation.call import Answer, Failure
from medfed.federation.packages import find_method
from medfed.federation.runner import Runner
from medfed.federation.secure_sentences import gone, missing_from, not_without
from medfed.language import translator
from medfed.study import Study


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


EVERYONE = dict(zip("abcdx", (120, 90, 70, 60, 50), strict=True))


def engine_over(folder: Path, study: Study) -> Embedded:
    """The sites that a study invites, out of five that keep their tables, keys and ledgers over all studies."""
    every = synthetic_study(list(EVERYONE))
    tables, keys = synthetic_tables(every, list(EVERYONE.values())), fixed_keys(list(EVERYONE))
    invited = study.sites.invited
    return what_if(
        folder, {site: tables[site] for site in invited}, study, [find_method(study)], policy=OPEN,
        keys={site: keys[site] for site in invited},
    )[0]  # fmt: skip


def test_a_set_that_some_signed_and_others_refused_does_not_bind_the_question(tmp_path: Path) -> None:
    """a knows no earlier total and signs the set without c; b and d refuse it, since it shows a beside that of b, d and x.

    Before, the run asked for that set for ever, also after c was back, after `abandon` and in a new run.
    """
    first, second = synthetic_study(list("bdx"), name="first"), synthetic_study(list("abcd"), name="second")
    run(tmp_path / "c", engine_over(tmp_path / "s", first), first, name="first")
    engine = engine_over(tmp_path / "s", second)
    proxy = Proxy(engine, Silence({"c"}, "KeyList", units=True))
    for _ in range(2):
        with pytest.raises(FederationError, match="c is missing .c unreachable: no conn.* give away .* ask again"):
            run(tmp_path / "c", proxy, second, name="second")
    signed = [
        site
        for call, site, own, answer in proxy.heard
        if stage_of(call, own) == "Survivors" and isinstance(answer, Answer)
    ]
    assert set(signed) == {"a"}
    result = run(tmp_path / "c", engine, second, name="second")
    assert result["sites"] == list("abcd")
    wanted = run(tmp_path / "fresh", engine_over(tmp_path / "others", second), second)
    assert (np.asarray(result["coefficients"]) == np.asarray(wanted["coefficients"])).all()


def test_where_no_site_is_missing_and_the_total_is_never_signed_the_way_out_is_said(tmp_path: Path) -> None:
    first, second = synthetic_study(list("bcd"), name="first"), synthetic_study(list("abcd"), name="second")
    run(tmp_path / "c", engine_over(tmp_path / "s", first), first, name="first")
    engine = engine_over(tmp_path / "s", second)
    for _ in range(2):
        with pytest.raises(FederationError) as told:
            run(tmp_path / "c", engine, second, name="second")
        said = str(told.value)
        assert "no site is missing, and b, c, d sign no total over these sites" in said
        assert "a study that invites at least three sites more or fewer" in said
        assert translator("zh")(said).startswith("count_units：没有机构缺席")
        runner = Runner(tmp_path / "c", engine, second, durability="process")
        runner.abandon("second")
        runner.close()


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
