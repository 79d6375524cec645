"""Noise spread over sites under secure sums: whole whoever drops out, drawn once, over the sites that each site approved.

The audit asks a run over real doors. By chance it fails once in 10^9; every mutant fails it.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from private_study import FEATURES, ROWS_A_PATIENT, expected_gradient, private_engine, private_study
from scipy import stats
from secure_faults import GONE, Proxy, Silence, run, stage_of

from medfed.engines.embedded import Embedded
from medfed.errors import FederationError, PolicyViolation, StudyError
from medfed.federation import execution, private
from medfed.federation.budget import Charge, charged_events, over_all
from medfed.federation.call import Answer, Call, Failure
from medfed.federation.federation import Federation
from medfed.federation.ledger import verify_ledger
from medfed.federation.opening import decoded, ring_of, words_of
from medfed.federation.packages import step_name
from medfed.federation.runner import Runner
from medfed.federation.secure_site import ATTEMPT_VOID
from medfed.federation.step import Step
from medfed.federation.units import UNITS
from medfed.methods.private_glm import clipped_gradient, patient_count
from medfed.privacy import noise, read_message
from medfed.privacy.messages import Keys, Masked
from medfed.privacy.plan import Planned
from medfed.study import Study

ERROR_RATE = 1e-9
SITES = ["a", "b", "c", "d"]
ROWS = [90, 60, 120, 3]
CALLS = 60
P = FEATURES + 1


@dataclass(frozen=True)
class Gradients:
    """Asks for the same noisy gradient again and again; what came is the result."""

    calls: int = CALLS

    steps: tuple[Step, ...] = (clipped_gradient, patient_count)

    def private_calls(self, study: Study) -> Mapping[Step, Planned]:
        return {clipped_gradient: Planned(self.calls), patient_count: Planned(1)}

    def start(self, study: Study) -> dict[str, Any]:
        return {"gradients": np.zeros((0, len(study.design.columns))), "counted": [], "noise": [], "patients": 0.0}

    def advance(self, federation: Federation, state: Mapping[str, Any]) -> dict[str, Any]:
        patients = state["patients"]
        if not len(state["gradients"]):
            patients = float(federation.sum(patient_count)["patients"])
        total = federation.sum(clipped_gradient, model=np.zeros(state["gradients"].shape[1]))
        return {
            "gradients": np.concatenate([state["gradients"], total["gradient"][None]]),
            "counted": [*state["counted"], list(total.sites)],
            "noise": [*state["noise"], total.noise["gradient"]],
            "patients": patients,
        }

    def done(self, state: Mapping[str, Any]) -> bool:
        return len(state["gradients"]) >= self.calls

    def result(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return state


def study_of(epsilon: float = 50.0, sites: list[str] = SITES, **changes: Any) -> Study:
    if minimum := changes.pop("sites_minimum", None):
        changes["sites"] = {"invited": sites, "minimum": minimum}
    return private_study(sites, epsilon, FEATURES, **changes)


def engine_of(folder: Path, study: Study, rows: list[int] = ROWS, **options: Any) -> Embedded:
    options = {"rows_a_patient": ROWS_A_PATIENT, "spread": 10.0} | options
    return private_engine(folder, study, rows, FEATURES, 1e6, **options)


def sigma_of(study: Study) -> float:
    return private.charges_of(study, Gradients())[step_name(clipped_gradient)].event.noise


def audit(folder: Path, fault: Any = None) -> dict[str, Any]:
    """Whether the noise of a run's totals has the variance that the sites in them owe, and their mean is the exact sum."""
    study = study_of()
    engine = engine_of(folder / "s", study)
    result = run(folder / "c", Proxy(engine, fault), study, Gradients())
    sigma = sigma_of(study)
    exact = {site: expected_gradient(engine.doors[0].sites[site].table) for site in SITES}
    away = np.array(
        [
            (gradient - sum(exact[site] for site in counted)) / (sigma * math.sqrt(len(counted) / 3))
            for gradient, counted in zip(result["gradients"], result["counted"], strict=True)
        ]
    )
    spread = away - away.mean(0)
    low, high = stats.chi2.ppf([ERROR_RATE / 2, 1 - ERROR_RATE / 2], (CALLS - 1) * P)
    most = stats.norm.isf(ERROR_RATE / (2 * P)) / math.sqrt(CALLS)
    return {
        "law": bool(low <= float((spread**2).sum()) <= high),
        "clipping": bool(np.abs(away.mean(0)).max() <= most),
        "counted": {len(counted) for counted in result["counted"]},
        "stated": {round(one / sigma, 9) for one in result["noise"]},
    }


