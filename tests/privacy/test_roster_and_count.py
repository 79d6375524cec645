"""Who takes part, and how many patients: nothing is masked before both are signed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from interrupted_sum import BAD, LENGTH, Sum
from secure_rounds import Consortium, consortium, count_over, exchange, plain_total, random_words

from medfed.canonical import digest
from medfed.errors import PrivacyError
from medfed.privacy import neighbours
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.messages import (
    Masked,
    Transcript,
)
from medfed.privacy.roster import Roster, SignedRoster, call_roster, sign_roster
from medfed.privacy.signatures import public_hex, table_word
from medfed.privacy.site_side import SiteSide


def test_an_unsigned_roster_is_refused() -> None:
    roster, officer = consortium(4).roster, Ed25519PrivateKey.generate()
    for signature in ("", "00" * 64, "not hex"):
        with pytest.raises(PrivacyError, match="not signed by the authority"):
            call_roster(SignedRoster(roster.sites, roster.keys, signature), public_hex(officer), roster.sites)


def test_a_roster_signed_by_another_or_changed_afterwards_is_refused() -> None:
    roster, officer = consortium(4).roster, Ed25519PrivateKey.generate()
    directory = sign_roster(roster, officer)
    with pytest.raises(PrivacyError, match="not signed by the authority"):
        call_roster(directory, public_hex(Ed25519PrivateKey.generate()), roster.sites)
    mine = public_hex(Ed25519PrivateKey.generate())
    with pytest.raises(PrivacyError, match="not signed by the authority"):
        call_roster(replace(directory, keys=(mine, *roster.keys[1:])), public_hex(officer), roster.sites)


def test_a_call_to_a_stranger_or_to_two_sites_is_refused() -> None:
    roster, officer = consortium(4).roster, Ed25519PrivateKey.generate()
    directory = sign_roster(roster, officer)
    with pytest.raises(PrivacyError, match="'stranger' is not on the roster"):
        call_roster(directory, public_hex(officer), (*roster.sites[:3], "stranger"))
    with pytest.raises(PrivacyError, match="at least 3 sites"):
        call_roster(directory, public_hex(officer), roster.sites[:2])
    with pytest.raises(PrivacyError, match="names a site twice"):
        call_roster(directory, public_hex(officer), (*roster.sites, roster.sites[0]))


def test_one_key_under_two_names_is_refused() -> None:
    keys = consortium(3).roster.keys
    with pytest.raises(PrivacyError, match="a, b have the same key") as refused:
        Roster.of({"a": keys[0], "b": keys[0], "c": keys[1], "d": keys[2]})
    assert refused.value.culprits == ("a", "b")


def test_a_site_takes_part_only_under_its_own_key_and_roster() -> None:
    group = consortium(3)
    context = group.context(LENGTH)
    with pytest.raises(PrivacyError, match="another key of site 'site000'"):
        SiteSide("site000", group.keys["site001"], context, group.roster, remember={}.setdefault)
    with pytest.raises(PrivacyError, match="another roster"):
        SiteSide("site000", group.keys["site000"], context, consortium(4).roster, remember={}.setdefault)


def sum_after(group: Consortium, count: Any, **options: Any) -> CoordinatorSide:
    context = group.context(LENGTH, purpose="sum")
    values = random_words(group.roster.sites, LENGTH)
    return exchange(group, CoordinatorSide(context, group.roster), group.sides(context, **options), values, count=count)


def test_nothing_is_masked_before_a_count_was_shown() -> None:
    group = consortium(5)
    with pytest.raises(PrivacyError, match="no secure count of units over this roster was shown"):
        sum_after(group, None)
    assert not any(isinstance(message, Masked) for message in group.heard)


def test_a_count_that_is_forged_short_of_signatures_or_of_another_roster_is_refused() -> None:
    group = consortium(5)
    count = count_over(group)
    group.heard.clear()
    for changed, match in (
        (replace(count, totals=count.totals + 1000), "the signature of site 'site000' is not over this"),
        (replace(count, signers=count.signers[:3], signatures=count.signatures[:3]), "has 3 of 5 sites"),
        (replace(count, sites=count.sites[:4], tables=count.tables[:4]), "is not over this"),
        (replace(count, study="6" * 64), "of another study or roster"),
        (count_over(consortium(6)), "of another study or roster"),
        (count_over(consortium(5, seed=1)), "of another study or roster"),
    ):
        with pytest.raises(PrivacyError, match=match):
            sum_after(group, changed)
    assert not any(isinstance(message, Masked) for message in group.heard)


def test_a_table_that_changed_since_the_count_is_refused_and_named() -> None:
    group = consortium(5)
    count = count_over(group)
    context = group.context(LENGTH, purpose="sum")
    values, sides = random_words(group.roster.sites, LENGTH), group.sides(context)
    sides[BAD].table = "rebuilt"
    with pytest.raises(PrivacyError, match="the study table of site 'site001' changed since its units were") as refused:
        exchange(group, CoordinatorSide(context, group.roster), sides, values, count=count)
    assert refused.value.culprits == (BAD,)


def test_a_coordinator_can_not_get_a_count_signed_that_the_sites_did_not_add_up() -> None:
    case = Sum("a signature of the count")
    honest = case.coordinator.requests()["site000"]
    for field, match in (
        ("values", "masked words under the name of site 'site000' are not signed by its key"),
        ("masked_signatures", "under the name of site 'site000'"),
        ("unmasking_signatures", "shares given back under the name of site 'site000'"),
    ):
        changed = getattr(honest, field).copy()
        changed[0, 0] ^= 1
        with pytest.raises(PrivacyError, match=match):
            case.sides["site000"].answer(replace(honest, **{field: changed}))
    with pytest.raises(PrivacyError, match="over other survivors"):
        case.sides["site000"].answer(replace(honest, survivors=honest.survivors[:4]))
    case.go("nothing")
    assert (case.coordinator.count.totals == plain_total(case.values, case.group.roster.sites)).all()


def test_a_sum_is_not_signed_as_if_it_were_a_count() -> None:
    group = consortium(3)
    done = sum_after(group, count_over(group))
    with pytest.raises(PrivacyError, match="there is no signed count"):
        _ = done.count


def test_a_table_word_changes_with_table_and_site_and_is_no_hash_of_the_version() -> None:
    keys = list(consortium(3).keys.values())
    words = {table_word(key, version) for key in keys for version in ("v1", "v2")}
    assert len(words) == 6
    assert table_word(keys[0], "v1") in words
    assert digest("v1") not in words


def test_a_neighbour_graph_s_count_is_signed_too() -> None:
    """Everything that a site checks of a count, with the graph of more than 200 sites made small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "COMPLETE_UP_TO", 5)
        patch.setattr(neighbours, "FEWEST_NEIGHBOURS", 8)
        patch.setattr(neighbours, "MOST_FAILURE", 2.0)
        neighbours.neighbours_needed.cache_clear()
        group = consortium(13)
        count = count_over(group, drops={"site002": "masked words", "site007": "shares"})
        assert count.totals.tolist() == [220]
        whole = count_over(group, ordinal=1)
        values = random_words(group.roster.sites, LENGTH)
        done = sum_after(group, whole)
        assert (done.total == plain_total(values, group.roster.sites)).all()
    neighbours.neighbours_needed.cache_clear()


