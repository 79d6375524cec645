"""How long a round takes in the embedded engine: whole rounds beside the mathematics alone.

    python benchmarks/embedded_rounds.py [--sites 4 100 1000] [--rounds 40]

FedAvg and SCAFFOLD with 7 local steps of 32 rows, and Newton, at S sites x 200 rows x 30 features. "whole" is a round
as a run does it: gate, seal, journal, checkpoint; sums are plain, and "secure" is a round of secure sums, in which this one
process does the cryptography of all sites. "twin" is the batched mathematics of the same call, "loop" the same
step site by site, measured in the same process, so ratios hold on a noisy machine. Medians in milliseconds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.federation.call import Call
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.runner import Progress, Runner
from medfed.study import Study, study_from_dict

ROWS, FEATURES = 200, 29
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "FedAvg": ("medfed:medfed.methods.fedavg.FedAvg", {"batch": 32, "rate": 0.1}),
    "SCAFFOLD": ("medfed:medfed.methods.scaffold.Scaffold", {"batch": 32, "rate": 0.1}),
    "Newton": ("medfed:medfed.methods.newton.Newton", {"tolerance": 1e-300}),
}


def study_of(sites: int, method: str, rounds: int, sums: str = "plain") -> Study:
    use, settings = METHODS[method]
    limit = "most_rounds" if method == "Newton" else "rounds"
    variables: dict[str, Any] = {
        "event": {"meaning": "e", "type": "code", "role": "outcome", "codes": {"no": "n", "yes": "y"}, "event": "yes"}
    }
    for index in range(FEATURES):
        variables[f"x{index}"] = {
            "meaning": "x",
            "type": "number",
            "role": "covariate",
            "unit": "1",
            "range": [-20, 20],
        }
    return study_from_dict(
        {
            "medfed": 1,
            "name": "benchmark",
            "title": "Benchmark",
            "question": "How long does a round take?",
            "variables": variables,
            "task": {"kind": "risk_prediction"},
            "method": {"use": use, "settings": {**settings, limit: rounds}},
            "sites": {"invited": [f"s{i:04d}" for i in range(sites)], "minimum": 1},
            "privacy": {"sums": sums},
        }
    )


def tables_of(study: Study) -> dict[str, StudyTable]:
    rng = np.random.default_rng(1)
    beta = rng.normal(size=FEATURES) / 3
    tables = {}
    for site in study.sites.invited:
        x = rng.normal(size=(ROWS, FEATURES)) * 0.8 + rng.normal(size=FEATURES) * 0.2
        event = (rng.random(ROWS) < 1 / (1 + np.exp(-x @ beta))).astype(np.int64)
        tables[site] = StudyTable.from_columns(study, {"event": event, **{f"x{i}": x[:, i] for i in range(FEATURES)}})
    return tables


def whole_rounds(
    sites: int, method_name: str, durability: Any, rounds: int, twins: bool = True, sums: str = "plain"
) -> tuple[float, Any, Study]:
    """Median milliseconds a round, and the engine and study for the mathematics alone."""
    study = study_of(sites, method_name, rounds, sums)
    method = find_method(study)
    times: list[float] = []

    def listen(progress: Progress) -> None:
        if progress.kind == "round":
            times.append(time.perf_counter())

    folder = Path(tempfile.mkdtemp())
    engine, public = what_if(
        folder / "sites", tables_of(study), study, [method], durability=durability, twins=twins,
        policy=Policy(values_per_patient={"sum": 10.0, "count": 1.0, "reply": 1.0}),
    )  # fmt: skip
    runner = Runner(folder / "coordinator", engine, study, durability=durability, listener=listen, public_keys=public)
    try:
        runner.execute(method)
    except Exception as problem:
        if "no convergence" not in str(problem):
            raise
    runner.close()
    gaps = np.diff(times)[2:]
    return 1000 * statistics.median(gaps), engine, study


def mathematics(engine: Any, study: Study, method_name: str, repeats: int, stacked: bool) -> float:
    """Median milliseconds of one call's mathematics: the twin, or the step site by site."""
    door, method = engine.doors[0], find_method(study)
    step = method.steps[1]
    p = len(study.design.columns)
    inputs = {name: np.ones(p) if name == "scale" else np.zeros(p) for name in step.takes}
    call = Call(study.hash, "main", 9, step_name(step), 0, "train", tuple(door.sites), inputs)
    sizes = dict(study.sizes)
    zero = {name: np.zeros(p) for name in (step.keeps.shapes if step.keeps else ())}
    kept = [zero] * len(door.sites) if step.keeps else None
    names = list(door.sites)
    own = dict.fromkeys(names)
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        if stacked:
            door.execution.run_stacked(call, step, sizes, names, kept)
        else:
            door.execution.run_each(call, step, sizes, names, {name: _NoInputs for name in own}, kept)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:])


class _NoInputs:
    each: dict[str, Any] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 100, 1000])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    print(
        f"{'method':10} {'sites':>6} {'process':>9} {'call':>9} {'no twins':>9} {'twin':>8} {'loop':>8} {'secure':>9}   milliseconds a round"
    )
    for method in METHODS:
        for sites in options.sites:
            rounds = options.rounds if sites <= 100 else max(options.rounds // 4, 6)
            process, engine, study = whole_rounds(sites, method, "process", rounds)
            call, _, _ = whole_rounds(sites, method, "call", rounds)
            single, _, _ = whole_rounds(sites, method, "process", max(rounds // 2, 6), twins=False)
            twin = mathematics(engine, study, method, 15, stacked=True)
            loop = mathematics(engine, study, method, 5, stacked=False)
            secure = whole_rounds(sites, method, "process", 8, sums="strongest")[0] if sites <= 100 else float("nan")
            print(
                f"{method:10} {sites:6} {process:9.2f} {call:9.2f} {single:9.2f} {twin:8.2f} {loop:8.2f} {secure:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
