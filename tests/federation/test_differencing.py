"""Differencing fails: an attacker over 1,000 random pairs of questions finds no count under the minimum.

Every rule that stands in its way is switched off in turn, and the attacks that it is for then succeed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from differencing_attacks import ATTACKS, Coordinator, consortium, effect_study, patients, revealed

from medfed.federation import gate, openings
from medfed.federation.openings import Openings
from medfed.federation.shown_counts import CountsShown
from medfed.federation.units import Units
from medfed.methods.standardise import moments

PAIRS = 1000


def pairs(folder: Path, attack: str, count: int, start: int = 0) -> int:
    """How many of so many random pairs reveal a count under the minimum."""
    return sum(revealed(folder / f"{attack} {seed}", seed, attack)[0] for seed in range(start, start + count))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_finds_a_count_under_the_minimum(tmp_path: Path, attack: str) -> None:
    assert pairs(tmp_path, attack, 3) == 0


@pytest.mark.slow
def test_a_thousand_pairs_reveal_nothing(tmp_path: Path) -> None:
    names = list(ATTACKS)
    found = [
        names[seed % len(names)]
        for seed in range(PAIRS)
        if revealed(tmp_path / str(seed), 1000 + seed, names[seed % len(names)])[0]
    ]
    assert found == []


def no_rule(*arguments: Any, **named: Any) -> None:
    return None


def any_set(self: Openings, site: str, key: str, sites: tuple[str, ...], record: Any) -> tuple[str, ...]:
    return sites


# Rule -> what is put in its place, and the attacks that it stands in the way of.
MUTANTS: dict[str, tuple[list[tuple[Any, str, Any]], list[str]]] = {
    "roster rule": (
        [(Openings, "_judge", no_rule)],
        ["leave out by roster", "leave out by dropping", "near-equal steps", "second study", "plain, then secure"],
    ),
    "one set a call": ([(Openings, "remember", any_set)], ["retry"]),
    "cohort rule": ([(gate, "_differs_by_few", lambda *a: False)], ["cohort of one site", "cohort in total"]),
    "figures of one site": ([(Openings, "refuses_own", no_rule)], ["figures beside a total", "secure, then plain"]),
    "count of units": ([(Units, "refuses", no_rule), (Units, "patients", lambda *a: 10**6)], ["small total"]),
    "count of entries": ([(CountsShown, "has_small", lambda *a: False)], []),
}  # fmt: skip


def switch_off(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    for where, name, instead in MUTANTS[rule][0]:
        monkeypatch.setattr(where, name, instead)


@pytest.mark.parametrize(
    ("rule", "attack"), [(rule, attack) for rule, (_, attacks) in MUTANTS.items() for attack in attacks]
)
def test_a_rule_that_is_switched_off_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, attack: str
) -> None:
    switch_off(monkeypatch, rule)
    assert pairs(tmp_path, attack, 3) == 3


@pytest.mark.parametrize("kept", ["count of units", "count of entries"])
def test_either_count_alone_holds_a_small_cell_and_neither_lets_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    for rule in ("count of units", "count of entries"):
        if rule != kept:
            switch_off(monkeypatch, rule)
    assert pairs(tmp_path / "kept", "small cell", 3) == 0
    switch_off(monkeypatch, kept)
    assert pairs(tmp_path / "none", "small cell", 3) == 3


def test_the_rules_are_named(tmp_path: Path) -> None:
    """Each attack meets the rule that is for it, not some other refusal."""
    expected = {
        "leave out by roster": openings.GIVES_AWAY,
        "leave out by dropping": openings.GIVES_AWAY,
        "retry": openings.GIVES_AWAY,
        "near-equal steps": openings.GIVES_AWAY,
        "second study": openings.GIVES_AWAY,
        "plain, then secure": openings.GIVES_AWAY,
        "cohort of one site": gate.SMALL_DIFFERENCE,
        "cohort in total": gate.SMALL_DIFFERENCE,
        "figures beside a total": openings.SHOWS_OTHERS,
        "secure, then plain": openings.SHOWS_OTHERS,
        "small total": gate.FEW_PATIENTS,
        "small cell": gate.SMALL_CELL,
    }
    assert set(expected) == set(ATTACKS)
    for attack, reason in expected.items():
        assert reason in revealed(tmp_path / attack, 0, attack)[1], attack


def test_cohorts_that_add_up_are_one_total(tmp_path: Path) -> None:
    """Everybody less every other patient less the rest: nobody is over the same patients twice, and one site is left over."""
    group = consortium(tmp_path, 3, "cohorts that add up")
    for site in group.sites:
        group.columns[site] = patients(np.random.default_rng(len(site)), 300)
    halves = {"even": slice(0, None, 2), "odd": slice(1, None, 2), "all": slice(None)}
    coordinators = {
        name: Coordinator(group, effect_study(group.sites, name=name), None, every) for name, every in halves.items()
    }
    assert coordinators["all"].total(moments, group.sites) is not None
    assert coordinators["even"].total(moments, group.sites) is not None
    assert coordinators["odd"].total(moments, group.sites[:-1]) is None
    assert openings.GIVES_AWAY in coordinators["odd"].refusals
    assert coordinators["odd"].total(moments, group.sites) is not None, "over the same sites nothing is given away"
    group.close()


def test_another_cohort_may_be_summed_over_other_sites(tmp_path: Path) -> None:
    """Half of the patients tell nothing of the others: the rule is about patients, not about names."""
    group = consortium(tmp_path, 3, "another cohort")
    for site in group.sites:
        group.columns[site] = patients(np.random.default_rng(len(site)), 300)
    first = Coordinator(group, effect_study(group.sites, name="even"), None, slice(0, None, 2))
    second = Coordinator(group, effect_study(group.sites, name="odd"), None, slice(1, None, 2))
    assert first.total(moments, group.sites) is not None
    assert second.total(moments, group.sites[:-1]) is not None
    group.close()
