"""Shamir's secret sharing of 32-byte seeds over the integers modulo 2**521 - 1.

Any ``threshold`` shares give the secret back; fewer say nothing about it, whatever the computing power. Whether a
share is the one that was dealt is not known here: ``sealing`` has the commitments for that.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod

from medfed.errors import PrivacyError

PRIME = 2**521 - 1
SHARE_BYTES = 66
SECRET_BYTES = 32
# Horner's rule with small points: an intermediate grows by the point's bits a step, so it is reduced once in a while.
_STEPS_BETWEEN_REDUCTIONS = 16

Draw = Callable[[int], bytes]


def split(secret: bytes, holders: int, threshold: int, draw: Draw) -> list[bytes]:
    """Shares for the points 1 .. holders, 66 bytes each; any ``threshold`` of them give the secret.

    draw: n -> n random bytes, the system's generator outside tests.
    Shamir 1979; the field has 2**521 - 1 elements, so coefficients of 521 random bits are uniform up to 2**-521.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= holders:
        raise ValueError("a secret has 32 bytes, and the threshold lies between 1 and the number of holders")
    drawn = draw(SHARE_BYTES * (threshold - 1))
    # Highest power first.
    coefficients = [
        int.from_bytes(drawn[at : at + SHARE_BYTES], "big") & PRIME for at in range(0, len(drawn), SHARE_BYTES)
    ]
    coefficients.append(int.from_bytes(secret, "big"))
    return [_value_at(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in range(1, holders + 1)]


def _value_at(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for step, coefficient in enumerate(coefficients, 1):
        value = value * point + coefficient
        if step % _STEPS_BETWEEN_REDUCTIONS == 0:
            value = (value & PRIME) + (value >> 521)
    return value % PRIME


def combine(points: tuple[int, ...], shares: Sequence[bytes]) -> bytes:
    """The secret from one share for each point (distinct, from 1). Raises PrivacyError when they don't fit together.

    Shares that fit together can still be wrong; the caller compares the secret with what was committed to.
    """
    weights = _weights_at_zero(points)
    secret = sum(weight * int.from_bytes(share, "big") for weight, share in zip(weights, shares, strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise PrivacyError("the shares do not belong to one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at zero, with one inversion for all points (Montgomery's trick)."""
    if len(set(points)) < len(points) or min(points) < 1:
        raise ValueError("shares are combined at distinct points from 1")
    numerator = prod(points) % PRIME
    denominators = [point * prod(other - point for other in points if other != point) % PRIME for point in points]
    products = [1]
    for denominator in denominators:
        products.append(products[-1] * denominator % PRIME)
    inverse = pow(products[-1], -1, PRIME)
    weights = [0] * len(points)
    for at in reversed(range(len(points))):
        weights[at] = numerator * inverse % PRIME * products[at] % PRIME
        inverse = inverse * denominators[at] % PRIME
    return tuple(weights)
