"""The runner of the fault benchmark, a process that can be killed: faults_runner.py FOLDER METHOD RUN PACE [RELAY]

Runs 50 rounds of a method, with a pause of PACE seconds before each call, so that faults fall between and into them, and
no further than the number in FOLDER/permit, so that one fault is over before the next.
RELAY: another socket in place of the dispatcher's (the fault proxy's).
"""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from loopback import synthetic

from medfed.engines.nvflare.engine import Networked
from medfed.federation.packages import find_method
from medfed.federation.runner import Progress, Runner

ROUNDS = 50
SITES = ("alpha", "beta", "gamma", "delta")
METHODS = {
    "newton": {"use": "medfed:medfed.methods.newton.Newton", "settings": {"tolerance": 1e-9}},
    "scaffold": {
        "use": "medfed:medfed.methods.scaffold.Scaffold",
        "settings": {"rounds": ROUNDS, "batch": 32, "rate": 0.1},
    },
}


def study_of(method: str) -> Any:
    return synthetic(SITES, name=f"synthetic-{method}", method=METHODS[method])


@dataclass(frozen=True)
class Rounds:
    """A method that goes on for a number of rounds, whether it has converged or not."""

    method: Any
    rounds: int

    @property
    def steps(self) -> Any:
        return self.method.steps

    def start(self, study: Any) -> Any:
        return self.method.start(study)

    def advance(self, federation: Any, state: Any) -> Any:
        return self.method.advance(federation, state)

    def done(self, state: Any) -> bool:
        return bool(state.rounds >= self.rounds)

    def result(self, state: Any) -> Any:
        return self.method.result(state)


def permitted(folder: Path) -> int:
    """How many calls may be made; all of them where nobody says."""
    try:
        return int((folder / "permit").read_text())
    except (OSError, ValueError):
        return 10**9


def main(folder: Path, method: str, run: str, pace: float, relay: str) -> None:
    study = study_of(method)

    def listener(progress: Progress) -> None:
        if progress.kind == "asked":
            time.sleep(pace)
            while len(runner.store.calls(run)) >= permitted(folder):
                time.sleep(0.02)

    with closing(Networked(folder, study)) as engine:
        if relay:
            engine.use_relay(Path(relay))
        with closing(
            Runner(folder / "coordinator", engine, study, listener=listener, public_keys=engine.public_keys)
        ) as runner:
            runner.execute(Rounds(find_method(study), ROUNDS), run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else "")
