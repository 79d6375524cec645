"""What an epsilon adds to a study: which steps may be asked at all, how much noise each carries, and where it is drawn.

A site with a charged call never lets a sum out without noise: either it sums a step's bounded per-unit terms itself
(``close``), or the step trains on noisy sums that it asks the ``Meter`` for. Noise comes from the system's generator and
is sealed with the answer, so that asking again shows the same bytes.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medfed.errors import PolicyViolation, StudyError
from medfed.federation.approval import Approval
from medfed.federation.budget import Charge, Limits
from medfed.federation.call import Protection
from medfed.federation.packages import step_name
from medfed.federation.policy import Policy
from medfed.federation.ring import decode
from medfed.federation.step import NOISE_AT_MOST, Step, Sum
from medfed.privacy import quorum
from medfed.privacy.noise import (
    GRID_BITS,
    add_by_unit,
    clip_to_grid,
    discrete_gaussian,
    poisson_sample,
    share_scale,
    total_limbs,
    total_word,
)
from medfed.privacy.plan import LARGEST_NOISE, SMALLEST_NOISE, Planned, noise_for
from medfed.privacy.roster import MINIMUM_SITES
from medfed.study import Study

FloatArray = NDArray[np.float64]
RandomBytes = Callable[[int], bytes]

NOT_CHARGED = "the study has an epsilon, and the question does not say what it costs"
NO_EPSILON = "the question brings a charge, and the study has no epsilon"
NOT_POSSIBLE = "the question brings a charge that this site can't add noise for"
NOT_BOUNDED = "the study has an epsilon, and this step has no bound on what one patient adds to its releases"

MOST_DRAWS = 1000
SMALLEST_RATE = 1e-5


def noise_shares(protection: Protection, roster: int) -> int:
    """Over how many sites the noise of a sum is spread: each adds a share of variance sigma^2 / shares.

    1 for plain sums, where the coordinator sees each site's answer: full noise at every site. Under secure sums the
    least number of sites that can be left in a total, floor(2n / 3) + 1 of the whole roster, which is the one that the
    site approved (``Admission.roster_of``); a site trusts that so many of them add their share.
    """
    return 1 if protection == "plain" else quorum(roster)


def unchargeable(steps: Sequence[Step]) -> list[str]:
    """Names of the releases that can't be given noise: ``step: release, release``."""
    found = []
    for step in steps:
        if step.is_bounded or step.is_metered:
            continue
        named = ", ".join(
            name for name, kind in step.releases.items() if not (isinstance(kind, Sum) and kind.unit_bound is not None)
        )
        found.append(f"{step.name.removeprefix('medfed.')} ({named})")
    return found


def check_charge(study: Study, step: Step, charge: Charge | None, shares: int = 1) -> None:
    """Hold a call's charge to the study and the step, before anything runs. Raises PolicyViolation."""
    if study.privacy.epsilon is None:
        if charge is not None:
            raise PolicyViolation(NO_EPSILON)
        return
    if charge is None:
        raise PolicyViolation(NOT_CHARGED)
    if not (step.is_bounded or step.is_metered):
        raise PolicyViolation(NOT_BOUNDED)
    try:
        possible = SMALLEST_NOISE <= charge.event.noise <= LARGEST_NOISE
        possible &= 1 <= charge.draws <= (1 if step.is_bounded else MOST_DRAWS)
        possible &= charge.event.sampling_rate >= SMALLEST_RATE
        check_noise(study, step, charge.event.noise, shares)
    except (ValueError, PolicyViolation):
        possible = False
    if not possible:
        raise PolicyViolation(NOT_POSSIBLE)


def limits_of(policy: Policy, approval: Approval | str, study: Study) -> Limits:
    """What a site may spend: its policy's budget over all studies; in this one the study's epsilon, or as approved."""
    approved = None if isinstance(approval, str) else approval.budget
    own = approved if approved is not None else study.privacy.epsilon
    delta = study.privacy.delta or policy.budget_delta
    return Limits(policy.budget, policy.budget_delta, math.inf if own is None else own, delta)


