"""Shamir's shares: enough give the secret, fewer give nothing; on their way nobody reads or changes them."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_rounds import consortium

from medfed.errors import PrivacyError
from medfed.privacy.sealing import commit_to_share, open_pair, seal_pair
from medfed.privacy.shares import PRIME, SHARE_BYTES, combine, split

SECRET = st.binary(min_size=32, max_size=32)


@st.composite
def sharing(draw: st.DrawFn) -> tuple[bytes, int, int, list[int]]:
    holders = draw(st.integers(1, 12))
    threshold = draw(st.integers(1, holders))
    points = draw(st.permutations(range(1, holders + 1)))
    return draw(SECRET), holders, threshold, points


@settings(max_examples=100, deadline=None)
@given(sharing())
def test_any_threshold_of_shares_gives_the_secret(case: tuple[bytes, int, int, list[int]]) -> None:
    secret, holders, threshold, points = case
    shares = split(secret, holders, threshold, os.urandom)
    chosen = tuple(points[:threshold])
    assert combine(chosen, [shares[point - 1] for point in chosen]) == secret


@settings(max_examples=50, deadline=None)
@given(sharing(), SECRET)
def test_fewer_shares_fit_every_other_secret_as_well(case: tuple[bytes, int, int, list[int]], other: bytes) -> None:
    """Perfect secrecy: with one share less, some value of the missing share gives any secret you like."""
    secret, holders, threshold, points = case
    shares = split(secret, holders, threshold, os.urandom)
    *known, missing = points[:threshold]
    # The missing share that would make ``other`` the secret: interpolate through (0, other) and the known ones.
    at = {0: int.from_bytes(other, "big")} | {point: int.from_bytes(shares[point - 1], "big") for point in known}
    forged = sum(value * weight(point, at, missing) for point, value in at.items()) % PRIME
    found = [shares[point - 1] for point in known] + [forged.to_bytes(SHARE_BYTES, "big")]
    assert combine((*known, missing), found) == other


def weight(point: int, points: dict[int, int], x: int) -> int:
    """Lagrange's polynomial of one point at x, term by term."""
    value = 1
    for other in points:
        if other != point:
            value = value * (x - other) * pow(point - other, -1, PRIME) % PRIME
    return value


def test_shares_at_200_sites_with_the_largest_coefficients() -> None:
    secret = b"\xff" * 32
    shares = split(secret, 200, 134, lambda n: b"\xff" * n)
    points = tuple(random.Random(1).sample(range(1, 201), 134))
    assert combine(points, [shares[point - 1] for point in points]) == secret


def test_shares_of_two_secrets_do_not_combine() -> None:
    one, other = split(b"a" * 32, 4, 3, os.urandom), split(b"b" * 32, 4, 3, os.urandom)
    with pytest.raises(PrivacyError, match="do not belong to one secret"):
        combine((1, 2, 3), [one[0], other[1], one[2]])


@pytest.mark.parametrize("secret, holders, threshold", [(b"short", 3, 2), (b"s" * 32, 3, 4), (b"s" * 32, 3, 0)])
def test_impossible_sharings_are_refused(secret: bytes, holders: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        split(secret, holders, threshold, os.urandom)


def test_a_point_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="distinct points"):
        combine((1, 1), [b"", b""])


CHANGES = {
    "another attempt": dict(attempt=1),
    "another round": dict(round=2),
    "another step": dict(step="other"),
    "another ordinal": dict(ordinal=1),
    "another study": dict(study="6" * 64),
    "another run": dict(run="main/3/child"),
    "another question": dict(question="r" * 64),
    "another length": dict(length=6),
    "another purpose": dict(purpose="sum"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_sealed_shares_open_only_in_their_own_context(change: dict[str, object]) -> None:
    context = consortium(3).context(5)
    sealed = seal_pair(b"s" * 32, context, "keys", "a", "b", b"p" * 132)
    assert open_pair(b"s" * 32, context, "keys", "a", "b", sealed) == b"p" * 132
    elsewhere = consortium(3).context(**{"length": 5} | change)
    with pytest.raises(PrivacyError, match="site 'a' can't be opened at 'b'"):
        open_pair(b"s" * 32, elsewhere, "keys", "a", "b", sealed)


def test_sealed_shares_are_bound_to_ends_keys_and_every_byte() -> None:
    context = consortium(3).context(5)
    sealed = seal_pair(b"s" * 32, context, "keys", "a", "b", b"p" * 132)
    for listed, dealer, holder in (("other keys", "a", "b"), ("keys", "b", "a"), ("keys", "a", "c")):
        with pytest.raises(PrivacyError, match="can't be opened"):
            open_pair(b"s" * 32, context, listed, dealer, holder, sealed)
    for at in range(0, len(sealed), 7):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(PrivacyError, match="can't be opened"):
            open_pair(b"s" * 32, context, "keys", "a", "b", changed)


def test_a_commitment_tells_kinds_ends_and_contexts_apart() -> None:
    context, later = consortium(3).context(5), consortium(3).context(5, attempt=1)
    made = {
        commit_to_share(where, *ends, which, b"share")
        for where in (context, later)
        for ends in (("a", "b"), ("b", "a"))
        for which in (0, 1)
    }
    assert len(made) == 8
