"""Every figure that README, docs and tests claim, measured now: claim, target, measured, n or interval, command.

    python benchmarks/figures.py [--only demo|heart|crash|gate|secure|speed|statistics|survival|privacy]      (make figures ONLY=heart)

heart needs the UCI heart disease files: --data FOLDER, or MEDFED_DATA; it is skipped with a reason without them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAIRS = 1000
sys.path[:0] = [str(ROOT / "tests" / "federation"), str(ROOT / "benchmarks")]


@dataclass(frozen=True)
class Figure:
    """One row. holds: whether the measured value meets its target; None where it was skipped."""

    claim: str
    target: str
    measured: str
    n: str
    command: str
    holds: bool | None


def demo(data: Path | None) -> Iterator[Figure]:
    """The indomethacin trial: `make demo`."""
    command = "medfed demo --json"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", "from medfed.cli.main import run_command; run_command()", "demo", "--json", "--folder",
             f"{folder}/demo"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            yield Figure("the demo runs", "exit 0", done.stderr.strip()[-200:], "", command, False)
            return
        found = json.loads(done.stdout)

    def near(value: float, target: float, tolerance: float) -> bool:
        return abs(value - target) <= tolerance

    counts = found["patients"]
    yield Figure("hospitals counted", "all four", ", ".join(found["sites"]), "4 invited", command,
                 found["sites"] == ["case", "indiana", "kentucky", "michigan"])  # fmt: skip
    yield Figure("events / patients, placebo and indomethacin", "52/307, 27/295",
                 ", ".join(f"{e}/{n}" for e, n in counts.values()), "602 patients", command,
                 list(counts.values()) == [[52, 307], [27, 295]])  # fmt: skip
    low, high = found["risk_ratio_interval"]
    yield Figure("risk ratio", ".5404 (.349 to .836)", f"{found['risk_ratio']:.4f}", f"{low:.3f} to {high:.3f}", command,
                 near(found["risk_ratio"], 0.5404, 5e-5))  # fmt: skip
    low, high = found["adjusted_odds_ratio_interval"]
    yield Figure("adjusted odds ratio", ".4662 (.282 to .770)", f"{found['adjusted_odds_ratio']:.4f}", f"{low:.3f} to {high:.3f}",
                 command, near(found["adjusted_odds_ratio"], 0.4662, 5e-5))  # fmt: skip
    yield Figure("largest difference from statsmodels, pooled", "1e-8", f"{found['difference_from_pooled']:.1e}", "", command,
                 found["difference_from_pooled"] < 1e-8)  # fmt: skip
    for method in found["prediction"]["methods"]:
        overall = {r["where"]: r for r in method["results"] if r["site"] is None}["federated"]
        interval = f"{overall['auc_low']:.3f} to {overall['auc_high']:.3f}, n {overall['n']}"
        yield Figure(f"risk model, {method['name']}: AUC within hospitals", "near .6", f"{overall['auc']:.3f}", interval, command,
                     0.55 < overall["auc"] < 0.65)  # fmt: skip
        shown = [row["site"] for row in method["results"] if row["site"] is not None]
        yield Figure(f"risk model, {method['name']}: figures of one hospital beside the total", "none", f"{len(shown)}",
                     "4 hospitals", command, not shown and not method["joining"])  # fmt: skip


def heart(data: Path | None) -> Iterator[Figure]:
    """Four hospitals of the UCI heart disease data."""
    command = "make figures ONLY=heart"
    if data is None or not data.is_dir():
        reason = "skipped: give the data folder with --data or MEDFED_DATA (docs/heart-disease.md says where to get it)"
        yield Figure("heart disease, 4 hospitals", "", reason, "", command, None)
        return
    from medfed.applications.heart import figures

    for row in figures(data):
        yield Figure(row["claim"], row["target"], row["measured"], row["n"], command, row["holds"])


def crash(data: Path | None) -> Iterator[Figure]:
    """kill -9 at seeded points, restarted each time."""
    from test_kill import kill_run

    for method in ("newton", "scaffold"):
        for late in ("no", "drawn"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    kills, where = kill_run(Path(folder), method, late, 50, seed=11)
                    sealing = sum(
                        n for name, n in where.items() if name.startswith(("insert into", "begin", "commit", "delete"))
                    )
                    measured, holds = "0 deviations", True
                    n = f"{kills} kills, {sealing} of them inside the sealing transaction"
                except AssertionError as problem:
                    measured, holds, n = f"deviation: {str(problem)[:80]}", False, ""
            yield Figure(f"{method}, late sites {late}: bytes and charges after kills", "0 deviations", measured, n,
                         "make figures ONLY=crash", holds)  # fmt: skip


def tests_passed(path: str) -> tuple[str, bool]:
    """How many tests of a file passed, and whether all did."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip().split("\n")[-1].strip(" ="), done.returncode == 0


def gate(data: Path | None) -> Iterator[Figure]:
    """Attacks on gate and ledger."""
    for name in ("test_gate.py", "test_ledger.py", "test_attacks.py"):
        path = f"tests/federation/{name}"
        passed, holds = tests_passed(path)
        yield Figure(f"attacks held, {name}", "all", passed, "", f"pytest {path}", holds)


