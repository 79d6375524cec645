"""Key agreement: published vectors, points of small order, and secrets that depend on every part of their context."""

import pytest
from secure_rounds import consortium
from test_shares import CHANGES

from medfed.errors import PrivacyError
from medfed.privacy.agreement import derive, mask_seed, private_key, public_bytes, shared_secret

P = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)


def test_the_vector_of_rfc_7748() -> None:
    alice = private_key(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert shared_secret(alice, bob, "bob").hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.parametrize("u", [0, 1, *ORDER_8, P - 1, P, P + 1, P + 2**255, ORDER_8[0] + 2**255])
def test_points_of_small_order_are_refused(u: int) -> None:
    with pytest.raises(PrivacyError, match="'kentucky' is a point of small order") as refused:
        shared_secret(private_key(b"k" * 32), u.to_bytes(32, "little"), "kentucky")
    assert refused.value.culprits == ("kentucky",)


def test_both_ends_of_a_pair_derive_the_same_mask() -> None:
    context = consortium(3).context(5)
    a, b = private_key(b"a" * 32), private_key(b"b" * 32)
    at_a, at_b = shared_secret(a, public_bytes(b), "b"), shared_secret(b, public_bytes(a), "a")
    assert mask_seed(at_a, context, "a", "b") == mask_seed(at_b, context, "b", "a")


def test_everything_in_the_context_changes_what_is_derived() -> None:
    group = consortium(3)
    contexts = [group.context(**{"length": 5} | change) for change in ({}, *CHANGES.values())]
    contexts.append(group.context(5, roster=consortium(4).roster.digest))
    made = {derive(b"s" * 32, "pairwise mask", context, "a", "b") for context in contexts}
    made |= {derive(b"s" * 32, use, contexts[0], *ends) for use, ends in (("self mask", "ab"), ("pairwise mask", "ba"))}
    # Identities are written with their lengths: "a", "bc" is not "ab", "c".
    made |= {derive(b"s" * 32, "pairwise mask", contexts[0], *ends) for ends in (("a", "bc"), ("ab", "c"))}
    assert len(made) == len(contexts) + 4
