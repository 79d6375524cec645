"""A site's messages that the protocol does not allow: refused, not counted, the culprit named where it can be."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from interrupted_sum import BAD, LENGTH, Sum
from secure_rounds import add_up, consortium, count_over, plain_total, random_words

from medfed.canonical import pack
from medfed.errors import PrivacyError
from medfed.federation.keys import public_hex
from medfed.privacy import Roster, sealing, site_side
from medfed.privacy.checks import signed
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.messages import (
    Masked,
    as_bytes,
    read_message,
    write_message,
)


def test_keys_of_small_order_are_refused_by_the_coordinator() -> None:
    case = Sum("keys")
    for zero in (bytes(32), (1).to_bytes(32, "little")):
        case.refuses(
            case.resigned(case.reply(), mask_key=as_bytes(zero)), "a key of site 'site001' is a point of small order"
        )
        case = Sum("keys")


def test_keys_signed_by_another_are_refused() -> None:
    case = Sum("keys")
    forged = signed(case.reply(), case.group.keys["site002"])
    case.refuses(forged, "keys under the name of site 'site001' are not signed by its key")


def test_a_message_under_another_name_is_refused() -> None:
    case = Sum("keys")
    case.refuses(case.reply("site002"), "site 'site001' sent a message under the name of 'site002'")


def test_a_duplicated_sender_is_refused_and_its_first_message_stands() -> None:
    case = Sum("masked words")
    first = case.reply()
    case.coordinator.receive(BAD, first)
    second = case.resigned(first, values=first.values + 1)
    with pytest.raises(PrivacyError, match="site 'site001' sent masked words twice; the first stands"):
        case.coordinator.receive(BAD, second)
    for site in case.group.roster.sites:
        if site != BAD:
            case.coordinator.receive(site, case.reply(site))
    case.coordinator.advance()
    case.go("a signature of the count")
    assert (case.coordinator.total == plain_total(case.values, case.group.roster.sites)).all()


@pytest.mark.parametrize("stage", ["keys", "shares", "masked words", "shares to open the sum"])
@pytest.mark.parametrize("change", [dict(attempt=1), dict(round=2), dict(question="x"), dict(run="other")])
def test_what_is_replayed_from_another_sum_is_refused(stage: str, change: dict[str, Any]) -> None:
    case, other = Sum(stage), Sum("keys")
    other.context = other.group.context(LENGTH, **change)
    other.coordinator = CoordinatorSide(other.context, other.group.roster)
    other.sides = other.group.sides(other.context)
    other.go(stage)
    case.refuses(other.reply(), "a message of site 'site001' belongs to another sum, round or attempt")


def test_a_site_whose_roster_has_another_key_of_some_site_is_told_that_rosters_differ() -> None:
    """It was told as a replay only, which sent nobody to look at the rosters."""
    case, theirs = Sum("keys"), consortium(5)
    stranger = public_hex(next(iter(consortium(3, seed=1).keys.values())))
    keys = {site: public_hex(key) for site, key in theirs.keys.items()} | {"site004": stranger}
    theirs = replace(theirs, roster=Roster.of(keys))
    side = theirs.sides(theirs.context(LENGTH), [BAD])[BAD]
    case.refuses(
        side.answer(None, case.values[BAD]),
        "rosters of the sites and the coordinator differ: compare their names and keys",
    )


@pytest.mark.parametrize(
    "stage, field, cut, match",
    [
        ("keys", "mask_key", slice(31), "the bytes of the mask key"),
        ("keys", "signature", slice(63), "the signature"),
        ("shares", "ciphertexts", slice(3), "the encrypted shares"),
        ("shares", "commitments", slice(4), "the commitments"),
        ("masked words", "values", slice(4), "the masked words"),
        ("shares to open the sum", "shares", slice(4), "the shares"),
    ],
)
def test_the_wrong_length_is_refused(stage: str, field: str, cut: slice, match: str) -> None:
    case = Sum(stage)
    reply = case.reply()
    short = getattr(reply, field)[cut]
    changed = replace(reply, signature=short) if field == "signature" else case.resigned(reply, **{field: short})
    case.refuses(changed, f"{match} of site 'site001' ha(s|ve) shape")


def test_longer_masked_words_are_refused_too() -> None:
    case = Sum("masked words")
    reply = case.reply()
    case.refuses(case.resigned(reply, values=np.append(reply.values, 7)), "the masked words of site 'site001'")


def test_words_of_another_type_are_refused() -> None:
    case = Sum("masked words")
    reply = case.reply()
    case.refuses(case.resigned(reply, values=reply.values.astype(np.float64)), "the masked words of site 'site001'")


def test_a_message_out_of_turn_is_refused() -> None:
    case = Sum("shares")
    keys = case.sides[BAD].advertise()
    case.refuses(keys, "site 'site001' sent public keys while sealed shares were asked for")


def test_a_site_that_dropped_may_not_come_back_later() -> None:
    case = Sum("shares")
    late = case.reply()
    case.go("masked words", drops={BAD: "shares"})
    with pytest.raises(PrivacyError, match="sent sealed shares while masked words were asked for"):
        case.coordinator.receive(BAD, late)


def test_a_share_given_back_wrong_names_the_holder() -> None:
    case = Sum("shares to open the sum")
    reply = case.reply()
    shares = reply.shares.copy()
    shares[3, 20] ^= 1
    case.refuses(
        case.resigned(reply, shares=shares),
        "'site001' gave back a share of 'site003' that is not the one it acknowledged",
    )


def test_shares_for_another_survivor_set_are_refused() -> None:
    case = Sum("shares to open the sum")
    case.refuses(case.resigned(case.reply(), survivors="0" * 64), "'site001' gave shares for another survivor set")


def test_a_signature_over_another_survivor_set_is_refused() -> None:
    case = Sum("a signature of the survivors")
    case.refuses(case.resigned(case.reply(), survivors="0" * 64), "'site001' has signed another survivor set")


def test_shares_dealt_over_another_key_list_are_refused() -> None:
    case = Sum("shares")
    case.refuses(case.resigned(case.reply(), listed="0" * 64), "'site001' dealt shares over another key list")


def test_masks_with_other_neighbours_are_refused() -> None:
    case = Sum("masked words")
    case.refuses(case.resigned(case.reply(), dealers="0" * 64), "masked with other neighbours than those who dealt")


def test_an_acknowledgement_of_other_shares_is_refused() -> None:
    case = Sum("masked words")
    case.refuses(case.resigned(case.reply(), acknowledged="0" * 64), "acknowledges other shares than were dealt to it")


def test_an_inconsistent_share_names_its_dealer_at_the_holder() -> None:
    """The dealer commits to one share and encrypts another: the holder sees it before it masks anything."""
    case = Sum("shares")
    case.sides[BAD] = mutant(case, BAD, site_side, "seal_pair", lambda *a: sealing.seal_pair(*a[:5], bytes(132)))
    case.go("masked words")
    with pytest.raises(
        PrivacyError, match="a share that site 'site001' dealt to 'site000' is not the one it comm"
    ) as no:
        case.reply("site000")
    assert no.value.culprits == (BAD,)
    assert not any(isinstance(message, Masked) for message in case.group.heard)


@pytest.mark.parametrize("dropped", [False, True])
def test_shares_of_no_one_secret_name_their_dealer_when_the_sum_is_opened(dropped: bool) -> None:
    """The dealer commits to random shares: each holder's is the one committed to, but together they open nothing."""
    case = Sum("shares")
    draw = iter(range(1, 10**6))

    def random_shares(secret: bytes, holders: int, threshold: int, random: Any) -> list[bytes]:
        return [next(draw).to_bytes(66, "big") for _ in range(holders)]

    case.sides[BAD] = mutant(case, BAD, site_side, "split", random_shares)
    with pytest.raises(PrivacyError, match="site 'site001' dealt gives? another secret than it published") as refused:
        case.go("nothing", drops={BAD: "masked words"} if dropped else None)
    assert refused.value.culprits == (BAD,)


def mutant(case: Sum, site: str, module: Any, name: str, function: Callable[..., Any]) -> Any:
    """A site with its own keys that cheats in one function."""
    side = case.sides[site]
    honest = side.answer

    def cheat(request: Any, *rest: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, function)
            return honest(request, *rest)

    side.answer = cheat  # type: ignore[method-assign]
    return side


# -- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 40,
        pack({"message": "Password", "site": "a"}),
        pack({"message": "Keys", "site": "a"}),
        pack({"site": "a"}),
        pack({"message": "Survivors", "context": 5, "sites": ["a"]}),
        pack({"message": "Survivors", "context": "c", "sites": "a"}),
        pack({"message": "Survivors", "context": "c", "sites": ["a", 5]}),
        pack({"message": ["Survivors"], "context": "c", "sites": ["a"]}),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(PrivacyError, match="message"):
        read_message(data)


def test_every_message_reads_back_as_it_was_written() -> None:
    group = consortium(4)
    add_up(group, random_words(group.roster.sites, 3))
    group.heard.append(count_over(group))
    kinds = {type(message).__name__ for message in group.heard}
    assert len(kinds) == 12
    for message in group.heard:
        assert write_message(read_message(write_message(message))) == write_message(message)
