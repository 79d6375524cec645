"""Runs one study in a process that kills itself (SIGKILL) before a chosen database statement or exchange.

usage: kill_worker.py FOLDER METHOD LATE KILL_AT; METHOD newton | scaffold | study | private | shares, or one of them after "secure-", whose sums
are secure; LATE no | drawn; KILL_AT 0 = never.
The statements of both stores are counted through SQLite's own trace, so a kill falls between any two of them,
the sealing transaction's included; no product code knows of it.
"""

import os
import random
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from consortium import GENEROUS, fixed_keys, synthetic_study, synthetic_tables

from medfed.canonical import pack
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.evaluation.study_run import StudyRun
from medfed.federation.budget import Charge
from medfed.federation.call import Failure
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.privacy.accounting import Event

SITES = [f"s{i}" for i in range(6)]
ROWS = [64, 41, 23, 57, 30, 16]
COST = 0.25
CHARGE = Charge(Event(1.0))


class Points:
    """Counts points; kills the process at one of them."""

    def __init__(self, kill_at: int, log: Path) -> None:
        self.count, self.kill_at, self.names = 0, kill_at, {}
        self.log = log

    def reach(self, name: str) -> None:
        self.count += 1
        self.names[name] = self.names.get(name, 0) + 1
        if self.count == self.kill_at:
            self.log.write_text(name)
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, db, store: str) -> None:
        """A point before every statement that writes: begin, each insert, update and delete, commit."""

        def statement(sql: str) -> None:
            if not sql.startswith(("select", "pragma")):
                self.reach(f"{store}: {' '.join(sql.split()[:3])}")

        db.set_trace_callback(statement)


class LateSites:
    """A fault proxy: a quarter of the answers of the first rounds are sealed, and nothing of that arrives. Drawn anew after a restart."""

    def __init__(self, engine, mode: str, points: Points) -> None:
        self.engine, self.mode, self.points = engine, mode, points
        self.sites, self.protections, self.roster = engine.sites, engine.protections, engine.roster
        self.random = random.Random() if mode == "drawn" else None

    def exchange(self, call, own, deadline=None):
        self.points.reach("exchange")
        for site, answer in self.engine.exchange(call, own, deadline):
            if (
                self.random is not None
                and call.phase in ("answer", "seal")
                and call.round <= 8
                and self.random.random() < 0.25
            ):
                answer = Failure("late", "the answer did not come before the deadline")
            yield site, answer


def study_of(method: str):
    """newton, scaffold; private, shares: with noise, in full at each site or spread over them; or study: Newton with its cross-validated evaluation, which runs in children."""
    secure, _, method = method.rpartition("-")
    privacy = {"sums": "strongest" if secure else "plain", "minimum_cell": 1 if secure else 10}
    newton = {"use": "medfed:medfed.methods.newton.Newton", "settings": {"tolerance": 1e-9}}
    scaffold = {"rounds": 12, "participation": 0.7, "batch": 8, "rate": 0.2}
    if method == "scaffold":
        use = {"use": "medfed:medfed.methods.scaffold.Scaffold", "settings": scaffold}
        return synthetic_study(SITES, method=use, privacy=privacy)
    if method in ("private", "shares"):
        fedavg = {
            "use": "medfed:medfed.methods.private_fedavg.PrivateFedAvg",
            "settings": {"rounds": 6, "local_steps": 2 if method == "private" else 1},
        }
        return synthetic_study(SITES, method=fedavg, privacy={"epsilon": 3.0, "sums": privacy["sums"]})
    if method == "study":
        folds = {"kind": "folds", "folds": 2}
        evaluation = {"design": "cross_validation"}
        return synthetic_study(SITES, method=newton, parts=folds, evaluation=evaluation, privacy=privacy)
    return synthetic_study(SITES, method=newton, privacy=privacy)


def main(folder: Path, method_name: str, late: str, kill_at: int) -> None:
    points = Points(kill_at, folder / "killed_at")
    study = study_of(method_name)
    method = StudyRun(study) if method_name.endswith("study") else find_method(study)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    engine, public = what_if(
        folder / "sites", synthetic_tables(study, ROWS), study, [method],
        policy=Policy(values_per_patient=GENEROUS, minimum_cell=1, budget=1e6), keys=fixed_keys(SITES),
        durability="process", clock=lambda: start, charge=lambda call: call.charge or CHARGE,
        accountant=lambda events, delta: COST * sum(events.values()), approved_budget=1e6,
    )  # fmt: skip
    points.watch(engine.doors[0].store.db, "seal")
    proxy = LateSites(engine, late, points)
    while True:
        runner = Runner(
            folder / "coordinator", proxy, study, durability="process", public_keys=public, clock=lambda: start
        )
        points.watch(runner.store.db, "runner")
        try:
            result = runner.execute(method)
            break
        except FederationError as problem:  # nobody answered in time: the same question is asked again
            if "sites answered" not in str(problem) or " late:" not in str(problem):
                raise
        finally:
            runner.store.db.set_trace_callback(None)
            runner.close()
    (folder / "result").write_bytes(pack(result))
    (folder / "points").write_text(
        f"{points.count}\n" + "\n".join(f"{n}\t{c}" for n, c in sorted(points.names.items()))
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