def some_of(stage: str, step: str = "clipped_gradient") -> Callable[[Call, str, str], Any]:
    """One of the sites, another in each round, says nothing at a stage."""

    def fault(call: Call, site: str, at: str) -> Any:
        lost = SITES[call.round % 4]
        return GONE if (site, at) == (lost, stage) and call.step.endswith(step) else None

    return fault


def whole(counted: int) -> dict[str, Any]:
    return {
        "law": True, "clipping": True, "counted": {counted}, "stated": {round(math.sqrt(counted / 3), 9)}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "counted"),
    [(None, 4), ("seal", 3), ("keys", 3), ("KeyList", 3), ("Delivery", 3), ("Survivors", 4), ("SignedSurvivors", 4)],
)
def test_the_noise_of_a_total_is_whole_whoever_drops_out_and_whenever(
    tmp_path: Path, stage: str | None, counted: int
) -> None:
    assert audit(tmp_path, some_of(stage) if stage else None) == whole(counted)


def _nothing(scale: int, count: int, *rest: Any) -> np.ndarray:
    return np.zeros(count, np.int64)


def _twice(scale: int, count: int, *rest: Any) -> np.ndarray:
    return noise.discrete_gaussian(scale, count) + noise.discrete_gaussian(scale, count)


def _wide(terms: np.ndarray, bound: float, bits: int) -> np.ndarray:
    return noise.clip_to_grid(terms, 1.5 * bound, bits)


def _of_rows(rows: np.ndarray, unit: np.ndarray, units: int) -> np.ndarray:
    return rows


@pytest.mark.parametrize(
    ("module", "name", "mutant", "caught_by"),
    [
        (private, "discrete_gaussian", _nothing, "law"),
        (private, "discrete_gaussian", _twice, "law"),
        (private, "clip_to_grid", _wide, "clipping"),
        (private, "add_by_unit", _of_rows, "clipping"),
        # All four sites, not the three that may be left; and as one site of several hundred would.
        (execution, "noise_shares", lambda protection, roster: roster, "law"),
        (execution, "noise_shares", lambda protection, roster: 134, "law"),
        (execution, "noise_shares", lambda protection, roster: 1, "law"),
    ],
    ids=["no noise", "noise twice", "cut too wide", "cut by row", "a share too small", "a tiny share", "full noise"],
)
def test_a_mutant_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, mutant: Any, caught_by: str
) -> None:
    monkeypatch.setattr(module, name, mutant)
    assert not audit(tmp_path, some_of("Delivery"))[caught_by]


def test_below_the_threshold_nothing_is_opened(tmp_path: Path) -> None:
    study = study_of()
    for stage in ("seal", "Delivery", "SignedSurvivors"):
        engine = engine_of(tmp_path / stage / "s", study)
        proxy = Proxy(engine, Silence({"b", "d"}, stage, units=False))
        with pytest.raises(FederationError, match="needs 3|is not open|could not be opened"):
            run(tmp_path / stage / "c", proxy, study, Gradients())
        shares = [m for call, site, own, m in proxy.heard if stage_of(call, own) == "SignedSurvivors"]
        assert sum(isinstance(answer, Answer) for answer in shares) < 3, "too few shares to take a mask off"


# -- nothing exact beside it -------------------------------------------------------------------------------------------


