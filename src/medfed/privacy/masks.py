"""Masks: the keystream of AES-256 in counter mode, read as 64-bit words and added modulo 2**64.

A seed makes one mask and is used for nothing else, so the counter starts at zero. Words are little-endian.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# 128 KiB: zeros, keystream and the part of the target they are added to lie in a core's second-level cache together.
CHUNK_BYTES = 131_072
# So many masks go over one part of the target before the next part is touched.
MASKS_AT_ONCE = 64
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_COUNTER = CTR(bytes(16))


def add_masks(target: IntArray, masks: Iterable[tuple[bytes, int]]) -> None:
    """Add each mask (+1) or take it away (-1), modulo 2**64 and in place.

    target: (m,) int64, contiguous. masks: seed of 32 bytes, sign. Raises ValueError for another kind of array.
    Bonawitz et al. 2017, section 4.
    """
    if target.ndim != 1 or target.dtype != np.int64 or not target.flags.c_contiguous:
        raise ValueError("masks are added to one contiguous row of int64 words")
    words = target.view(np.uint64)
    buffer = memoryview(bytearray(min(CHUNK_BYTES, target.nbytes)))
    stream = np.frombuffer(buffer, "<u8")
    chunks = [
        (words[start : start + size], stream[:size], _ZEROS[: 8 * size], buffer[: 8 * size])
        for start, size in chunk_sizes(len(words))
    ]
    left = iter(masks)
    while group := [
        (keystream(seed), np.add if sign > 0 else np.subtract) for seed, sign in islice(left, MASKS_AT_ONCE)
    ]:
        for part, mask, zeros, bytes_ in chunks:
            for update, combine in group:
                update(zeros, bytes_)
                combine(part, mask, out=part)


def chunk_sizes(length: int) -> list[tuple[int, int]]:
    """Where each chunk of a row starts and how many words it has."""
    size = CHUNK_BYTES // 8
    return [(start, min(size, length - start)) for start in range(0, length, size)]


def keystream(seed: bytes) -> Any:
    """The function that writes the next keystream bytes of a seed over zeros: ``update(zeros, buffer)``."""
    return Cipher(AES(seed), _COUNTER).encryptor().update_into


def pair_sign(site: str, peer: str) -> int:
    """+1 at the site whose name comes first, -1 at the other: the two masks of a pair cancel in the sum."""
    return 1 if site < peer else -1