class Chargeable(Protocol):
    """A method that can run under an epsilon."""

    @property
    def steps(self) -> tuple[Step, ...]: ...

    def private_calls(self, study: Study) -> Mapping[Step, Planned]:
        """How often each step is called in a whole run, at most, and how its noise relates to that of others."""


def charges_of(study: Study, method: Any) -> dict[str, Charge]:
    """The charge of each step's call, by step name, such that a whole run costs at most the study's epsilon.

    Empty where the study has none. Raises StudyError, before anything is asked, that names what can't be charged.
    """
    epsilon, delta = study.privacy.epsilon, study.privacy.delta
    if epsilon is None or delta is None:
        return {}
    refused = unchargeable(method.steps)
    if refused or not hasattr(method, "private_calls"):
        what = "; ".join(refused) or type(method).__name__
        raise StudyError(
            f"privacy.epsilon: the noise of an epsilon needs a bound, and what one patient adds is not bounded in {what}. "
            "Use a private method (medfed:medfed.methods.private_glm.PrivateGLM, private_fedavg.PrivateFedAvg, "
            "private_describe.PrivateDescribe), or leave the epsilon out"
        )
    calls = method.private_calls(study)
    if not calls:
        raise StudyError(f"privacy.epsilon: {study.method.use} does not say which private calls it makes")
    planned = {step_name(step): plan for step, plan in calls.items()}
    try:
        events = noise_for(planned, epsilon, delta)
        for step in calls:
            for shares in {1, most_shares(study)}:
                check_noise(study, step, events[step_name(step)].noise, shares)
    except (ValueError, PolicyViolation) as problem:
        raise StudyError(f"privacy.epsilon: {problem}") from None
    return {name: Charge(event, planned[name].draws) for name, event in events.items()}


def most_shares(study: Study) -> int:
    """Over how many sites the noise of a study's sums is spread if all invited sites are summed securely."""
    invited = len(study.sites.invited)
    return noise_shares(
        "secure" if study.privacy.sums == "strongest" and invited >= MINIMUM_SITES else "plain", invited
    )


def check_noise(study: Study, step: Step, noise: float, shares: int) -> None:
    """ValueError where the ring has no room for a step's noise, or its grid is too coarse for a share of it."""
    each = largest_noise(step, noise)
    for declared in step.releases.values():
        if isinstance(declared, Sum) and declared.unit_bound is not None:
            share_scale(each * declared.unit_bound, shares, bits_of(study, declared))


def bits_of(study: Study, declared: Sum) -> int:
    """Fractional bits of a release in the ring: of the grid on which its terms are cut and its noise is drawn."""
    return declared.bits(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)


def largest_noise(step: Step, noise: float) -> float:
    """Noise of each release of a step, over its bound: a call's noise is split evenly. ValueError where it is too wide.

    k releases with sqrt(k) times the noise each cost together what one with the noise itself does.
    """
    each = noise * math.sqrt(len(step.releases)) if step.is_bounded else noise
    if 40 * each > NOISE_AT_MOST:
        raise ValueError(
            f"{step.name} would carry noise of {each:.4g} times a patient's bound; raise epsilon or lower the rounds"
        )
    return each


def release_deviation(step: Step, name: str, charge: Charge, shares: int = 1) -> float:
    """Standard deviation of the noise that one site adds to a bounded release."""
    return largest_noise(step, charge.event.noise) * bound_of(step, name) / math.sqrt(shares)


def bound_of(step: Step, name: str) -> float:
    """The L2 norm that one unit adds to a release of a bounded step, at most."""
    declared = step.releases[name]
    if not isinstance(declared, Sum) or declared.unit_bound is None:
        raise TypeError(f"{step.name}: {name!r} is not bounded by unit")
    return declared.unit_bound