def heard_of(proxy: Proxy, kind: type) -> list[Any]:
    replies = [answer for call, _, _, answer in proxy.heard if call.phase == "open" and isinstance(answer, Answer)]
    return [m for m in (read_message(bytes(answer.data)) for answer in replies) if isinstance(m, kind)]


def test_no_unit_is_counted_and_no_table_named_and_each_number_is_one_word(tmp_path: Path) -> None:
    study = study_of()
    proxy = Proxy(engine_of(tmp_path / "s", study))
    result = run(tmp_path / "c", proxy, study, Gradients(3))
    assert result["counted"] == [SITES] * 3, "a site of one patient is hidden by the noise"
    assert UNITS not in {call.step for call, _, _, _ in proxy.heard}
    assert {call.phase for call, _, _, _ in proxy.heard} == {"seal", "open"}
    assert {call.opening.purpose for call, _, _, _ in proxy.heard if call.opening} == {"noisy"}
    assert {call.opening.shown for call, _, _, _ in proxy.heard if call.opening} == {b""}
    assert {keys.table for keys in heard_of(proxy, Keys)} == {""}
    assert {len(masked.values) for masked in heard_of(proxy, Masked)} == {1, P}
    db = proxy.engine.doors[0].store.db
    assert db.execute("select count(*) from opening").fetchone() == (0,), "no rule for exact sums is fed with it"
    assert db.execute("select count(*), count(distinct sites) from noisy_opening").fetchone() == (4 * 4, 1)


def test_totals_over_any_sites_follow_each_other(tmp_path: Path) -> None:
    """Rosters that differ by one site: refused for exact sums, hidden by the noise here."""
    study = study_of()
    proxy = Proxy(engine_of(tmp_path / "s", study), some_of("seal"))
    result = run(tmp_path / "c", proxy, study, Gradients(8))
    assert len({tuple(counted) for counted in result["counted"]}) == 4
    for site in SITES:
        events = over_all(charged_events(proxy.engine.doors[0].store.db, site))
        assert sum(events.values()) == 9 - 2, "charged where it sealed, and only there"
        verify_ledger(proxy.engine.doors[0].store.db, site)


# -- drawn once --------------------------------------------------------------------------------------------------------


def sealed_sum(engine: Embedded, key: str, sites: list[str], study: Study) -> np.ndarray:
    words = [words_of(engine.doors[0].store.sealed(key, [site])[site][1].values) for site in sites]  # type: ignore[union-attr]
    return decoded(sum(words), clipped_gradient, {"gradient": (P,)}, study)["gradient"]  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["seal", "keys", "Delivery", "Survivors", "SignedSurvivors"])
def test_a_run_that_stops_and_goes_on_opens_what_was_sealed_and_draws_nothing_anew(tmp_path: Path, stage: str) -> None:
    study = study_of()
    engine = engine_of(tmp_path / "s", study)
    silence = Silence({"b", "d"}, stage, units=False, skip=4)
    proxy = Proxy(engine, silence)
    with pytest.raises(FederationError):
        run(tmp_path / "c", proxy, study, Gradients(3))
    db = engine.doors[0].store.db
    before = dict(db.execute("select id, payload from ledger").fetchall())
    again = Proxy(engine)
    result = run(tmp_path / "c", again, study, Gradients(3))
    after = dict(db.execute("select id, payload from ledger").fetchall())
    assert {row: after[row] for row in before} == before
    keys = [
        key for (key,) in db.execute("select key from call where step=? order by round", (step_name(clipped_gradient),))
    ]
    for key, gradient, counted in zip(keys, result["gradients"], result["counted"], strict=True):
        assert (sealed_sum(engine, key, counted, study) == gradient).all()
    for site in SITES:
        assert sum(over_all(charged_events(db, site)).values()) == 4
    sets = db.execute("select key, count(distinct sites) from noisy_opening group by key").fetchall()
    assert {count for _, count in sets} == {1}, "one set a key"


