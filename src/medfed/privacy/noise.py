"""Noise for private sums: an exact discrete Gaussian, its shares over sites, and the bounded terms it is added to.

Everything lives on a grid, multiples of 2^-bits (40 unless the ring has room for fewer), as integers: floating-point
noise gives its input away in its low bits (Mironov 2012). Randomness comes from the operating system's generator, never from a seed.
The law is the discrete Gaussian N_Z(0, s^2), P(k) ~ exp(-k^2 / 2 s^2) (Canonne, Kamath and Steinke 2020, "CKS").
Nothing here decides how much noise; that is ``plan``. Draws are not constant in time.
"""

import math
import secrets
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
WordArray = NDArray[np.uint64]
RandomBytes = Callable[[int], bytes]

GRID_BITS = 40
# Scales of the noise, in grid units. Below the first the grid would show (``discreteness``); above the second 64-bit
# integers would not hold what the sampler computes.
SMALLEST_SCALE = 2**30
LARGEST_SCALE = 2**56
LARGEST_BOUND = 2.0**15

_TRUNCATED_AT = 100
_LOW = np.int64(0xFFFFFFFF)
# A comparison of a 64-bit uniform with a probability in double precision is trusted outside this margin. Its error is
# under 2^-49: relative error of the exponent 2^-50, of NumPy's exp 4 units in the last place, of the uniform 2^-53.
_MARGIN = 2.0**-44
_CLIP_MARGIN = 2.0**-36


def _words(count: int, random_bytes: RandomBytes) -> WordArray:
    return np.frombuffer(random_bytes(8 * count), dtype=np.uint64)


def exceeds_exp(word: int, gamma: Fraction, random_bytes: RandomBytes) -> bool:
    """Whether a uniform number that begins with these 64 bits is at least exp(-gamma), decided exactly. gamma: to 5,000.

    Further bits are drawn until the number lies to one side of an enclosure of exp(-gamma) that is as fine.
    """
    if gamma == 0:
        return False
    bits = 64
    while True:
        digits = bits // 3 + 30
        context = Context(prec=digits, Emin=-(10**9), Emax=10**9)
        # Rounding of gamma and the correctly rounded exp: both under gamma + 1 units of 10^-digits, relative.
        value = context.exp(context.divide(Decimal(-gamma.numerator), Decimal(gamma.denominator)))
        slack = Fraction(math.ceil(gamma) + 2, 10 ** (digits - 2))
        middle = Fraction(value)
        if Fraction(word + 1, 2**bits) <= middle - slack:
            return False
        if Fraction(word, 2**bits) >= middle + slack:
            return True
        word = (word << 64) | int.from_bytes(random_bytes(8), "little")
        bits += 64


def _happens(gamma: FloatArray, exact: Callable[[int], Fraction], random_bytes: RandomBytes) -> BoolArray:
    """Events (n,) of probability exactly exp(-g_i). gamma: the g_i in double precision; exact(i): g_i itself."""
    words = _words(len(gamma), random_bytes)
    uniform, chance = np.ldexp(words.astype(np.float64), -64), np.exp(-gamma)
    happens = uniform < chance
    for index in np.flatnonzero(np.abs(uniform - chance) <= _MARGIN):
        happens[index] = not exceeds_exp(int(words[index]), exact(int(index)), random_bytes)
    return np.asarray(happens)


def _below(limit: int, count: int, random_bytes: RandomBytes) -> IntArray:
    """Uniform integers in 0 .. limit - 1, (count,); limit up to 2^62."""
    shift = np.uint64(64 - (limit - 1).bit_length()) if limit > 1 else np.uint64(63)
    found: list[IntArray] = []
    have = 0
    while have < count:
        drawn = (_words(2 * (count - have) + 8, random_bytes) >> shift).astype(np.int64)
        found.append(drawn[drawn < limit])
        have += len(found[-1])
    return np.concatenate(found)[:count] if found else np.zeros(0, np.int64)


