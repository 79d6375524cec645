"""Masks: a pair's cancel bit for bit, and the words are AES-256-CTR's own."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.federation.ring import decode, encode
from medfed.privacy.masks import CHUNK_BYTES, add_masks, pair_sign

WORD = st.integers(-(2**63), 2**63 - 1)
SEED = st.binary(min_size=32, max_size=32)


def reference_mask(seed: bytes, length: int) -> list[int]:
    """The keystream in one piece, as whole numbers."""
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(8 * length))
    return [int.from_bytes(stream[at : at + 8], "little") for at in range(0, 8 * length, 8)]


@settings(max_examples=50, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=20), st.lists(st.tuples(SEED, st.sampled_from([1, -1])), max_size=5))
def test_masks_are_added_modulo_2_to_the_64(words: list[int], masks: list[tuple[bytes, int]]) -> None:
    target = np.array(words, np.int64)
    add_masks(target, masks)
    expected = [word % 2**64 for word in words]
    for seed, sign in masks:
        pairs = zip(expected, reference_mask(seed, len(words)), strict=True)
        expected = [(word + sign * mask) % 2**64 for word, mask in pairs]
    assert [int(word) % 2**64 for word in target] == expected


@pytest.mark.parametrize("length", [1, CHUNK_BYTES // 8, CHUNK_BYTES // 8 + 1, 3 * CHUNK_BYTES // 8 - 1])
def test_chunks_make_no_difference(length: int) -> None:
    target = np.zeros(length, np.int64)
    add_masks(target, [(b"k" * 32, 1)])
    assert target.view(np.uint64).tolist() == reference_mask(b"k" * 32, length)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=6),
    st.sampled_from([1, 2]),
    st.lists(SEED, min_size=15, max_size=15),
)
def test_a_masked_total_decodes_to_the_plain_one(numbers: list[float], limbs: int, seeds: list[bytes]) -> None:
    """The ring of exact sums, one limb or two, under every pair's masks."""
    coded = [encode(np.array([number]), limbs).reshape(-1) for number in numbers]
    names = [f"site{at}" for at in range(len(numbers))]
    at = iter(seeds)
    masked = [words.copy() for words in coded]
    for one in range(len(names)):
        for other in range(one):
            seed = next(at)
            add_masks(masked[one], [(seed, pair_sign(names[one], names[other]))])
            add_masks(masked[other], [(seed, pair_sign(names[other], names[one]))])
    shape = (1,) if limbs == 1 else (1, 2)
    plain = decode(np.sum(coded, axis=0).reshape(shape), limbs)
    assert decode(np.sum(masked, axis=0).reshape(shape), limbs) == plain


@pytest.mark.parametrize("target", [np.zeros(4), np.zeros((2, 2), np.int64), np.zeros(8, np.int64)[::2]])
def test_only_a_row_of_words_is_masked(target: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contiguous row of int64"):
        add_masks(target, [])
