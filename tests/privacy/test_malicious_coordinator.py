"""A coordinator's requests that the protocol does not allow: the site says why, and sends nothing."""

from dataclasses import fields, replace

import numpy as np
import pytest
from interrupted_sum import BAD, LENGTH, Sum
from secure_rounds import plain_total

from medfed.errors import PrivacyError
from medfed.privacy import neighbours, sealing
from medfed.privacy.agreement import private_key, public_bytes
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.messages import (
    Delivery,
    KeyList,
    Shares,
    SignedSurvivors,
    Survivors,
    Unmasking,
    as_bytes,
)


def key_list(case: Sum) -> KeyList:
    request = case.coordinator.requests()["site000"]
    assert isinstance(request, KeyList)
    return request


def with_row(array: np.ndarray, at: int, row: bytes) -> np.ndarray:
    changed = array.copy()
    changed[at] = as_bytes(row)
    return changed


def test_a_forged_key_in_the_list_is_refused_and_named() -> None:
    """The coordinator puts its own mask key under a site's name."""
    case = Sum("shares")
    listed = key_list(case)
    mine = public_bytes(private_key(b"c" * 32))
    for field in ("mask_keys", "channel_keys", "seed_commitments"):
        forged = replace(listed, **{field: with_row(getattr(listed, field), 1, mine)})
        with pytest.raises(PrivacyError, match="keys under the name of site 'site001' are not signed by its key") as no:
            case.sides["site000"].share(forged)
        assert no.value.culprits == (BAD,)
    case.site_refuses(replace(listed, tables=("other", *listed.tables[1:])), "under the name of site 'site000'")


def test_a_small_order_point_in_the_list_is_refused_though_its_site_signed_it() -> None:
    case = Sum("shares")
    listed = key_list(case)
    for field in ("mask_key", "channel_key"):
        own = case.sides[BAD].advertise()
        bad = case.resigned(own, **{field: as_bytes(bytes(32))})
        row = {
            "mask_keys": with_row(listed.mask_keys, 1, bad.mask_key.tobytes()),
            "channel_keys": with_row(listed.channel_keys, 1, bad.channel_key.tobytes()),
            "signatures": with_row(listed.signatures, 1, bad.signature.tobytes()),
        }
        with pytest.raises(PrivacyError, match="a key of site 'site001' is a point of small order"):
            case.sides["site000"].share(replace(listed, **row))
    case.go("nothing")


def rows_without(listed: KeyList, keep: list[int]) -> KeyList:
    changes = {f.name: getattr(listed, f.name)[keep] for f in fields(listed) if f.name.endswith(("keys", "ts", "res"))}
    words = {name: tuple(getattr(listed, name)[at] for at in keep) for name in ("sites", "tables")}
    return replace(listed, **changes | words)


@pytest.mark.parametrize(
    "keep, match",
    [
        ([0, 1, 1, 2, 3, 4], "the key list names 'site001' twice"),
        ([0, 1, 3, 2, 4], "the key list is not in order of names"),
        ([0, 1, 2], "the key list has 3 of 5 sites, at least 4 are needed"),
        ([1, 2, 3, 4], "the key list leaves out site 'site000'"),
    ],
)
def test_a_key_list_with_a_site_twice_out_of_order_or_missing_is_refused(keep: list[int], match: str) -> None:
    case = Sum("shares")
    case.site_refuses(rows_without(key_list(case), keep), match)


def test_a_key_list_with_other_keys_of_the_site_itself_is_refused() -> None:
    """Keys that the site signed in an instance of this attempt that is no more (it was restarted)."""
    case = Sum("shares")
    listed, again = key_list(case), case.group.sides(case.context)["site000"].advertise()
    row = {
        "mask_keys": with_row(listed.mask_keys, 0, again.mask_key.tobytes()),
        "channel_keys": with_row(listed.channel_keys, 0, again.channel_key.tobytes()),
        "seed_commitments": with_row(listed.seed_commitments, 0, again.seed_commitment.tobytes()),
        "signatures": with_row(listed.signatures, 0, again.signature.tobytes()),
    }
    case.site_refuses(replace(listed, **row), "other keys of site 'site000' than it sent in this attempt")


def test_a_second_key_list_is_refused() -> None:
    case = Sum("masked words")
    other = Sum("shares")
    with pytest.raises(PrivacyError, match="sent its sealed shares already, for another request"):
        case.sides["site000"].share(key_list(other))


def test_requests_of_another_sum_are_refused_at_every_stage() -> None:
    for stage in ("shares", "masked words", "a signature of the survivors", "shares to open the sum"):
        case = Sum(stage)
        request = replace(case.coordinator.requests()["site000"], context="0" * 64)
        case.site_refuses(request, "belongs to another sum, round or attempt")