def discrete_laplace(scale: int, count: int, random_bytes: RandomBytes = secrets.token_bytes) -> IntArray:
    """Draws (count,) with P(k) ~ exp(-|k| / scale), exact (CKS, algorithm 2); |k| beyond 100 scales is drawn again."""
    found: list[IntArray] = []
    have = 0
    while have < count:
        # A candidate survives with probability about (1 - 1/e): draw enough for one pass in most cases.
        many = 2 * (count - have) + 8
        offset = _below(scale, many, random_bytes)

        def exact(i: int, offset: IntArray = offset) -> Fraction:
            return Fraction(int(offset[i]), scale)

        offset = offset[_happens(offset / scale, exact, random_bytes)]
        whole = np.zeros(len(offset), np.int64)
        going = np.arange(len(offset))
        while len(going):
            going = going[_happens(np.ones(len(going)), lambda i: Fraction(1), random_bytes)]
            whole[going] += 1
            going = going[whole[going] <= _TRUNCATED_AT]
        size = offset + scale * np.minimum(whole, _TRUNCATED_AT)
        negative = (_words(len(size), random_bytes) & np.uint64(1)).astype(bool)
        kept = (whole <= _TRUNCATED_AT) & ~(negative & (size == 0))
        found.append(np.where(negative, -size, size)[kept])
        have += len(found[-1])
    return np.concatenate(found)[:count] if found else np.zeros(0, np.int64)


def discrete_gaussian(scale: int, count: int, random_bytes: RandomBytes = secrets.token_bytes) -> IntArray:
    """Draws (count,) of N_Z(0, scale^2), exact (CKS, algorithm 3). scale: 1 to ``LARGEST_SCALE``.

    From a discrete Laplace of the same scale, kept with probability exp(-(|y| - scale)^2 / (2 scale^2)). What exact
    leaves out is |y| beyond 100 scales, of probability under exp(-4,900).
    """
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"the scale of the noise is 1 to 2^56 grid units, not {scale}")
    found: list[IntArray] = []
    have = 0
    while have < count:
        drawn = discrete_laplace(scale, 2 * (count - have) + 4, random_bytes)
        away = np.abs(drawn) - scale
        relative = away / scale

        def exact(i: int, away: IntArray = away) -> Fraction:
            return Fraction(int(away[i]) ** 2, 2 * scale * scale)

        found.append(drawn[_happens(0.5 * relative * relative, exact, random_bytes)])
        have += len(found[-1])
    return np.concatenate(found)[:count] if found else np.zeros(0, np.int64)


def share_scale(sigma: float, shares: int, bits: int = GRID_BITS) -> int:
    """Scale, in grid units, of one of ``shares`` noise shares whose sum has at least the standard deviation ``sigma``.

    The least integer s with shares x s^2 >= (sigma x 2^bits)^2. ValueError where the grid can't hold it.
    """
    wanted = Fraction(sigma) ** 2 * 4**bits / shares
    scale = math.isqrt(math.ceil(wanted) - 1) + 1
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise ValueError(
            f"noise of standard deviation {sigma:.3g} in {shares} shares is too {'fine' if scale < SMALLEST_SCALE else 'wide'} "
            f"for a grid of 2^-{bits}; scale what is released, or lower rows_per_site"
        )
    return scale


def share_distance(scale: int, shares: int) -> float:
    """Largest log ratio between the law of a sum of shares N_Z(0, scale^2) and N_Z(0, shares x scale^2), at any point.

    10 x sum over k = 1 .. shares - 1 of exp(-2 pi^2 scale^2 k / (k + 1)), for scale >= 1/2 (Kairouz, Liu and Steinke
    2021, theorem on sums of discrete Gaussians). From a scale of 7 grid units on this is 0 in double precision; no
    share is finer than ``SMALLEST_SCALE``. A vector of d entries in T calls is within d x T of it.
    """
    exponent = -2.0 * math.pi**2 * float(scale) ** 2
    return 10.0 * math.fsum(math.exp(max(exponent * k / (k + 1), -745.2)) for k in range(1, shares))


