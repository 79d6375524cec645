"""Fixed point with 40 fractional bits: totals that depend on no order, engine or mask.

One 64-bit limb where the public limit allows it, else two limbs in base 2**32. Arrays of limbs are int64 and are
added like integers; ``decode`` turns a total back into floating point.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfed.errors import PolicyViolation

FRACTION_BITS = 40
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


def encode(values: FloatArray, limbs: int) -> IntArray:
    """Finite values -> int64, shape (...) for one limb, (..., 2) high and low for two."""
    scaled = np.rint(np.ldexp(values, FRACTION_BITS))
    if limbs == 1:
        if np.any(np.abs(scaled) >= 2.0**63):
            raise PolicyViolation("a value overflows the ring of exact sums; raise rows_per_site in the study")
        return scaled.astype(np.int64)
    high = np.floor(scaled / _BASE)
    return np.stack([high, scaled - high * _BASE], -1).astype(np.int64)


def from_limbs(pairs: IntArray, limbs: int) -> IntArray:
    """Two-limb integers (..., 2) -> the ring's own width; one limb where the public limits allow it."""
    if limbs == 2:
        return pairs
    high, low = pairs[..., 0] + (pairs[..., 1] >> 32), pairs[..., 1] & 0xFFFFFFFF
    if np.any(np.abs(high) >= 2**31):
        raise PolicyViolation("a value overflows the ring of exact sums; raise rows_per_site in the study")
    return np.asarray((high << 32) + low)


def decode(total: IntArray, limbs: int) -> FloatArray:
    """A sum of encoded arrays -> float64, rounded once."""
    if limbs == 1:
        return np.ldexp(total.astype(np.float64), -FRACTION_BITS)
    high, low = total[..., 0] + (total[..., 1] >> 32), total[..., 1] & 0xFFFFFFFF
    return np.ldexp(high.astype(np.float64) * _BASE + low, -FRACTION_BITS)