def test_steps_can_not_be_skipped() -> None:
    case, late = Sum("keys"), Sum("shares to open the sum")
    request = late.coordinator.requests()["site000"]
    assert isinstance(request, SignedSurvivors)
    with pytest.raises(PrivacyError, match="skipped a step: this site has not sent its signature of the survivors"):
        case.sides["site000"].unmask(request)
    with pytest.raises(PrivacyError, match="skipped a step: this site has not sent its masked words"):
        case.sides["site000"].sign_survivors(Survivors(case.context.digest, case.group.roster.sites))
    with pytest.raises(PrivacyError, match="skipped a step: this site has not sent its sealed shares"):
        case.sides["site000"].mask(delivery(Sum("masked words")), case.values["site000"])


def delivery(case: Sum) -> Delivery:
    request = case.coordinator.requests()["site000"]
    assert isinstance(request, Delivery)
    return request


def test_shares_changed_on_the_way_are_refused() -> None:
    case = Sum("masked words")
    request = delivery(case)
    ciphertexts = request.ciphertexts.copy()
    ciphertexts[2, 50] ^= 1
    problem = case.site_refuses(
        replace(request, ciphertexts=ciphertexts), "the shares from site 'site003' can't be opened"
    )
    assert problem.culprits == ("site003",)


def test_shares_of_two_dealers_exchanged_are_refused() -> None:
    case = Sum("masked words")
    request = delivery(case)
    case.site_refuses(
        replace(request, ciphertexts=request.ciphertexts[[1, 0, 2, 3]]),
        "the shares from site 'site001' can't be opened",
    )


@pytest.mark.parametrize("field", ["ciphertexts", "commitments"])
def test_a_delivery_of_the_wrong_length_is_refused(field: str) -> None:
    case = Sum("masked words")
    request = delivery(case)
    case.site_refuses(replace(request, **{field: getattr(request, field)[:3]}), "the delivered .* have shape")


def test_a_delivery_from_too_few_dealers_is_refused() -> None:
    case = Sum("masked words")
    request = replace(delivery(case), dealers=case.group.roster.sites[:3])
    case.site_refuses(request, "has 3 of 5 sites, at least 4 are needed")


def test_other_numbers_than_the_sum_has_are_not_masked() -> None:
    case = Sum("masked words")
    with pytest.raises(PrivacyError, match="the sum has 5 words"):
        case.sides["site000"].mask(delivery(case), np.zeros(4, np.int64))
    with pytest.raises(PrivacyError, match="the sum has 5 words"):
        case.sides["site000"].mask(delivery(case), np.zeros(5))


def test_a_second_survivor_set_is_refused_in_the_same_attempt() -> None:
    case = Sum("shares to open the sum")
    fewer = Survivors(case.context.digest, case.group.roster.sites[:4])
    with pytest.raises(PrivacyError, match="sent its signature of the survivors already, for another request"):
        case.sides["site000"].sign_survivors(fewer)
    case.go("nothing")


def test_a_second_survivor_set_is_refused_in_a_later_attempt_of_the_same_call() -> None:
    """A restart in between changes nothing: the set stands in the site's ledger."""
    case = Sum("shares to open the sum")
    later = Sum("keys")
    later.group = case.group
    later.context = case.group.context(LENGTH, attempt=1)
    later.coordinator = CoordinatorSide(later.context, later.group.roster)
    later.sides = later.group.sides(later.context)
    later.go("a signature of the survivors", drops={BAD: "masked words"})
    with pytest.raises(PrivacyError, match="has signed another survivor set for the same call"):
        later.reply("site000")


@pytest.mark.parametrize(
    "keep, match",
    [
        ([0, 1, 2], "the survivor set has 3 of 5 sites, at least 4 are needed"),
        ([0, 1, 1, 2, 3], "the survivor set names 'site001' twice"),
        ([1, 2, 3, 4], "the survivor set leaves out site 'site000'"),
    ],
)
def test_impossible_survivor_sets_are_not_signed(keep: list[int], match: str) -> None:
    case = Sum("a signature of the survivors")
    sites = tuple(case.group.roster.sites[at] for at in keep)
    case.site_refuses(Survivors(case.context.digest, sites), match)
    strange = (*case.group.roster.sites, "zz")
    fresh = Sum("a signature of the survivors")
    fresh.site_refuses(Survivors(fresh.context.digest, strange), "names 'zz', who can't be in it")


def signed_set(case: Sum) -> SignedSurvivors:
    request = case.coordinator.requests()["site000"]
    assert isinstance(request, SignedSurvivors)
    return request


def test_two_survivor_sets_never_open_the_same_call() -> None:
    """Half the sites are told one set, half another: no quorum for either, so no site gives a share of anything."""
    case = Sum("a signature of the survivors")
    whole, fewer = case.group.roster.sites, case.group.roster.sites[:4]
    of_whole = {s: case.sides[s].sign_survivors(Survivors(case.context.digest, whole)) for s in (*whole[2:],)}
    of_fewer = {s: case.sides[s].sign_survivors(Survivors(case.context.digest, fewer)) for s in whole[:2]}
    for sites, signatures in ((whole, of_whole), (fewer, of_fewer)):
        for padded in (signatures, signatures | {s: r for s, r in (of_whole | of_fewer).items()}):
            signers = tuple(sorted(padded))
            claim = SignedSurvivors(
                case.context.digest, sites, signers, np.stack([padded[s].signature for s in signers])
            )
            for site in whole:
                with pytest.raises(PrivacyError, match="at least 4 are needed|is not over this|not the survivors"):
                    case.sides[site].unmask(claim)
    assert not any(isinstance(message, Unmasking) for message in case.group.heard)


