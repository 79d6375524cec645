"""Secure sums under the verbs: the same totals as in plain, small sites among them, whatever falls silent on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import synthetic_study
from secure_faults import GONE, OPEN, ROWS, SITES, STAGES, Proxy, Silence, engine_of, run, stage_of, study_of

from medfed.canonical import unpack
from medfed.engines.embedded import Embedded
from medfed.errors import FederationError
from medfed.evaluation.study_run import StudyRun
from medfed.federation.call import Answer, Call
from medfed.federation.ledger import verify_ledger
from medfed.federation.policy import Policy
from medfed.federation.units import UNITS

METHODS = {
    "newton": {"use": "medfed:medfed.methods.newton.Newton", "settings": {}},
    "fedavg": {"use": "medfed:medfed.methods.fedavg.FedAvg", "settings": {"rounds": 5, "batch": 8}},
    "scaffold": {"use": "medfed:medfed.methods.scaffold.Scaffold", "settings": {"rounds": 5, "batch": 8}},
    "sgd": {"use": "medfed:medfed.methods.gradients.FedSGD", "settings": {"rounds": 5}},
}
ANY = Policy(minimum_cell=1, minimum_patients=1, values_per_patient={"sum": 100.0, "count": 100.0, "reply": 100.0})


def of(sums: str, minimum: int = 1) -> dict[str, Any]:
    return {"sums": sums, "minimum_cell": minimum}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_finds_the_same_bits_as_in_plain(tmp_path: Path, method: str) -> None:
    found = []
    for sums in ("plain", "strongest"):
        study = study_of(method=METHODS[method], privacy=of(sums))
        engine, _ = engine_of(tmp_path / sums / "s", study, [64, 41, 23, 16], ANY)
        found.append(run(tmp_path / sums / "c", engine, study))
    assert found[0]["sites"] == found[1]["sites"] == SITES
    for name in ("coefficients", "centre", "scale"):
        assert (np.asarray(found[0][name]) == np.asarray(found[1][name])).all()


def test_a_hospital_of_three_patients_is_counted(tmp_path: Path) -> None:
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    assert engine.protections == ("plain", "secure")
    result = run(tmp_path / "c", engine, study)
    assert result["sites"] == SITES
    assert result["patients"] == sum(ROWS)
    plain = study_of(privacy=of("plain", 10))
    other, _ = engine_of(tmp_path / "plain" / "s", plain)
    assert run(tmp_path / "plain" / "c", other, plain)["sites"] == ["a", "b", "c"], "in plain it is held back"
    for site in SITES:
        verify_ledger(engine.doors[0].store.db, site)


def test_a_study_with_folds_and_its_evaluation_count_all_sites(tmp_path: Path) -> None:
    study = study_of(parts={"kind": "folds", "folds": 2}, evaluation={"design": "cross_validation"})
    method = StudyRun(study)
    engine, _ = engine_of(tmp_path / "s", study, method=method)
    judged = run(tmp_path / "c", engine, study, method)["evaluation"]["judged"]["main"]
    assert judged["sites_counted"] == SITES
    assert judged["overall"]["rows"] == sum(ROWS)
    assert judged["by_site"] == {}


def test_two_sites_are_summed_in_plain(tmp_path: Path) -> None:
    study = synthetic_study(["a", "b"])
    engine, _ = engine_of(tmp_path / "s", study, [120, 90])
    assert engine.protections == ("plain",)
    assert run(tmp_path / "c", engine, study)["sites"] == ["a", "b"]


def test_nothing_of_an_answer_leaves_with_the_seal(tmp_path: Path) -> None:
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    proxy = Proxy(engine)
    run(tmp_path / "c", proxy, study)
    seals = [answer for call, _, _, answer in proxy.heard if call.phase == "seal"]
    assert len(seals) > 20
    assert all(isinstance(answer, Answer) and dict(unpack(answer.data)) == {"sealed": True} for answer in seals)
    assert {call.phase for call, _, _, _ in proxy.heard} == {"seal", "open"}, "nothing is asked in plain"


def test_units_are_counted_once_for_all_sums(tmp_path: Path) -> None:
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    for name in ("one", "two"):
        run(tmp_path / "c", engine, study, name=name)
    db = engine.doors[0].store.db
    counts = db.execute("select count(*) from ledger l join call c on c.id=l.call where c.step=?", (UNITS,)).fetchone()
    assert counts == (len(SITES),)


# -- sites that fall silent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["seal", *STAGES])
def test_a_site_lost_while_units_are_counted(tmp_path: Path, stage: str) -> None:
    """Before the set is fixed the run goes on without it; afterwards its words are in, and the total holds them."""
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    proxy = Proxy(engine, Silence({"c"}, stage, units=True, times=1))
    result = run(tmp_path / "c", proxy, study)
    counted = ["a", "b", "d"] if stage in ("seal", "keys", "KeyList", "Delivery") else SITES
    assert result["sites"] == counted
    rows = dict(zip(SITES, ROWS, strict=True))
    assert result["patients"] == sum(rows[site] for site in counted)


@pytest.mark.parametrize("stage", ["seal", "keys", "KeyList", "Delivery"])
def test_a_site_lost_after_the_count_stops_the_run_which_then_goes_on(tmp_path: Path, stage: str) -> None:
    study = study_of()
    quiet, _ = engine_of(tmp_path / "quiet" / "s", study)
    wanted = run(tmp_path / "quiet" / "c", quiet, study)
    engine, _ = engine_of(tmp_path / "s", study)
    silence = Silence({"c"}, stage, units=False, skip=2)
    with pytest.raises(
        FederationError, match="c took part in the totals so far and is missing now .c unreachable: no conn"
    ):
        run(tmp_path / "c", Proxy(engine, silence), study)
    result = run(tmp_path / "c", engine, study)
    assert result["sites"] == SITES
    assert (np.asarray(result["coefficients"]) == np.asarray(wanted["coefficients"])).all()


@pytest.mark.parametrize("stage", ["Survivors", "SignedSurvivors"])
def test_a_site_lost_after_its_words_are_in_is_counted(tmp_path: Path, stage: str) -> None:
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    result = run(tmp_path / "c", Proxy(engine, Silence({"c"}, stage, units=False, skip=1, times=1)), study)
    assert result["sites"] == SITES
    assert result["patients"] == sum(ROWS)


def test_a_site_whose_policy_lets_its_terms_be_seen_may_be_left_behind(tmp_path: Path) -> None:
    study = study_of()
    policy = {site: OPEN.model_copy(update={"site_terms_visible": site == "c"}) for site in SITES}
    engine, _ = engine_of(tmp_path / "s", study, policy=policy)
    result = run(tmp_path / "c", Proxy(engine, Silence({"c"}, "seal", units=False, skip=3)), study)
    assert result["sites"] == ["a", "b", "d"]


@pytest.mark.parametrize("stage", ["seal", "keys", "Delivery"])
def test_three_lost_at_once_may_be_left_behind(tmp_path: Path, stage: str) -> None:
    sites = [f"s{n:02}" for n in range(10)]
    study = study_of(sites)
    engine, _ = engine_of(tmp_path / "s", study, [30] * 10)
    result = run(tmp_path / "c", Proxy(engine, Silence(set(sites[:3]), stage, units=False, skip=9)), study)
    assert result["sites"] == sites[3:]
    engine, _ = engine_of(tmp_path / "two" / "s", study, [30] * 10)
    with pytest.raises(FederationError, match="s00, s01 took part in the totals"):
        run(tmp_path / "two" / "c", Proxy(engine, Silence(set(sites[:2]), stage, units=False, skip=6)), study)


def test_a_site_that_comes_back_after_a_first_total_without_it_stays_out(tmp_path: Path) -> None:
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    proxy = Proxy(engine, Silence({"c"}, "seal", units=False, times=1))
    seen: list[Any] = []
    assert run(tmp_path / "c", proxy, study)["sites"] == ["a", "b", "d"]
    seen = [site for call, site, _, _ in proxy.heard if call.phase == "open" and site == "c"]
    assert seen == []


def test_a_set_with_fewer_sites_than_the_study_needs_is_not_fixed(tmp_path: Path) -> None:
    """A set that is fixed stays: no resume could give a total that counts."""
    sites = [f"s{n:02}" for n in range(10)]
    study = synthetic_study(sites, sites={"invited": sites, "minimum": 8})
    engine, _ = engine_of(tmp_path / "s", study, [30] * 10)
    with pytest.raises(FederationError, match="7 of 10 sites are left for the total, the study needs 8"):
        run(tmp_path / "c", Proxy(engine, Silence(set(sites[:3]), "Delivery", units=False, skip=9)), study)
    assert run(tmp_path / "c", engine, study)["sites"] == sites


def test_too_few_sites_stop_the_run_by_name(tmp_path: Path) -> None:
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    fault = lambda call, site, stage: GONE if site in ("b", "c") else None  # noqa: E731
    with pytest.raises(FederationError, match="2 of 4 sites answered 'moments', a secure sum needs 3 .*b unreachable"):
        run(tmp_path / "c", Proxy(engine, fault), study)


# -- doors that start anew ----------------------------------------------------------------------------------------------


class Restarts(Proxy):
    """An engine whose doors lose their memory at a stage, as if the site's process had ended; ``times`` times."""

    def __init__(self, build: Any, stage: str, units: bool, times: int) -> None:
        super().__init__(build())
        self.build, self.stage, self.units, self.times = build, stage, units, times

    def exchange(self, call: Call, own: Any, deadline: float | None = None) -> Any:
        stages = {stage_of(call, mine) for mine in own.values()}
        if self.times and stages == {self.stage} and (call.step == UNITS) == self.units:
            self.times -= 1
            for door in self.engine.doors:
                door.store.db.close()
            self.engine = self.build()
        yield from super().exchange(call, own, deadline)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("units", [True, False])
def test_a_door_that_starts_anew_voids_the_attempt_and_a_fresh_one_follows(
    tmp_path: Path, stage: str, units: bool
) -> None:
    study = study_of()
    quiet, _ = engine_of(tmp_path / "quiet" / "s", study)
    wanted = run(tmp_path / "quiet" / "c", quiet, study)

    def build() -> Embedded:
        return engine_of(tmp_path / "s", study)[0]

    engine = Restarts(build, stage, units, 2)
    result = run(tmp_path / "c", engine, study)
    assert (np.asarray(result["coefficients"]) == np.asarray(wanted["coefficients"])).all()
    assert result["sites"] == SITES
    sets = engine.engine.doors[0].store.db.execute(
        "select site, key, count(*) from opening group by 1, 2 having count(*)>1"
    )
    assert sets.fetchall() == []
