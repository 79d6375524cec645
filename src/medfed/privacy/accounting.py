"""What noisy sums cost: differential privacy of a unit, added or removed, composed over any number of events.

An event is one noisy sum: Gaussian noise of ``noise`` times the bound on a unit's terms, over all units or a Poisson
sample of them. What is charged is the pessimistic epsilon of the privacy loss distribution (Koskela et al. 2020;
Doroshenko et al. 2022), computed by ``dp-accounting``; Rényi accounting (Mironov 2017) is a check on it.
Summing epsilons would overstate the cost several times, a central-limit approximation would understate it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medfed.errors import LedgerError

# Added to every epsilon: covers the grid under the noise (``noise.discreteness`` at 2^30 and 2.8 billion values) and
# the sums of shares (``noise.share_distance``).
GRID_EPSILON = 1e-6

_FINE, _COARSE = 1e-4, 1e-3
_WHOLE_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)


@dataclass(frozen=True, order=True)
class Event:
    """One noisy sum. noise: standard deviation over the L2 bound of a unit; sampling_rate: of a Poisson sample, or 1."""

    noise: float
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.noise < math.inf and 0 < self.sampling_rate <= 1):
            raise ValueError(f"noise is above 0 and the sampling rate above 0 and at most 1, not {self}")


Events = Mapping[Event, int]


def merged(events: Events) -> dict[Event, int]:
    """The same loss in fewer events: unsampled Gaussians compose to one, with 1 / noise^2 = sum of 1 / noise^2 (exact)."""
    found = {event: count for event, count in sorted(events.items()) if event.sampling_rate < 1 and count > 0}
    inverse = math.fsum(count / event.noise**2 for event, count in sorted(events.items()) if event.sampling_rate == 1)
    return {Event(1.0 / math.sqrt(inverse)): 1, **found} if inverse > 0 else found


def charged_epsilon(events: Events, delta: float) -> float:
    """Epsilon at ``delta`` of all events together, as it is charged. 0 for none.

    Raises LedgerError where the two accountants contradict each other.
    """
    return _charged(tuple(merged(events).items()), delta)


@lru_cache(maxsize=4096)
def _charged(events: tuple[tuple[Event, int], ...], delta: float) -> float:
    if not events:
        return 0.0
    # Whole orders alone: a looser bound, in a tenth of the time, where samples make the others slow to converge.
    sampled = any(event.sampling_rate < 1 for event, _ in events)
    check = rdp_epsilon(dict(events), delta, _WHOLE_ORDERS if sampled else None)
    interval = _FINE if sampled else _COARSE
    # A small epsilon needs a finer one; a large epsilon no fourth digit.
    interval = max(interval * min(1.0, check), check / 10_000)
    epsilon = pld_epsilon(dict(events), delta, interval)
    if not epsilon <= check * 1.01 + 0.01:
        raise LedgerError(
            f"the privacy accountants contradict each other (epsilon {epsilon:.6g} by PLD, at most {check:.6g} by RDP); "
            "nothing is released: reinstall dp-accounting"
        )
    return epsilon + GRID_EPSILON


@lru_cache(maxsize=256)
def _loss(event: Event, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as distributions

    return distributions.from_gaussian_mechanism(
        event.noise, value_discretization_interval=interval, sampling_prob=event.sampling_rate
    )


def pld_epsilon(events: Events, delta: float, interval: float = _FINE) -> float:
    """Pessimistic epsilon from the privacy loss distribution on a grid of this interval, for adding or removing a unit."""
    from dp_accounting.pld import privacy_loss_distribution as distributions

    total = distributions.identity(value_discretization_interval=interval)
    for event, count in merged(events).items():
        total = total.compose(_loss(event, interval).self_compose(count))
    return float(total.get_epsilon_for_delta(delta))


def rdp_epsilon(events: Events, delta: float, orders: Sequence[int] | None = None) -> float:
    """Epsilon from Rényi differential privacy: an upper bound of its own, looser than the charged one.

    orders: those of the divergence; dp-accounting's own where none are given.
    """
    import dp_accounting

    accountant = dp_accounting.rdp.RdpAccountant(orders)
    for event, count in merged(events).items():
        gaussian = dp_accounting.GaussianDpEvent(event.noise)
        sampled = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
        accountant.compose(gaussian if event.sampling_rate == 1 else sampled, count)
    return float(accountant.get_epsilon(delta))


def gaussian_delta(noise: float, epsilon: float) -> float:
    """Smallest delta of one Gaussian event at ``epsilon`` (Balle and Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr

    first = log_ndtr(0.5 / noise - epsilon * noise)
    second = epsilon + log_ndtr(-0.5 / noise - epsilon * noise)
    return float(math.exp(first) * -math.expm1(min(second - first, 0.0)))


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Smallest epsilon of one Gaussian event, by inverting ``gaussian_delta``: exact, for plans and checks."""
    from scipy.optimize import brentq

    if gaussian_delta(noise, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(noise, high) > delta:
        high *= 2.0
    return float(brentq(lambda epsilon: gaussian_delta(noise, epsilon) - delta, 0.0, high, xtol=1e-12, rtol=1e-13))


def gaussian_noise(epsilon: float, delta: float) -> float:
    """Noise of the one Gaussian event that spends ``epsilon``: 3.7306316 for 1 at 1e-5."""
    from scipy.optimize import brentq

    low, high = 1e-3, 1.0
    while gaussian_delta(high, epsilon) > delta:
        high *= 2.0
    return float(brentq(lambda noise: gaussian_delta(noise, epsilon) - delta, low, high, xtol=1e-13, rtol=1e-13))
