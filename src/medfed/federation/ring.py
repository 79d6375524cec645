"""Fixed point with 40 fractional bits: totals that depend on no order, engine or mask.

One 64-bit limb where the public limit allows it, else two limbs in base 2**32. Arrays of limbs are int64 and are
added like integers; ``decode`` turns a total back into floating point. What carries noise has one limb always, with
fewer fractional bits where it has to: the sums of high and of low halves apart say more than the total does.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfed.errors import PolicyViolation

FRACTION_BITS = 40
FEWEST_BITS = 20
_BASE = 2.0**32
_ONE_LIMB = 2.0 ** (62 - FRACTION_BITS)
_TWO_LIMBS = 2.0 ** (62 + 32 - FRACTION_BITS - 1)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def on_grid(values: ArrayLike) -> FloatArray:
    """The nearest multiples of 2**-40: what will be summed, so that a site and the coordinator hold the same number."""
    array: FloatArray = np.ldexp(np.rint(np.ldexp(values, FRACTION_BITS)), -FRACTION_BITS)
    return array


def limbs_needed(largest_total: float) -> int:
    """1 or 2 limbs for totals up to ``largest_total`` (public: limit x sites invited). Overflow is refused."""
    if not largest_total < _TWO_LIMBS:
        raise PolicyViolation(
            f"totals up to {largest_total:.3g} overflow the ring of exact sums; "
            "lower the limit, rows_per_site or the number of sites in the study"
        )
    return 1 if largest_total < _ONE_LIMB else 2


def bits_of_one_limb(largest_total: float) -> int:
    """Fractional bits, at most 40, with which totals up to this (public) stay under 2**62 in one limb.

    PolicyViolation where they are fewer than 20: the grid would be too coarse.
    """
    bits = min(FRACTION_BITS, 62 - math.frexp(largest_total)[1])
    if bits < FEWEST_BITS:
        raise PolicyViolation(
            f"noisy totals up to {largest_total:.3g} leave {bits} fractional bits in a word of 64, at least {FEWEST_BITS} "
            "are needed; lower the bound on a unit's terms, rows_per_site or the number of sites in the study"
        )
    return bits


def encode(values: FloatArray, limbs: int, bits: int = FRACTION_BITS) -> IntArray:
    """Finite values -> int64, shape (...) for one limb, (..., 2) high and low for two. bits: fractional ones."""
    scaled = np.rint(np.ldexp(values, bits))
    if limbs == 1:
        if np.any(np.abs(scaled) >= 2.0**63):
            raise PolicyViolation("a value overflows the ring of exact sums; raise rows_per_site in the study")
        return scaled.astype(np.int64)
    high = np.floor(scaled / _BASE)
    return np.stack([high, scaled - high * _BASE], -1).astype(np.int64)


def decode(total: IntArray, limbs: int, bits: int = FRACTION_BITS) -> FloatArray:
    """A sum of encoded arrays -> float64, rounded once. bits: fractional ones."""
    if limbs == 1:
        return np.ldexp(total.astype(np.float64), -bits)
    high, low = total[..., 0] + (total[..., 1] >> 32), total[..., 1] & 0xFFFFFFFF
    return np.ldexp(high.astype(np.float64) * _BASE + low, -bits)