def test_a_set_that_was_agreed_waits_for_its_sites(tmp_path: Path) -> None:
    study = study_of()
    engine = engine_of(tmp_path / "s", study)
    with pytest.raises(FederationError):
        run(
            tmp_path / "c",
            Proxy(engine, Silence({"b", "d"}, "SignedSurvivors", units=False, skip=4)),
            study,
            Gradients(3),
        )
    with pytest.raises(FederationError, match="clipped_gradient: the total was to be opened with d, of whom"):
        run(tmp_path / "c", Proxy(engine, Silence({"d"}, "Delivery", units=False)), study, Gradients(3))
    assert run(tmp_path / "c", engine, study, Gradients(3))["counted"][-1] == SITES


def test_a_site_that_starts_anew_is_waited_for_and_not_left_out(tmp_path: Path) -> None:
    study = study_of()
    left = ["keys", "KeyList", "Delivery", "Survivors", "SignedSurvivors"]

    def fault(call: Call, site: str, stage: str) -> Any:
        if site == "b" and left and stage == left[0] and call.step.endswith("clipped_gradient"):
            left.pop(0)
            return Failure("refused", ATTEMPT_VOID)
        return None

    result = run(tmp_path / "c", Proxy(engine_of(tmp_path / "s", study), fault), study, Gradients(5))
    assert left == []
    assert result["counted"] == [SITES] * 5


def test_no_set_is_fixed_that_the_study_has_too_few_sites_in(tmp_path: Path) -> None:
    """It would stay, and no resume could ever give a total that counts."""
    study = study_of(sites_minimum=4)
    engine = engine_of(tmp_path / "s", study)
    with pytest.raises(FederationError, match="3 of 4 sites are left for the total, the study needs 4 .c unreachable"):
        run(tmp_path / "c", Proxy(engine, Silence({"c"}, "Delivery", units=False, skip=1)), study, Gradients(3))
    assert run(tmp_path / "c", engine, study, Gradients(3))["counted"] == [SITES] * 3


# -- fewer sites asked than named --------------------------------------------------------------------------------------


class ThreeOfThem(Gradients):
    def advance(self, federation: Federation, state: Mapping[str, Any]) -> dict[str, Any]:
        return super().advance(federation.roster(["a", "b", "d"]), state)


def test_a_method_that_asks_fewer_sites_names_them_all_so_that_shares_stay_as_large(tmp_path: Path) -> None:
    study = study_of()
    proxy = Proxy(engine_of(tmp_path / "s", study))
    result = run(tmp_path / "c", proxy, study, ThreeOfThem(2))
    assert result["counted"] == [["a", "b", "d"]] * 2
    assert {call.roster for call, _, _, _ in proxy.heard} == {tuple(SITES)}
    assert {site for _, site, _, _ in proxy.heard} == {"a", "b", "d"}


def test_a_run_over_rosters_that_were_approved_differently_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """The coordinator leaves one of the approved sites off its list."""
    study = study_of()
    engine = engine_of(tmp_path / "s", study)

    class Fewer(Proxy):
        @property
        def roster(self) -> Mapping[str, str]:
            return {site: key for site, key in self.engine.roster.items() if site != "d"}

    with pytest.raises(FederationError, match="approve again with the roster as it is"):
        run(tmp_path / "c", Fewer(engine), study, Gradients(2))
    assert over_all(charged_events(engine.doors[0].store.db, "a")) == {}


def test_a_grid_that_is_too_coarse_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    study = study_of(limits={"rows_per_site": 10**9})
    assert ring_of(clipped_gradient.releases["gradient"], study) == (1, 30)  # type: ignore[arg-type]
    with (
        closing(Runner(tmp_path / "c", engine_of(tmp_path / "s", study), study, durability="process")) as runner,
        pytest.raises(StudyError, match="grid of 2.-30; scale what is released, or lower rows_per_site"),
    ):
        runner.execute(Gradients(1))
    charge = Charge(replace(private.charges_of(study_of(), Gradients())[step_name(clipped_gradient)].event, noise=0.1))
    with pytest.raises(PolicyViolation, match="can't add noise for"):
        private.check_charge(study, clipped_gradient, charge, 3)
