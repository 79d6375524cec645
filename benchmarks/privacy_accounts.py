"""Privacy in figures: accountants beside published values, the sampler's speed, what a charge costs a call.

    python benchmarks/privacy_accounts.py

Published: Rényi and PLD epsilons for (rate, noise, steps, delta); the analytic Gaussian mechanism (Balle and Wang 2018).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from medfed.privacy.accounting import Event, charged_epsilon, gaussian_noise, rdp_epsilon
from medfed.privacy.noise import SMALLEST_SCALE, discrete_gaussian, discreteness, share_distance
from medfed.privacy.plan import Planned, noise_for


@dataclass(frozen=True)
class Measured:
    """One figure. holds: whether it meets its target; None where there is none."""

    claim: str
    target: str
    measured: str
    holds: bool | None


def measured() -> Iterator[Measured]:
    """Every figure, in order."""
    for rate, noise, steps, rdp, pld in ((0.04, 1.5, 2250, 7.329, 6.769), (1.0, 10.0, 100, 4.729, 4.377)):
        events = {Event(noise, rate): steps}
        for name, wanted, found in (
            ("RDP", rdp, rdp_epsilon(events, 1e-5)), ("PLD, charged", pld, charged_epsilon(events, 1e-5))
        ):  # fmt: skip
            claim = f"{name}: rate {rate:g}, noise {noise:g}, {steps} steps, delta 1e-5"
            yield Measured(claim, f"{wanted}", f"{found:.4f}", abs(found - wanted) < 5e-4)
    analytic = gaussian_noise(1.0, 1e-5)
    yield Measured(
        "analytic Gaussian: epsilon 1, delta 1e-5", "3.7306316", f"{analytic:.7f}", abs(analytic - 3.7306316) < 5e-8
    )
    first, second = {Event(20.0): 30}, {Event(30.0): 60}
    alone = charged_epsilon(first, 1e-5) + charged_epsilon(second, 1e-5)
    together = charged_epsilon({**first, **second}, 1e-5)
    yield Measured(
        "two studies, composed beside added up", "less", f"{together:.3f} beside {alone:.3f}", together < alone
    )
    noise = noise_for({"count": Planned(1), "gradient": Planned(30)}, 3.0, 1e-5)
    spent = charged_epsilon({noise["count"]: 31}, 1e-5)
    yield Measured("a plan of 31 calls for epsilon 3 spends", "at most 3", f"{spent:.6f}", 2.999 < spent <= 3.0)
    distance = max(share_distance(SMALLEST_SCALE, 1000), discreteness(SMALLEST_SCALE, 10**9))
    yield Measured(
        "epsilon of grid and shares, 10^9 values, 1,000 shares", "under 1e-6", f"{distance:.1e}", distance < 1e-6
    )
    for count in (20, 10_000):
        repeats = 2_000_000 // max(count, 2000)
        started = time.perf_counter()
        for _ in range(repeats):
            discrete_gaussian(2**43, count)
        each = (time.perf_counter() - started) / repeats
        yield Measured(f"{count:,} exact draws", "", f"{1e3 * each:.2f} ms, {1e6 * each / count:.2f} us each", None)
    for name, event in (("all patients", Event(20.123)), ("a sample", Event(1.987, 0.05))):
        started = time.perf_counter()
        for steps in range(1, 21):
            charged_epsilon({event: steps}, 1e-5)
        each = (time.perf_counter() - started) / 20
        yield Measured(f"charging a call over {name}", "", f"{1e3 * each:.1f} ms", None)


if __name__ == "__main__":
    missed = 0
    for row in measured():
        mark = {True: "ok  ", False: "MISS", None: "    "}[row.holds]
        missed += row.holds is False
        print(f"{mark} {row.claim:58} {row.target:12} {row.measured}", flush=True)
    raise SystemExit(1 if missed else 0)