@pytest.mark.parametrize(
    "sites, keys, match",
    [
        (("b", "a", "c"), None, "names each site once, in order"),
        (("a", "b"), None, "at least 3 sites"),
        (("a", "b/c", "d"), None, "printable text without a slash"),
        (("a", "b\x1f", "c"), None, "printable text without a slash"),
        (("a", "b", "c"), ("k" * 64,) * 3, "the roster's key of site 'a' is not an Ed25519 public key"),
    ],
)
def test_a_roster_that_is_none_is_refused(sites: tuple[str, ...], keys: tuple[str, ...] | None, match: str) -> None:
    with pytest.raises(PrivacyError, match=match):
        Roster(sites, keys or consortium(3).roster.keys[: len(sites)])


@pytest.mark.parametrize("changes", [dict(length=0), dict(attempt=-1), dict(round=-1), dict(purpose="answer")])
def test_a_context_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="a secure sum"):
        consortium(3).context(**{"length": 5} | changes)


def test_a_transcript_of_another_shape_is_refused() -> None:
    case = Sum("a signature of the count")
    honest = case.coordinator.requests()["site000"]
    assert isinstance(honest, Transcript)
    for changes, match in (
        (dict(acknowledged=honest.acknowledged[:4]), "one acknowledgement a site"),
        (dict(shares={**honest.shares, "zz": honest.shares[BAD]}, unmasking_signatures=_six(honest)), "zz, not surviv"),
        (dict(values=honest.values[:, :4]), "masked words of the count have shape"),
        (dict(shares={BAD: honest.shares[BAD]}, unmasking_signatures=honest.unmasking_signatures[1:2]), "1 shares of"),
    ):
        with pytest.raises(PrivacyError, match=match):
            case.sides["site000"].answer(replace(honest, **changes))


def _six(honest: Transcript) -> np.ndarray:
    return np.vstack([honest.unmasking_signatures, honest.unmasking_signatures[:1]])
