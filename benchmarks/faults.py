"""Kills, stops and a lying line under a run between processes: what happened, when it was seen, when it was over.

    python benchmarks/faults.py [--method newton|scaffold|both] [--faults 20] [--seed 1] [--messages]

Runs 50 rounds over a network on this machine, quietly and then with seeded faults, one after another while the run goes on:
``kill -9`` and SIGSTOP (12 s) of a site's job, a site's parent, a site's service, a step, the server's job, the server's
parent, the coordinator's service, and ``kill -9`` of the runner; what a person or systemd would start again is started again.
Then once more with every message passing a proxy that delays, loses, resets, duplicates, corrupts and replays. Final
bytes, ledger rows, charges and rounds have to be those of the quiet run.
"""

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faults_runner import ROUNDS, SITES, study_of
from line_faults import FaultyLine
from loopback import Loopback, write_site

from medfed.canonical import pack
from medfed.engines.standing import network_standing
from medfed.federation.ledger import open_store, released
from medfed.federation.status import status_of
from medfed.federation.store import RunnerStore

STOPPED_FOR = 12.0
KILLED = (
    "site job",
    "site parent",
    "site service",
    "step",
    "server job",
    "server parent",
    "coordinator service",
    "runner",
)
STOPPED = ("site job", "site parent", "site service", "step", "server job", "server parent", "coordinator service")
STARTED_AGAIN_AFTER = 1.0
NOTICED_WITHIN = 8.0  # what was not noticed by then has hurt nobody


@dataclass
class Happened:
    """One fault. seen, over: seconds after it; how: what the status said first."""

    fault: str
    call: int
    seen: float | None = None
    how: str = ""
    over: float | None = None


@dataclass
class Outcome:
    """What is compared: the result's bytes, what each site's ledger holds of the run, rounds."""

    result: bytes
    ledger: dict[str, list[tuple[str, int, int, int, float]]]
    rounds: int


@dataclass
class Bench:
    net: Loopback
    method: str
    seed: int
    pace: float = 0.15
    runner: subprocess.Popen[bytes] | None = None
    happened: list[Happened] = field(default_factory=list)

    def start_runner(self, run: str, relay: str = "") -> None:
        script = Path(__file__).parent / "faults_runner.py"
        self.runner = subprocess.Popen(
            [sys.executable, str(script), str(self.net.folder), self.method, run, str(self.pace), relay]
        )

    def finish(self, seconds: float = 900) -> None:
        assert self.runner is not None
        if self.runner.wait(seconds) != 0:
            raise RuntimeError(f"the run stopped: {status_of(self.net.folder / 'coordinator')[-1].reason}")

    def calls(self, run: str) -> int:
        path = self.net.folder / "coordinator" / "runner.db"
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2)) as db:
            return int(db.execute("select count(*) from journal where run=?", (run,)).fetchone()[0])
        return 0

    def outcome(self, run: str) -> Outcome:
        study = study_of(self.method)
        store = RunnerStore(self.net.folder / "coordinator", read_only=True)
        result, saved = store.result(run), store.checkpoint(run)
        store.close()
        assert result is not None
        assert saved is not None
        ledger = {}
        for site in SITES:
            with closing(open_store(self.net.site(site).site.ledger_path, "call")) as db:
                ledger[site] = [
                    (r.step, r.calls, r.values, r.bytes, r.charge) for r in released(db, site, study.hash, run)
                ]
        return Outcome(pack(result), ledger, saved[0])

    def quiet(self) -> tuple[Outcome, float]:
        start = time.monotonic()
        self.start_runner(f"quiet-{self.method}")
        self.finish()
        return self.outcome(f"quiet-{self.method}"), time.monotonic() - start

    # -- faults ------------------------------------------------------------------------------------------------------

    def with_faults(self, count: int) -> Outcome:
        """A run with ``count`` seeded faults spread over its calls."""
        rng, run = random.Random(self.seed), f"faults-{self.method}"
        plan = [("kill", kind) for kind in KILLED] + [("stop", kind) for kind in STOPPED]
        while len(plan) < count:
            plan.append(("kill", rng.choice(KILLED)))
        rng.shuffle(plan)
        places = sorted(rng.sample(range(1, ROUNDS - 1), min(len(plan), ROUNDS - 2)))
        self.permit(places[0])
        self.start_runner(run)
        for place, (act, kind) in zip(places, plan, strict=False):
            self.permit(place)
            self.wait_for_call(run, place)
            time.sleep(rng.random() * self.pace)
            site = rng.choice(SITES)
            self.one_fault(run, act, kind, site)
        self.permit(None)
        self.finish()
        return self.outcome(run)

    def permit(self, calls: int | None) -> None:
        """Let the runner make so many calls and no more; None: all."""
        path = self.net.folder / "permit"
        path.write_text(str(calls)) if calls is not None else path.unlink(missing_ok=True)

    def wait_for_call(self, run: str, place: int) -> None:
        end = time.monotonic() + 300
        while self.calls(run) < place:
            assert self.runner is not None
            if self.runner.poll() is not None and self.runner.returncode != 0:
                self.finish()
            if time.monotonic() > end:
                raise RuntimeError(f"call {place} was not reached: {status_of(self.net.folder / 'coordinator')[-1]}")
            time.sleep(0.02)

    def one_fault(self, run: str, act: str, kind: str, site: str) -> None:
        """Do it, watch until it is seen and until the run has gone on, print a row."""
        at_site = kind in ("site job", "site parent", "site service", "step")
        what = f"{'kill -9' if act == 'kill' else f'SIGSTOP {STOPPED_FOR:g} s'} {kind}" + (
            f" of {site}" if at_site else ""
        )
        happened = Happened(what, self.calls(run))
        start = time.monotonic()
        self.permit(happened.call + 1)
        sign = signal.SIGKILL if act == "kill" else signal.SIGSTOP
        if kind == "runner":
            assert self.runner is not None
            self.runner.send_signal(sign)
            self.runner.wait()
        else:
            self.net.signal(kind, site, sign)
        if act == "stop":
            threading.Timer(STOPPED_FOR, lambda: self.net.signal(kind, site, signal.SIGCONT)).start()
        restarted = False
        while True:
            passed = time.monotonic() - start
            if happened.seen is None and (seen := self.seen(run, kind, site)):
                happened.seen, happened.how = passed, seen
            if act == "kill" and not restarted and passed > STARTED_AGAIN_AFTER:
                restarted = True
                if kind == "site service":
                    self.net.start_site(site)
                elif kind == "coordinator service":
                    self.net.start_coordinator()
                elif kind == "runner":
                    self.start_runner(run)
            if happened.over is None and self.calls(run) > happened.call:
                happened.over = passed  # the call that was hit has been answered
            noticed = happened.seen is not None or passed > NOTICED_WITHIN
            if happened.over and self.healthy() and noticed and passed > (STOPPED_FOR + 1 if act == "stop" else 1.5):
                break
            if passed > 240:
                break
            time.sleep(0.05)
        self.happened.append(happened)
        seen_text = f"{happened.seen:6.1f} s" if happened.seen is not None else "   never"
        over_text = f"{happened.over:6.1f} s" if happened.over is not None else "NOT OVER"
        print(f"{what:44} call {happened.call:3}  seen {seen_text}  over {over_text}  {happened.how[:70]}", flush=True)

    def healthy(self) -> bool:
        return self.net.connected() == set(SITES)

    def seen(self, run: str, kind: str, site: str) -> str:
        """What the status says that is not as it is in quiet times."""
        for status in status_of(self.net.folder / "coordinator"):
            if status.run == run:
                if status.state != "running":
                    return f"run {status.state}"
                for wait in status.waits:
                    if wait.state == "away":
                        return f"{wait.site}: {wait.why}"
        standing = network_standing(self.net.folder / "coordinator")
        if standing is None or not standing.served:
            return "the coordinator's service is not running"
        if standing.dispatcher != "running":
            return f"dispatcher {standing.dispatcher}"
        for found in standing.sites:
            if found.state != "connected":
                return f"{found.name} {found.state}: {found.why}"
        return ""

    def with_messages(self) -> tuple[Outcome, dict[str, int]]:
        """A run whose every message passes a faulty line."""
        run = f"line-{self.method}"
        line = FaultyLine(self.net.network.relay, self.net.folder / "line", seed=self.seed)
        line.start()
        try:
            self.start_runner(run, str(line.at))
            self.finish()
        finally:
            line.stop()
        return self.outcome(run), dict(line.counts)