def secure(data: Path | None) -> Iterator[Figure]:
    """Secure sums: what the coordinator sees, and 1,000 random pairs of questions that differ by little."""
    path = "tests/federation/test_what_the_coordinator_sees.py"
    passed, holds = tests_passed(path)
    yield Figure("a site's terms in all that the coordinator saw", "none", passed, "", f"pytest {path}", holds)
    from differencing_attacks import ATTACKS, revealed

    names = list(ATTACKS)
    counts = dict.fromkeys(names, 0)
    for seed in range(PAIRS):
        name = names[seed % len(names)]
        with tempfile.TemporaryDirectory() as folder:
            counts[name] += revealed(Path(folder), 1000 + seed, name)[0]
    for name, found in counts.items():
        tried = len(range(names.index(name), PAIRS, len(names)))
        yield Figure(f"counts under the minimum revealed: {name}", "0", str(found), f"{tried} random pairs",
                     "make figures ONLY=secure", found == 0)  # fmt: skip


def speed(data: Path | None) -> Iterator[Figure]:
    """Rounds in the embedded engine."""
    from embedded_rounds import mathematics, whole_rounds

    for method, aim in (("FedAvg", 3.0), ("SCAFFOLD", 4.0)):
        whole, engine, study = whole_rounds(100, method, "process", 60)
        alone = mathematics(engine, study, method, 15, stacked=True)
        yield Figure(f"{method}, 100 sites, 7 local steps, plain sums: a whole round", f"aim {aim:g} ms", f"{whole:.1f} ms",
                     f"mathematics alone {alone:.2f} ms", "python benchmarks/embedded_rounds.py", whole <= aim)  # fmt: skip
    secure, _, _ = whole_rounds(4, "FedAvg", "process", 30, sums="strongest")
    plain, _, _ = whole_rounds(4, "FedAvg", "process", 30)
    yield Figure("FedAvg, 4 sites, secure sums: a whole round", "beside plain sums", f"{secure:.1f} ms",
                 f"plain {plain:.1f} ms", "python benchmarks/embedded_rounds.py", True)  # fmt: skip


def statistics(data: Path | None) -> Iterator[Figure]:
    """Every figure of docs/for-statisticians.md, then each kind of model and test, beside pooled statsmodels, scipy and pandas."""
    import statistics_page
    import statistics_pooled

    for claim, pooled, measured, difference, holds in statistics_page.rows():
        yield Figure(claim, pooled, measured, difference, statistics_page.COMMAND, holds)
    for claim, target, measured, n, holds in statistics_pooled.rows():
        yield Figure(claim, target, measured, n, statistics_pooled.COMMAND, holds)


def survival(data: Path | None) -> Iterator[Figure]:
    """Survival beside statsmodels and lifelines: 67 dialysis centres and the NCCTG lung cancer trial."""
    from survival import COMMAND, rows

    for claim, target, measured, n, holds in rows():
        yield Figure(claim, target, measured, n, COMMAND, holds)


def privacy(data: Path | None) -> Iterator[Figure]:
    """Accountants beside published values; heart disease and readmission with diabetes under an epsilon."""
    from privacy_accounts import measured

    for row in measured():
        if row.holds is not None:
            yield Figure(row.claim, row.target, row.measured, "", "python benchmarks/privacy_accounts.py", row.holds)
    command = "python benchmarks/private_heart.py"
    if data is None or not data.is_dir():
        yield Figure("heart disease under an epsilon", "", "skipped: give the data folder with --data or MEDFED_DATA", "",
                     command, None)  # fmt: skip
        return
    import numpy as np
    from private_heart import EPSILONS, TABLES, TARGETS, measure

    from medfed.errors import MedfedError

    for name, (title, load, draws) in TABLES.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                study, tables = load(data, Path(folder) / "made")
            except (OSError, MedfedError) as problem:
                yield Figure(title, "", f"skipped, its files are not there ({problem})", "", command, None)
                continue
            areas = measure(study, tables, draws)
        exact = float(np.median(areas[None, "exact"]))
        for epsilon in EPSILONS:
            for kind, said in (("plain", "full noise at each site"), ("shares", "secure sums, shares")):
                found = float(np.median(areas[epsilon, kind]))
                yield Figure(f"{name}, epsilon {epsilon:g}, {said}", f"loss at most {TARGETS[epsilon]}",
                             f"AUC {found:.3f}, {exact:.3f} without noise", f"median of {draws} draws", command,
                             exact - found <= TARGETS[epsilon])  # fmt: skip


SECTIONS: dict[str, Callable[[Path | None], Iterator[Figure]]] = {
    "demo": demo,
    "heart": heart,
    "crash": crash,
    "gate": gate,
    "secure": secure,
    "speed": speed,
    "statistics": statistics,
    "survival": survival,
    "privacy": privacy,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SECTIONS))
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ["MEDFED_DATA"]) if "MEDFED_DATA" in os.environ else None
    )
    options = parser.parse_args()
    missed = 0
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            print(f"\n{name}: {section.__doc__}", flush=True)
            for row in section(options.data):
                mark = {True: "ok  ", False: "MISS", None: "skip"}[row.holds]
                missed += row.holds is False and not row.target.startswith("aim")
                print(f"{mark} {row.claim:58} {row.target:24} {row.measured:28} {row.n}   [{row.command}]", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
