"""What a coordinator can't learn from all that it ever saw, and that each protection is what keeps it from that."""

import random
from collections.abc import Callable
from typing import Any

import coordinator_attacks as attacks
import numpy as np
import pytest
from secure_rounds import Consortium, consortium, random_words

from medfed.privacy import checks, site_side
from medfed.privacy.agreement import self_mask_seed
from medfed.privacy.context import Context
from medfed.privacy.messages import write_message
from medfed.privacy.neighbours import Graph
from medfed.privacy.site_side import SiteSide

TARGET = "site003"
PLANTED = np.array([52, 307, 27, 295, 2**40 + 7, -(2**40) * 3], np.int64)
Attack = Callable[..., np.ndarray | None]


def planted(sites: int = 6, site_class: type[SiteSide] = SiteSide) -> tuple[Consortium, dict[str, np.ndarray]]:
    group = consortium(sites)
    group.site_class = site_class
    values = random_words(group.roster.sites, len(PLANTED))
    # So that no other site's words happen to be the planted ones, and totals wrap round.
    return group, values | {TARGET: PLANTED}


def succeeds(attack: Attack, group: Consortium, values: dict[str, np.ndarray], **options: Any) -> bool:
    """Whether the attack finds the planted words, or even one of them."""
    found = attack(group, values, TARGET, **options)
    return found is not None and bool((found == PLANTED).any())


@pytest.mark.parametrize(
    "attack",
    [
        attacks.listen, attacks.claim_drop, attacks.ask_both, attacks.split_view, attacks.two_totals,
        attacks.same_masks_again, attacks.impersonate, attacks.other_question,
    ],
)  # fmt: skip
def test_an_attack_does_not_recover_the_planted_words(attack: Attack) -> None:
    group, values = planted()
    assert not succeeds(attack, group, values)
    captured = b"".join(write_message(message) for message in group.heard)
    assert not any(word.tobytes() in captured for word in PLANTED)


# -- mutants: one protection off, and the same attack gets through ---------------------------------------------------


class NoSelfMask(SiteSide):
    def _masks(self, peers: list[str]) -> list[tuple[bytes, int]]:
        own = self_mask_seed(self._own["seed"], self.context, self.site)
        return [(seed, sign) for seed, sign in super()._masks(peers) if seed != own]


def test_without_self_masks_a_claimed_drop_recovers_the_words() -> None:
    assert succeeds(attacks.claim_drop, *planted(site_class=NoSelfMask))


class GivesBoth(SiteSide):
    """Answers for another survivor set again: neither the stage nor the ledger remembers the first."""

    def _once(self, stage: str, asked: str, make: Any) -> Any:
        secrets = self._own, self._held, self._channels, self._own_pair
        if stage in ("survivors", "unmasking"):
            self._replies.pop(stage, None)
        reply = super()._once(stage, asked, make)
        if stage == "unmasking":
            self._own, self._held, self._channels, self._own_pair = secrets
        return reply

    def _agree(self, sites: tuple[str, ...]) -> str:
        self._remember = {}.setdefault
        return super()._agree(sites)


def test_a_site_that_gives_both_kinds_of_share_gives_its_peer_away() -> None:
    assert succeeds(attacks.ask_both, *planted(site_class=GivesBoth))


class ForgetsTheSet(SiteSide):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"remember": lambda key, sites: sites})


def test_a_site_that_forgets_the_set_it_signed_is_given_away_by_two_totals() -> None:
    assert succeeds(attacks.two_totals, *planted(site_class=ForgetsTheSet))


class SameSecrets(SiteSide):
    """Draws the same secrets for every call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"draw": random.Random(args[0]).randbytes})


def test_secrets_that_are_used_twice_give_the_words_away() -> None:
    assert succeeds(attacks.same_masks_again, *planted(site_class=SameSecrets))


def test_without_signed_keys_the_coordinator_plays_all_other_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "is_signed", lambda *args: True)
    assert succeeds(attacks.impersonate, *planted())


def test_without_the_question_in_the_context_the_others_can_be_asked_for_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = property(lambda self: "the same for every question")
    monkeypatch.setattr(Context, "digest", blind)
    assert succeeds(attacks.other_question, *planted())


def test_without_a_quorum_of_signatures_a_split_view_gets_both_kinds_of_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two protections hold here; with one of them left the attack still fails."""
    no_quorum = {"check_quorum": lambda *args: None}
    helpers = ("site000", "site001")
    with monkeypatch.context() as patch:
        for name, function in no_quorum.items():
            patch.setattr(site_side, name, function)
        group, values = planted()
        assert not succeeds(attacks.split_view, group, values, helpers=helpers)
        patch.setattr(Graph, "threshold", property(lambda self: len(self.order) // 2), raising=False)
        patch.setattr(Graph, "__init__", low_threshold)
        group, values = planted()
        assert succeeds(attacks.split_view, group, values, helpers=helpers)


def low_threshold(self: Graph, order: tuple[str, ...], neighbours: int, threshold: int) -> None:
    object.__setattr__(self, "order", order)
    object.__setattr__(self, "neighbours", neighbours)


def test_three_helpers_of_six_sites_do_not_help_and_four_do() -> None:
    """The stated limit: 2t - n helpers, t the threshold. Four of six know the sum of the last two anyway."""
    helpers = ("site000", "site001", "site002", "site004")
    group, values = planted()
    assert not succeeds(attacks.split_view, group, values, helpers=helpers[:3])
    group, values = planted()
    assert succeeds(attacks.split_view, group, values, helpers=helpers)