def compare(name: str, quiet: Outcome, found: Outcome) -> list[str]:
    """What differs from the quiet run."""
    different = []
    if found.result != quiet.result:
        different.append(f"{name}: the result's bytes differ")
    if found.ledger != quiet.ledger:
        different.append(f"{name}: the ledgers differ: {found.ledger} against {quiet.ledger}")
    if found.rounds != quiet.rounds:
        different.append(f"{name}: {found.rounds} rounds, quiet {quiet.rounds}")
    return different


def run_bench(folder: Path, methods: list[str], *, faults: int, seed: int, messages: bool) -> Iterator[str]:
    """All of it over one network; yields what differs."""
    for index, site in enumerate(SITES):
        write_site(folder, site, 200 + 17 * index, seed=index)
    net = Loopback(folder, SITES, [study_of(method) for method in methods])
    net.set_up()
    print(f"four sites and a coordinator connected after {net.up():.0f} s", flush=True)
    try:
        for method in methods:
            bench = Bench(net, method, seed)
            quiet, seconds = bench.quiet()
            rows = sum(row[1] for found in quiet.ledger.values() for row in found)
            print(f"\n{method}: {quiet.rounds} rounds, quiet {seconds:.0f} s, {rows} releases", flush=True)
            start = time.monotonic()
            if faults:
                yield from compare(f"{method}, faults", quiet, bench.with_faults(faults))
                print(f"{method}: {len(bench.happened)} faults, {time.monotonic() - start:.0f} s", flush=True)
            if messages:
                found, counts = bench.with_messages()
                yield from compare(f"{method}, messages", quiet, found)
                print(f"{method}, faulty line: " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items())), flush=True)
    finally:
        net.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("newton", "scaffold", "both"), default="both")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", action="store_true", help="the faulty line only")
    asked = parser.parse_args()
    methods = ["newton", "scaffold"] if asked.method == "both" else [asked.method]
    with tempfile.TemporaryDirectory() as folder:
        faults = 0 if asked.messages else asked.faults
        different = list(run_bench(Path(folder), methods, faults=faults, seed=asked.seed, messages=True))
    for line in different:
        print(line)
    print(
        "\nresult: "
        + ("DIFFERENT" if different else "final bytes, ledger rows, charges and rounds equal the quiet run's")
    )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
