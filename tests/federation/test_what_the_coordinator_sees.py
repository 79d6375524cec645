"""The coordinator's captured traffic and store hold no site's terms; with all of it nobody recovers a planted value."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from secure_faults import ROWS, SITES, Proxy, engine_of, run, study_of
from what_is_seen import sealed_words, store_of, terms_seen, traffic_of

sys.path.insert(0, str(Path(__file__).parents[1] / "privacy"))

from coordinator_attacks import Notebook

from medfed.federation.call import Answer
from medfed.federation.packages import find_step
from medfed.federation.units import UNITS
from medfed.privacy import Context, Roster, coordinator_side, counting, read_message
from medfed.privacy.messages import KeyList, Masked
from medfed.privacy.site_side import SiteSide


@dataclass
class Heard:
    """What the attack code of the privacy layer reads: every message, and the roster."""

    heard: list[Any]
    roster: Roster


@dataclass
class Captured:
    folder: Path
    proxy: Proxy
    store: Path

    @property
    def messages(self) -> list[Any]:
        found = []
        for call, _, own, answer in self.proxy.heard:
            if call.phase == "open":
                found += [read_message(own.message)] if own.message else []
                found += [read_message(bytes(answer.data))] if isinstance(answer, Answer) else []
        return found


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    folder = tmp_path_factory.mktemp("seen")
    study = study_of()
    engine, _ = engine_of(folder / "s", study)
    proxy = Proxy(engine)
    run(folder / "c", proxy, study)
    return Captured(folder, proxy, folder / "s" / "sites.db")


def test_no_number_of_a_site_stands_in_traffic_or_store(captured: Captured) -> None:
    stores = dict.fromkeys(SITES, captured.store)
    assert min(len(sealed_words(captured.store, site)) for site in SITES) > 50, "there is something to be found"
    data = traffic_of(captured.proxy) + store_of(captured.folder / "c")
    assert len(data) > 100_000
    assert terms_seen(data, stores) == {}


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """In plain every site's terms stand in the traffic."""
    study = study_of(privacy={"sums": "plain", "minimum_cell": 10})
    engine, _ = engine_of(tmp_path / "s", study)
    proxy = Proxy(engine)
    run(tmp_path / "c", proxy, study)
    found = terms_seen(traffic_of(proxy), dict.fromkeys(("a", "b", "c"), tmp_path / "s" / "sites.db"))
    assert set(found) == {"a", "b", "c"}
    assert min(map(len, found.values())) > 50


# -- a planted value ----------------------------------------------------------------------------------------------------


def attacks(captured: Captured, target: str) -> list[np.ndarray]:
    """All rows of words that come of what the coordinator has: as sent, with every mask off whose seed came up, combined."""
    messages = captured.messages
    found: list[np.ndarray] = []
    roster = Roster.of(dict(captured.proxy.roster))
    group = Heard(messages, roster)
    for named in dict.fromkeys(message.context for message in messages if isinstance(message, KeyList)):
        masked = {m.site: m.values for m in messages if isinstance(m, Masked) and m.context == named}
        if target not in masked:
            continue
        found.append(masked[target])
        context = _context(captured, named)
        notebook = Notebook(group, context)  # type: ignore[arg-type]
        found.append(notebook.strip(target))
        rest = sum((notebook.strip(site) for site in masked if site != target), np.zeros_like(masked[target]))
        total = sum((notebook.strip(site) for site in masked), np.zeros_like(masked[target]))
        found.append(total - rest)
    return found


def _context(captured: Captured, named: str) -> Context:
    """The context with this digest, which every coordinator knows."""
    from medfed.federation.opening import context_of

    study, roster = captured.proxy.engine.doors[0].study, Roster.of(dict(captured.proxy.roster))
    for call, _, _, answer in captured.proxy.heard:
        if (
            call.phase == "open"
            and isinstance(answer, Answer)
            and isinstance(m := read_message(bytes(answer.data)), Masked)
        ):
            context = context_of(call, study, roster, len(m.values))
            if context.digest == named:
                return context
    raise AssertionError("no such context")


def planted(captured: Captured, target: str) -> np.ndarray:
    """The words that the target masked last of a sum: what is to be kept from the coordinator."""
    door = captured.proxy.engine.doors[0]
    call = [call for call, _, _, _ in captured.proxy.heard if call.phase == "open" and call.step != UNITS][-1]
    _, answer = door.store.sealed(call.key, [target])[target]
    assert isinstance(answer, Answer)
    return door.openings._in_words(target, call, find_step(call.step), answer.values)


@pytest.mark.parametrize("target", ["a", "d"])
def test_an_attacker_with_all_of_it_does_not_recover_a_planted_value(captured: Captured, target: str) -> None:
    wanted = planted(captured, target)
    tried = attacks(captured, target)
    assert len(tried) >= 20
    assert not any(len(words) == len(wanted) and (words == wanted).any() for words in tried)


@pytest.mark.parametrize("skipped", ["all masks", "pairwise masks"])
def test_without_masks_the_same_attacker_recovers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: str
) -> None:
    masks = SiteSide._masks
    keep = {"all masks": 0, "pairwise masks": 1}[skipped]
    monkeypatch.setattr(SiteSide, "_masks", lambda self, peers: masks(self, peers)[:keep])
    if not keep:
        for module in (counting, coordinator_side):
            monkeypatch.setattr(module, "take_masks_off", lambda *arguments, **named: None)
    study = study_of()
    engine, _ = engine_of(tmp_path / "s", study)
    proxy = Proxy(engine)
    run(tmp_path / "c", proxy, study)
    mutant = Captured(tmp_path, proxy, tmp_path / "s" / "sites.db")
    wanted = planted(mutant, "d")
    assert any(len(words) == len(wanted) and (words == wanted).all() for words in attacks(mutant, "d"))


def test_there_are_three_patients_to_protect() -> None:
    assert ROWS[-1] == 3
