"""A coordinator that bends single fields of its messages: what it may ask, of whom, about which rows, and in which order.

Each test is an attack that once found something; it has to find nothing, and to be told why.
"""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import synthetic_study
from differencing_attacks import Consortium, Coordinator, effect_study, patients
from secure_faults import OPEN, Proxy, Silence, engine_of, run, study_of
from what_is_seen import store_of

from medfed.data.table import StudyTable
from medfed.errors import FederationError
from medfed.federation import gate, openings
from medfed.federation.admission import COUNTED_TOO_FINELY, OWN_INPUTS
from medfed.federation.approval import approve
from medfed.federation.call import Own
from medfed.federation.ledger import open_store
from medfed.federation.opening import NOT_COUNTED, show, without_carries
from medfed.federation.packages import find_step, step_name
from medfed.federation.policy import Policy
from medfed.federation.ring import decode, encode
from medfed.federation.secure import OTHER_KEEP
from medfed.federation.secure_site import OTHER_TABLE
from medfed.federation.step import Step
from medfed.federation.units import UNITS, Layout
from medfed.methods.newton import logistic_terms
from medfed.methods.scaffold import corrected_training
from medfed.methods.standardise import moments
from medfed.methods.treatment_effect import arm_by_outcome, arm_by_outcome_here
from medfed.study import study_from_dict

SITES = ("a", "b", "c", "d")


def group_of(folder: Path, sizes: tuple[int, ...] = (300, 300, 300, 300)) -> Consortium:
    columns = {
        site: patients(np.random.default_rng(at), size)
        for at, (site, size) in enumerate(zip(SITES, sizes, strict=True))
    }
    return Consortium(folder, SITES, columns, random.Random(1))