def test_the_survivor_set_must_be_signed_by_a_quorum_of_different_sites() -> None:
    case = Sum("shares to open the sum")
    whole = signed_set(case)
    for keep, match in (
        ([0, 1, 2], "the list of those who signed the survivor set has 3 of 5 sites"),
        ([0, 0, 1, 2], "names 'site000' twice"),
    ):
        signers = tuple(whole.signers[at] for at in keep)
        with pytest.raises(PrivacyError, match=match):
            case.sides["site000"].unmask(replace(whole, signers=signers, signatures=whole.signatures[keep]))
    forged = whole.signatures.copy()
    forged[3] = forged[2]
    problem = case.site_refuses(replace(whole, signatures=forged), "the signature of site 'site003' is not over this")
    assert problem.culprits == ("site003",)


def test_shares_are_given_for_one_set_only_and_once() -> None:
    case = Sum("a signature of the count")
    given = [message for message in case.group.heard if isinstance(message, Unmasking)]
    assert len(given) == 5
    again = next(m for m in case.group.heard if isinstance(m, SignedSurvivors))
    assert case.sides["site000"].unmask(again).shares.tobytes() == given[0].shares.tobytes()
    with pytest.raises(PrivacyError, match="sent its shares to open the sum already, for another request"):
        case.sides["site000"].unmask(replace(again, sites=again.sites[:4]))
    # What it could give away is gone with the answer.
    assert not case.sides["site000"]._held
    assert not case.sides["site000"]._own


def test_a_share_of_one_kind_only_is_held_out_for_each_site() -> None:
    """Of a survivor that of its self-mask seed, of a dropped site that of its mask key: checked against commitments."""
    case = Sum("shares")
    case.go("a signature of the count", drops={BAD: "masked words"})
    dealt = {m.site: m for m in case.group.heard if isinstance(m, Shares)}
    for given in (m for m in case.group.heard if isinstance(m, Unmasking)):
        holder = case.group.roster.sites.index(given.site)
        for dealer, share in zip(case.group.roster.sites, given.shares, strict=True):
            made = [
                sealing.commit_to_share(case.context, dealer, given.site, which, share.tobytes()) for which in (0, 1)
            ]
            fits = [dealt[dealer].commitments[holder, which].tobytes() == made[which] for which in (0, 1)]
            assert fits == ([False, True] if dealer == BAD else [True, False])


def test_a_key_list_of_the_wrong_length_is_refused() -> None:
    case = Sum("shares")
    listed = key_list(case)
    case.site_refuses(replace(listed, mask_keys=listed.mask_keys[:, :31]), "the keys of a list have shape")


def test_dealers_without_the_site_itself_are_refused() -> None:
    case = Sum("masked words")
    request = replace(delivery(case), dealers=case.group.roster.sites[1:])
    case.site_refuses(request, "those who dealt shares leaves out site 'site000'")


def test_survivors_that_fall_into_parts_are_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said to have dropped, a site's neighbours on both sides would cut it and those beside it off from the rest."""
    monkeypatch.setattr(neighbours, "COMPLETE_UP_TO", 5)
    monkeypatch.setattr(neighbours, "neighbours_needed", lambda sites: 4)
    case = Sum("a signature of the survivors", count=31)
    ring = case.coordinator._graph.order
    assert case.coordinator._graph.neighbours == 4
    left = tuple(sorted(ring[2:5] + ring[7:]))
    for site in (ring[3], ring[20]):
        with pytest.raises(PrivacyError, match="do not hang together"):
            case.sides[site].sign_survivors(Survivors(case.context.digest, left))
    case.go("a signature of the count")
    assert (case.coordinator.total == plain_total(case.values, case.group.roster.sites)).all()


def test_too_few_neighbours_that_dealt_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "COMPLETE_UP_TO", 5)
    monkeypatch.setattr(neighbours, "neighbours_needed", lambda sites: 4)
    case = Sum("masked words", count=31)
    site = case.coordinator._graph.order[9]
    near = set(case.coordinator._graph.holders(site)) - {site}
    request = case.coordinator.requests()[site]
    assert isinstance(request, Delivery)
    far = replace(
        request,
        dealers=tuple(dealer for dealer in request.dealers if dealer not in near),
        ciphertexts=request.ciphertexts[:0],
        commitments=request.commitments[[sorted({*near, site}).index(site)]],
    )
    with pytest.raises(PrivacyError, match="too few neighbours dealt shares"):
        case.sides[site].mask(far, case.values[site])