def discreteness(scale: int, values: int) -> float:
    """Epsilon that the grid adds, at most, to ``values`` draws accounted as a continuous Gaussian rounded to the grid.

    Rounding after a continuous Gaussian is post-processing and costs nothing. Within 40 scales the discrete Gaussian's
    probabilities are those within exp(+-201 / scale^2): exp(-u^2 / 2s^2) cosh(k u / s^2), averaged over |u| <= 1/2, lies
    between 1 - 1 / 24s^2 and cosh(20 / s). The factor 2 is for the two neighbouring tables; beyond 40 scales lies
    a probability under exp(-800).
    """
    return 2.0 * 201.0 / float(scale) ** 2 * values


def clip_to_grid(terms: FloatArray, bound: float, bits: int = GRID_BITS) -> IntArray:
    """Terms (n, d) of n units as grid integers (n, d), each unit's L2 norm at most ``bound`` x 2^bits, exactly.

    A longer one is shortened, keeping its direction; rounding is towards zero. A unit with a value that is not a finite
    number counts as zeros, so that nobody's data can stop an answer. d is at most 65,536.
    """
    if not 0 < bound <= LARGEST_BOUND:
        raise ValueError(f"the bound on a unit's terms is above 0 and at most {LARGEST_BOUND:g}, not {bound}")
    terms = np.where(np.isfinite(terms).all(1, keepdims=True), terms, 0.0)
    largest = np.abs(terms).max(1, keepdims=True, initial=0.0)
    unit = terms / np.where(largest > 0, largest, 1.0)
    length = np.sqrt((unit * unit).sum(1, keepdims=True))
    # The margin keeps rounding of the norm (relative error d x 2^-53) from passing the bound.
    held = bound * (1.0 - _CLIP_MARGIN)
    with np.errstate(over="ignore"):
        # One entry alone is its own norm, without rounding: counts stay whole.
        alone = np.count_nonzero(terms, axis=1, keepdims=True) <= 1
        long = np.where(alone, largest > bound, largest * length > held)
    shortened = unit / np.where(length > 0, length, 1.0) * held
    clipped = np.where(long, shortened, terms)
    return np.trunc(np.ldexp(clipped, bits)).astype(np.int64)


def add_by_unit(rows: FloatArray, unit: NDArray[np.intp], units: int) -> FloatArray:
    """Terms of rows (n, d) added up by unit (n,): (units, d). Every unit from 0 to units - 1 has a row."""
    ordered = rows[np.argsort(unit, kind="stable")]
    if units == len(rows):
        return ordered
    first = np.concatenate([[0], np.cumsum(np.bincount(unit, minlength=units))[:-1]])
    return np.asarray(np.add.reduceat(ordered, first, axis=0))


def poisson_sample(count: int, rate: float, random_bytes: RandomBytes = secrets.token_bytes) -> BoolArray:
    """Which of ``count`` units are in a Poisson sample: each by itself with probability ``rate``, rounded down to 2^-64."""
    if rate >= 1:
        return np.ones(count, dtype=bool)
    return np.asarray(_words(count, random_bytes) < np.uint64(int(Fraction(rate) * 2**64)))


def total_word(terms: IntArray, noise: IntArray | None) -> IntArray:
    """Sum over units of grid integers (n, d), plus noise (d,), modulo 2^64: (d,).

    One word, so that under masks nothing but the sum is seen: of two, the totals of high and of low halves would tell
    how often the low ones carried over. Wrapping round can't be told from the data, since it is done to the noisy sum.
    """
    total = terms.sum(0, dtype=np.int64)
    return np.asarray(total if noise is None else total + noise)


def total_limbs(terms: IntArray, noise: IntArray | None) -> IntArray:
    """Sum over units of grid integers (n, d), plus noise (d,): (d, 2), high and low in base 2^32.

    Low lies in 0 .. 2^32 - 1, so that the pair says no more than the sum. For a sum that stays at its site.
    """
    high, low = (terms >> np.int64(32)).sum(0), (terms & _LOW).sum(0)
    if noise is not None:
        high, low = high + (noise >> np.int64(32)), low + (noise & _LOW)
    return np.stack([high + (low >> np.int64(32)), low & _LOW], -1)
