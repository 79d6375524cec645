"""The figures of both heart studies with their targets, for `make figures ONLY=heart`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medfed.applications.heart.split import flamby
from medfed.applications.heart.transport import leave_one_out

AUC = {"cleveland": 0.863, "hungary": 0.885, "switzerland": 0.733, "long-beach-va": 0.760}
AUC_TOLERANCE = 0.005
POOLED_TOLERANCE = 1e-9
REPAIRED = (0.95, 1.05)
FEDAVG = 0.785
_BESIDE = "beside it"


def figures(data: Path) -> Iterator[dict[str, Any]]:
    """Rows with claim, target, measured, n (or interval), holds. data: see ``prepare``. Takes about half a minute."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _transport(leave_one_out(data, Path(folder) / "leave-one-out"))
        yield from _split(flamby(data, Path(folder) / "flamby"))


def _row(claim: str, target: str, measured: str, n: str, holds: bool = True) -> dict[str, Any]:
    return {"claim": claim, "target": target, "measured": measured, "n": n, "holds": holds}


def _transport(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for site, one in found["hospitals"].items():
        interval = f"n {one['n']}, {one['events']} events, {one['auc_low']:.3f} to {one['auc_high']:.3f}"
        near = abs(one["auc"] - AUC[site]) <= AUC_TOLERANCE
        yield _row(f"{site}, left out: AUC", f"{AUC[site]:.3f} +- {AUC_TOLERANCE}", f"{one['auc']:.4f}", interval, near)
    yield _row("largest difference from the pooled fits", f"{POOLED_TOLERANCE:g}", f"{found['difference_from_pooled']:.1e}",
               f"{found['patients']} patients", found["difference_from_pooled"] < POOLED_TOLERANCE)  # fmt: skip
    for site, one in found["hospitals"].items():
        yield _row(
            f"{site}, left out: O/E", _BESIDE, f"{one['oe']:.3f}", f"{one['oe_low']:.3f} to {one['oe_high']:.3f}"
        )
    for site, one in found["hospitals"].items():
        after = one["update"]
        yield _row(
            f"{site}: median O/E, intercept updated on {after['patients']} patients",
            f"{REPAIRED[0]} to {REPAIRED[1]}",
            f"{after['oe']:.3f}",
            f"95 % of draws {after['low']:.2f} to {after['high']:.2f}; {100 * after['within']:.0f} % in .9 to 1.1",
            REPAIRED[0] <= after["oe"] <= REPAIRED[1],
        )
    for site, one in found["hospitals"].items():
        needed = one["needed"]
        yield _row(f"{site}: patients for 90 % of draws in .9 to 1.1", _BESIDE, str(needed["patients"] or "over 1,000"),
                   f"{needed['low']} to {needed['high'] or 'over 1,000'}")  # fmt: skip
    sites = [site for site, steps in found["held_back_by_default"].items() if any("logistic" in step for step in steps)]
    yield _row("hospitals that the default policy would hold back", _BESIDE, f"{len(sites)} of 4", ", ".join(sites))


def _split(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choice, published, seeds = found["choice"], found["published"], len(found["seeds"])
    candidates = sorted(choice["log_loss"].values())
    yield _row(
        "FedAvg's recipe is the one that validation chooses",
        "yes",
        "yes" if choice["is_the_studys"] else f"no: {choice['best']}",
        f"log-loss {candidates[0]:.4f}, next {candidates[1]:.4f}, {len(candidates)} candidates, {seeds} seeds",
        choice["is_the_studys"],
    )
    labels = {
        "fedavg": ("FedAvg: accuracy on the pooled test part", f"at least {FEDAVG}"),
        "exact": ("exact logistic", _BESIDE),
        "pooled": ("FedAvg's recipe on pooled rows", f"{_BESIDE} (FLamby {published['pooled']})"),
        "only-cleveland": ("Cleveland alone, same recipe", f"{_BESIDE} (FLamby {published['best_local']})"),
        "only-hungary": ("Hungary alone, same recipe", _BESIDE),
        "only-long-beach-va": ("Long Beach alone, same recipe", _BESIDE),
        "candidate-flamby": ("FLamby's settings, shared scaling", f"{_BESIDE} (FLamby {published['fedavg']})"),
        "scaled-at-home-numbers": ("FedAvg, numbers scaled per hospital", _BESIDE),
        "scaled-at-home-everything": (
            "FedAvg, all features scaled per hospital",
            f"{_BESIDE} (FLamby {published['fedavg']})",
        ),
        "scaled-at-home-everything-flamby": (
            "FLamby's settings and scaling",
            f"{_BESIDE} (FLamby {published['fedavg']})",
        ),
    }
    for name, (label, target) in labels.items():
        one = found["test"][name]
        spread = f"SD {one['sd']:.3f} over {seeds} seeds, n {one['n']}, {one['low']:.3f} to {one['high']:.3f}"
        holds = name != "fedavg" or one["accuracy"] >= FEDAVG
        yield _row(label, target, f"{one['accuracy']:.4f}", spread, holds)
    for name, label in (("fedavg", "FedAvg"), ("local", "each hospital alone (3 can)"), ("exact", "exact logistic")):
        one = found["test"][name]
        yield _row(f"{label}: mean of the hospitals' accuracies", _BESIDE, f"{one['mean_of_hospitals']:.4f}",
                   ", ".join(f"{site} {value:.3f}" for site, value in one["by_hospital"].items()))  # fmt: skip