class Asking(Coordinator):
    """Each site may be asked with an ``Own`` of its own, and opening may be claimed of another part."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.own: dict[str, Own] = {}
        self.claimed: dict[str, Any] = {}

    def _ask(self, call: Any, own: Any) -> Any:
        if call.step != UNITS:
            own = {site: replace(self.own.get(site, mine), message=mine.message) for site, mine in own.items()}
            if call.phase == "open":
                call = replace(call, **self.claimed)
        return super()._ask(call, own)

    def _length(self, call: Any, purpose: str, roster: Any) -> int:
        if call.step == UNITS:
            return super()._length(call, purpose, roster)
        return sum(math.prod(shape) for shape in self._coded(find_step(call.step)).values())

    def _coded(self, step: Step) -> dict[str, tuple[int, ...]]:
        """Shapes as they are coded for the ring, in one limb or two."""
        most = {"rows_at_most": self.study.rows_at_most, "sites_at_most": self.study.sites_at_most}
        limbs = {name: kind.limbs(**most) for name, kind in step.releases.items()}
        return {n: shape if limbs[n] == 1 else (*shape, 2) for n, shape in self._shapes(step).items()}

    def counted(self) -> bytes:
        """The signed count of units over all sites, as a sum shows it."""
        units = self.opened(self.call(UNITS, SITES), SITES, "count", b"")
        assert units is not None, self.refusals
        return show({"units": units.count})


def test_a_count_over_one_roster_does_not_stand_for_another_that_was_not_counted(tmp_path: Path) -> None:
    """A site that has read a signed count before reads it again where the roster is another."""
    c, step, fewer = Coordinator(group_of(tmp_path), effect_study(SITES)), step_name(arm_by_outcome), SITES[:3]
    units = c.opened(c.call(UNITS, SITES), SITES, "count", b"")
    assert units is not None
    shown = show({"units": units.count})
    assert c.opened(c.call(step, SITES), SITES, "count", shown), c.refusals
    assert c.opened(c.call(step, fewer), fewer, "count", shown) is None
    assert NOT_COUNTED in c.refusals


def test_one_site_is_not_asked_something_else(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    c = Asking(group, effect_study(SITES))
    p = len(c.study.design.columns)
    inputs = {"centre": np.zeros(p), "scale": np.ones(p)}
    shown = c.counted()
    c.own = {site: Own(each={"beta": np.full(p, float(site == "d"))}) for site in SITES}
    call = c.call(step_name(logistic_terms), SITES, inputs=inputs)
    assert c.opened(call, SITES, "sum", shown) is None
    assert OWN_INPUTS in c.refusals
    group.close()


def test_one_site_does_not_read_another_keep(tmp_path: Path) -> None:
    """Two totals of one question, of which one site's part rests on another control variate: their difference is that site's."""
    group = group_of(tmp_path)
    for columns in group.columns.values():
        del columns["arm"]
    method = {"use": "medfed:medfed.methods.scaffold.Scaffold", "settings": {"rounds": 2, "batch": 8}}
    c = Asking(group, synthetic_study(list(SITES), features=1, method=method))
    shown = c.counted()
    inputs = {"model": np.zeros(2), "control": np.zeros(2), "centre": np.zeros(2), "scale": np.ones(2)}
    first = c.call(step_name(corrected_training), SITES, inputs=inputs, run="main")
    assert c.opened(first, SITES, "sum", shown) is not None, c.refusals
    c.own = {site: Own(kept=first.key) for site in SITES[:-1]}
    second = c.call(step_name(corrected_training), SITES, inputs=inputs, run="main", round=2)
    assert c.opened(second, SITES, "sum", shown) is None
    group.close()


def test_a_site_that_missed_a_keep_is_left_out_by_name(tmp_path: Path) -> None:
    method = {"use": "medfed:medfed.methods.scaffold.Scaffold", "settings": {"rounds": 4, "batch": 8}}
    study = study_of(method=method)
    policy = {site: OPEN.model_copy(update={"site_terms_visible": site == "c"}) for site in SITES}
    engine, _ = engine_of(tmp_path / "s", study, policy=policy)
    proxy = Proxy(engine, Silence({"c"}, "seal", units=False, skip=2, times=1))
    assert run(tmp_path / "c", proxy, study)["sites"] == ["a", "b", "d"]
    stored = store_of(tmp_path / "c")
    assert OTHER_KEEP.encode() in stored


def test_a_site_may_ask_to_be_hidden_among_more(tmp_path: Path) -> None:
    """Of three sites two that conspire with the coordinator see the third; who fears that asks for more."""
    study = study_of(["a", "b", "c", "d", "e"])
    policy = {site: OPEN.model_copy(update={"fewest_sites": 5 if site == "a" else 3}) for site in study.sites.invited}
    rows = [60] * 5
    engine, _ = engine_of(tmp_path / "s", study, rows, policy=policy)
    assert run(tmp_path / "c", engine, study)["sites"] == list(study.sites.invited)
    engine, _ = engine_of(tmp_path / "four" / "s", study, rows, policy=policy)
    with pytest.raises(FederationError, match="a refused: the total would be over fewer sites"):
        run(tmp_path / "four" / "c", Proxy(engine, Silence({"e"}, "seal", units=False)), study)


def test_two_limbs_do_not_tell_how_many_numbers_are_negative() -> None:
    study = study_of()
    most = {"rows_at_most": study.rows_at_most, "sites_at_most": study.sites_at_most}
    assert logistic_terms.releases["score"].limbs(**most) == 2  # type: ignore[union-attr]
    small = {name: np.full((4, 2), -1e-6) if kind.limbs(**most) == 2 else np.zeros(4)
             for name, kind in logistic_terms.releases.items()}  # type: ignore[union-attr]  # fmt: skip
    coded = {name: encode(np.full(4, -1e-6), 2) for name in small if small[name].ndim == 2}
    coded |= {name: encode(np.zeros(4), 1) for name in small if small[name].ndim == 1}
    highs = set()
    for site in range(20):
        moved = without_carries(coded, logistic_terms, study, 20, f"{site}".encode())
        assert (decode(moved["score"], 2) == decode(coded["score"], 2)).all()
        highs |= set(moved["score"][:, 0].tolist())
    assert set(coded["score"][:, 0].tolist()) == {-1}
    assert len(highs) > 70
    total = sum(without_carries(coded, logistic_terms, study, 20, bytes([n]))["score"] for n in range(20))
    assert (decode(total, 2) == decode(20 * coded["score"], 2)).all()


def test_a_patient_of_many_rows_is_one_patient_in_a_cell() -> None:
    """Twelve visits of one patient are no cell of twelve, in plain and in a count of units."""
    study = effect_study(SITES)
    columns = patients(np.random.default_rng(0), 400)
    columns["event"][:] = np.where(columns["arm"] == "treated", "no", columns["event"])
    columns["arm"][:12], columns["event"][:12] = "treated", "yes"
    who = np.arange(400, dtype=np.uint64)
    for visits, refused in ((who, False), (np.where(who < 12, 0, who).astype(np.uint64), True)):
        table = StudyTable.from_columns(study, columns, pseudonyms=visits)
        whole = table.on("all")
        reason = gate.judge_rows(whole, whole, study, Policy(), "plain", ())
        assert reason == (gate.SMALL_CELL if refused else None)
        layout = Layout(study, 10)
        atoms = np.zeros(400, np.int64)
        words = layout.words(
            layout.count(whole, atoms), layout.varied(whole, atoms), lot=2, passing=True, showing=True, secret=b"1"
        )
        assert layout.read(words).refuses("train", 10, 10) == reason


def test_a_total_is_opened_of_the_part_that_was_sealed(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    study = synthetic_study(
        list(SITES), features=1, parts={"kind": "folds", "folds": 2}, evaluation={"design": "cross_validation"}
    )
    for columns in group.columns.values():
        del columns["arm"]
    c = Asking(group, study)
    shown = c.counted()
    first = c.opened(c.call(step_name(moments), SITES, part="train:0"), SITES, "sum", shown)
    assert first is not None, c.refusals
    c.claimed = {"part": "train:1"}
    assert c.opened(c.call(step_name(moments), SITES, part="train:0"), SITES, "sum", shown) is None
    assert c.refusals
    group.close()


def test_a_listed_figure_does_not_make_terms_visible(tmp_path: Path) -> None:
    """A site that gave one figure of itself is still not left out of a total beside one with it."""
    group = group_of(tmp_path)
    c = Coordinator(group, effect_study(SITES))
    assert c.total(moments, SITES) is not None
    assert c.alone("d", arm_by_outcome_here) is not None
    assert c.total(moments, SITES) is not None, "all sites hear that a figure was seen"
    assert c.total(moments, SITES[:-1]) is None
    assert c.refusals[-1] == openings.GIVES_AWAY
    group.close()


def test_plain_answers_between_two_messages_of_a_count(tmp_path: Path) -> None:
    group = group_of(tmp_path, (300, 300, 300, 3))
    secure = Coordinator(group, effect_study(SITES))
    plain = Coordinator(group, effect_study(SITES, name="plain", privacy={"sums": "plain", "minimum_cell": 10}))
    parts: dict[str, Any] = {}

    original = secure._ask

    def ask(call: Any, own: Any) -> Any:
        answers = original(call, own)
        if call.step == UNITS and call.phase == "open" and not parts:
            for site in SITES[:-1]:
                parts[site] = plain.alone(site, moments)
        return answers

    secure._ask = ask
    total = secure.total(moments, SITES)
    assert total is None or None in parts.values()
    group.close()


def test_the_stricter_minimum_counts_in_the_count_itself(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    c = Coordinator(group, effect_study(SITES, privacy={"sums": "strongest", "minimum_cell": 1}))
    units = c.opened(c.call(UNITS, SITES), SITES, "count", b"")
    assert units is None
    assert c.refusals == [COUNTED_TOO_FINELY] * 4
    group.close()


def test_presence_tells_nothing_but_emptiness(tmp_path: Path) -> None:
    odd = set()
    for seed in range(12):
        group = group_of(tmp_path / str(seed))
        c = Coordinator(group, effect_study(SITES, seed=seed))
        units = c.opened(c.call(UNITS, SITES), SITES, "count", b"")
        size = (len(units.count.totals) - 2) // 2
        present = units.count.totals[size : 2 * size]
        odd |= set((present[present != 0] % 2).tolist())
        group.close()
    assert odd == {0, 1}


def test_rich_secure_then_poor_plain(tmp_path: Path) -> None:
    """Sites that do not pass for the secure study pass for a poorer one in plain."""
    sizes = (300, 300, 300, 3)
    group = group_of(tmp_path, sizes)
    for site in "bc":
        group.columns[site]["x0"][:] = 0.0
        group.columns[site]["x0"][:4] = 1.0
    secure = Coordinator(group, effect_study(SITES))
    total = secure.total(moments, SITES)
    assert total is not None, secure.refusals
    declared = effect_study(SITES, name="poor", privacy={"sums": "plain", "minimum_cell": 10}).model_dump(mode="json")
    declared["variables"]["x1"] = {**declared["variables"]["x0"]}
    del declared["variables"]["x0"]
    for site in SITES:
        group.columns[site]["x1"] = np.random.default_rng(3).normal(size=len(group.columns[site]["x0"]))

    plain = Coordinator(group, study_from_dict(declared))
    parts = [plain.alone(site, moments) for site in SITES[:-1]]
    assert None in parts
    group.close()


def test_a_number_of_two_values_is_a_code(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for site in SITES:
        group.columns[site]["x0"] = np.ones(300)
        group.columns[site]["x0"][:1] = 2.0
    c = Coordinator(group, effect_study(SITES))
    assert c.total(moments, SITES) is None
    assert gate.SMALL_CELL in c.refusals
    group.close()


def test_what_was_sealed_over_an_older_table_is_not_opened_over_the_new_one(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    study = effect_study(SITES)
    c = Coordinator(group, study)
    call = c.call(step_name(moments), SITES)
    c._ask(call, {site: Own() for site in SITES})
    group.close()
    group.engines.clear()
    # All sites build their tables again, with other patients, and approve them.
    rng = np.random.default_rng(9)
    for site in SITES:
        group.columns[site] = {
            name: np.concatenate([old, new])
            for (name, old), new in zip(group.columns[site].items(), patients(rng, 200).values(), strict=True)
        }
    c = Asking(group, study)
    engine = c.engine
    db = open_store(tmp_path / "sites.db", "process")
    for site in SITES:
        access, given = engine.doors[0].sites[site], engine.doors[0].standing_approval(site)
        approve(
            db, site=site, study=study, steps=given.steps, packages=given.packages, table_version=access.table.version,
            until=given.until, key=access.key, at="2026-01-01", roster=given.roster, most_calls=10**6,
        )  # fmt: skip
    db.close()
    assert c.total(moments, SITES) is not None, c.refusals
    assert c.opened(call, SITES, "sum", c.counted()) is None
    assert OTHER_TABLE in c.refusals
    group.close()


def test_two_studies_at_once_are_judged_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one study's step runs, another one is answered about a cohort with three patients fewer."""
    group = group_of(tmp_path)
    one = Coordinator(group, effect_study(SITES))
    other = Coordinator(group, effect_study(SITES, name="second"), {"a": 3})
    execution, others = one.engine.doors[0].execution, []
    run = execution.run

    def seals(coordinator: Coordinator) -> bool:
        return bool(coordinator._ask(coordinator.call(step_name(moments), SITES), {"a": Own()}))

    def slow(*arguments: Any) -> Any:
        if not others:
            others.append(seals(other))
        return run(*arguments)

    monkeypatch.setattr(execution, "run", slow)
    mine = seals(one)
    assert others == [True]
    assert not mine
    assert gate.SMALL_DIFFERENCE in one.refusals
    group.close()


@pytest.mark.parametrize("larger_first", [False, True])
@pytest.mark.parametrize("sums", ["plain", "strongest"])
def test_cohorts_that_differ_by_a_group_with_a_small_cell(tmp_path: Path, larger_first: bool, sums: str) -> None:
    """Twenty patients of one site, one of them with the event, are in one cohort only; at the other sites both are the same."""
    group = group_of(tmp_path)
    group.columns["a"]["event"][:20] = "no"
    group.columns["a"]["event"][:1] = "yes"
    privacy = {"sums": sums, "minimum_cell": 10}
    studies = [
        (effect_study(SITES, name="few", privacy=privacy), {"a": 20}),
        (effect_study(SITES, privacy=privacy), {}),
    ]
    first, second = [Coordinator(group, *each) for each in (reversed(studies) if larger_first else studies)]

    def asked(c: Coordinator) -> Any:
        return c.alone("a", arm_by_outcome) if sums == "plain" else c.total(arm_by_outcome, SITES)

    assert asked(first) is not None
    assert asked(second) is None
    assert second.refusals == [gate.SMALL_DIFFERENCE]
    group.close()