def terms_and_noise(
    rows: FloatArray,
    unit: NDArray[np.intp],
    units: int,
    bound: float,
    *,
    sigma: float | None,
    shares: int = 1,
    sampling_rate: float = 1.0,
    bits: int = GRID_BITS,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Terms of rows (n, d) summed by unit, sampled and clipped on the grid (units, d); and noise to add to their sum (d,).

    unit: (n,) from 0 to units - 1; bound: L2 norm of a unit's terms, rounding to the grid included. sigma: standard
    deviation of the whole noise, of which one of ``shares`` is drawn; None for no noise.
    """
    by_unit = add_by_unit(np.where(np.isfinite(rows), rows, np.nan), unit, units)
    if sampling_rate < 1:
        by_unit = by_unit[poisson_sample(units, sampling_rate, random_bytes)]
    noise = None
    if sigma is not None:
        noise = discrete_gaussian(share_scale(sigma, shares, bits), rows.shape[1], random_bytes)
    return clip_to_grid(by_unit, bound, bits), noise


def units_of(view: Any) -> tuple[NDArray[np.intp], int]:
    """The unit of each row (n,), 0 to units - 1, and how many there are."""
    known, unit = np.unique(view.row_pseudonyms, return_inverse=True)
    return unit.reshape(-1), len(known)


def close(
    step: Step,
    arrays: Mapping[str, FloatArray],
    view: Any,
    *,
    charge: Charge | None,
    shares: int,
    study: Study,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> dict[str, NDArray[Any]]:
    """A bounded step's per-row terms (rows, *shape) -> what leaves: sums with this site's share of the noise.

    Charged: integers of the ring in one word, final. Without a charge (a study without epsilon): exact sums as floats,
    which the gate then judges like any other.
    """
    unit, units = units_of(view)
    closed: dict[str, NDArray[Any]] = {}
    for name, values in arrays.items():
        bits = bits_of(study, step.releases[name])  # type: ignore[arg-type]
        flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        terms, noise = terms_and_noise(
            flat, unit, units, bound_of(step, name),
            sigma=None if charge is None else release_deviation(step, name, charge), shares=shares,
            sampling_rate=1.0 if charge is None else charge.event.sampling_rate, bits=bits, random_bytes=random_bytes,
        )  # fmt: skip
        word = total_word(terms, noise).reshape(values.shape[1:])
        closed[name] = decode(word, 1, bits) if charge is None else word
    return closed


class Meter:
    """Noisy sums that a step asks for while it trains. It gives exactly as many as the call is charged for."""

    def __init__(self, view: Any, charge: Charge | None, random_bytes: RandomBytes = secrets.token_bytes) -> None:
        self._view = view
        self._charge = charge
        self._random_bytes = random_bytes
        self._units: tuple[NDArray[np.intp], int] | None = None
        self.draws = 0

    def noisy_sum(self, rows: FloatArray, bound: float) -> FloatArray:
        """Sum (*shape,) of a row of terms for each row of the table (n, *shape), a unit's L2 norm cut at ``bound``.

        The full noise of this site is in it, also under secure sums: what is trained on it is seen by the site alone,
        and what is released of that needs no more. In a study without epsilon: the same sum without noise.
        """
        values = np.asarray(rows, dtype=np.float64)
        if self._units is None:
            self._units = units_of(self._view)
        sigma, rate = None, 1.0
        if self._charge is not None:
            if self.draws >= self._charge.draws:
                raise RuntimeError("the step asks for more noisy sums than the call is charged for")
            sigma, rate = self._charge.event.noise * bound, self._charge.event.sampling_rate
        self.draws += 1
        terms, noise = terms_and_noise(
            values.reshape(len(values), -1), *self._units, bound, sigma=sigma, sampling_rate=rate,
            random_bytes=self._random_bytes,
        )  # fmt: skip
        return decode(total_limbs(terms, noise), 2).reshape(values.shape[1:])

    def check_used_up(self) -> None:
        """RuntimeError where a step released something without the noisy sums that it was charged for."""
        if self._charge is not None and self.draws != self._charge.draws:
            raise RuntimeError(f"the step made {self.draws} noisy sums, and is charged for {self._charge.draws}")
