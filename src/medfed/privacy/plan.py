"""How much noise each call needs, so that all of them together spend a stated epsilon; and what error that makes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from medfed.privacy.accounting import Event, charged_epsilon, gaussian_noise, pld_epsilon

# A noisy sum may carry noise up to so many times a unit's bound: the ring of exact sums is sized for it (40 times
# the standard deviation stays under 65,536 bounds). More would drown the answer of any consortium.
LARGEST_NOISE = 1600.0
SMALLEST_NOISE = 0.05


@dataclass(frozen=True)
class Planned:
    """Calls of one step in a run: how many; how much of the budget they weigh; over which sample of units.

    weight: signal relative to other steps: twice the weight, half the noise. draws: noisy sums that a site makes
    inside one call (local training); 1 for a call that is itself one noisy sum.
    """

    calls: int
    weight: float = 1.0
    sampling_rate: float = 1.0
    draws: int = 1

    def __post_init__(self) -> None:
        if self.calls < 1 or self.draws < 1 or not self.weight > 0 or not 0 < self.sampling_rate <= 1:
            raise ValueError(
                f"calls and draws are at least 1, weight above 0, a rate above 0 and at most 1, not {self}"
            )


@dataclass(frozen=True)
class ExpectedError:
    """What noise will do to a figure. sentence: English, with names in braces that ``parameters`` fill; value: SD."""

    sentence: str
    value: float
    parameters: Mapping[str, str]


def noise_for(planned: Mapping[str, Planned], epsilon: float, delta: float) -> dict[str, Event]:
    """The event of each step's noisy sums, such that all calls together are charged at most ``epsilon``.

    One base noise is divided by each step's weight; it is the least to four digits at least. ValueError where none is
    possible.
    """
    return dict(_noise_for(tuple(sorted(planned.items(), key=lambda item: item[0])), epsilon, delta))


@lru_cache(maxsize=256)
def _noise_for(planned: tuple[tuple[str, Planned], ...], epsilon: float, delta: float) -> tuple[tuple[str, Event], ...]:
    def events(base: float) -> dict[Event, int]:
        found: dict[Event, int] = {}
        for _, plan in planned:
            event = Event(base / plan.weight, plan.sampling_rate)
            found[event] = found.get(event, 0) + plan.calls * plan.draws
        return found

    name, least = min(planned, key=lambda item: item[1].weight)
    most = LARGEST_NOISE * least.weight
    if charged_epsilon(events(most), delta) > epsilon:
        raise ValueError(
            f"the calls of {name} would carry noise of more than {LARGEST_NOISE:g} times a patient's bound; change epsilon, "
            "the number of rounds, or the weights"
        )
    # Without sampling everything composes to one Gaussian: an upper end for the sampled case too.
    total = math.fsum(plan.calls * plan.draws * plan.weight**2 for _, plan in planned)
    high = gaussian_noise(epsilon, delta) * math.sqrt(total) * 1.001
    low = high / 1.002
    sampled = any(plan.sampling_rate < 1 for _, plan in planned)
    if sampled:
        low = least.weight * SMALLEST_NOISE
        for _ in range(40):
            middle = math.sqrt(low * high)
            low, high = (
                (low, middle)
                if pld_epsilon(events(middle), delta, 1e-3 * min(1.0, epsilon)) <= epsilon
                else (middle, high)
            )
            if high < low * 1.0005:
                break
    for _ in range(60):
        if high < low * (1 + (1e-4 if sampled else 1e-6)):
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if charged_epsilon(events(middle), delta) <= epsilon else (middle, high)
    base, more = _rounded_up(high), 1e-5
    # What is charged is a little above the exact epsilon.
    while base < most and charged_epsilon(events(base), delta) > epsilon:
        base, more = min(_rounded_up(base * (1 + more)), most), 2 * more
    found = tuple((name, Event(base / plan.weight, plan.sampling_rate)) for name, plan in planned)
    for name, event in found:
        if not SMALLEST_NOISE <= event.noise <= LARGEST_NOISE:
            raise ValueError(
                f"the calls of {name} would carry noise of {event.noise:.4g} times a patient's bound (possible are "
                f"{SMALLEST_NOISE:g} to {LARGEST_NOISE:g}); change epsilon, the number of rounds, or the weights"
            )
    return found


def _rounded_up(value: float) -> float:
    """Six significant digits, upwards: the same on every machine, whatever the last bits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 5)
    return round(math.ceil(value / step - 1e-9) * step, 12)


def descent_deviation(noise: float, *, rounds: int, rate: float, bound: float, patients: float) -> float:
    """SD that noise leaves in one coefficient after gradient descent, at most.

    noise: SD in one gradient's sum, over the bound; rate: of a step, momentum counted in (rate / (1 - momentum)). Each
    round adds rate x bound x noise / patients, and a convex loss shrinks what earlier rounds added: so no more than
    sqrt(rounds) times that.
    """
    return rate * bound * noise * math.sqrt(rounds) / patients


def total_deviation(sigma: float, sites: int, shares: int) -> float:
    """Standard deviation of the noise in a total over ``sites`` that each add a share of variance sigma^2 / shares."""
    return sigma * math.sqrt(sites / shares)
