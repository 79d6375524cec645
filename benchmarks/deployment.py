"""A sealed sum over a network beside bare NVFLARE, pair by pair; a whole study from command to report; memory.

    python benchmarks/deployment.py [--only 10kb,1mb,10mb,100mb,study,memory,400mb] [--pairs 50]

Both networks run on this machine, four sites each, mutual TLS on loopback. Bare: the server calls four per-site proxies in
parallel with the same number of bytes, and they give them back. Sealed: a plain ``sum`` with as many bytes in and out,
durability ``call``: signed, judged, sealed on disk at each site, journaled at the coordinator.
"""

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bare_relay
import medfed_test_plugin.echo as echo_steps
import numpy as np
import psutil
from loopback import Loopback, free_port, synthetic, write_site
from medfed_test_plugin.echo import SIZES, Echo
from nvflare.fuel.flare_api.flare_api import new_secure_session

from medfed.engines.nvflare import workspace
from medfed.engines.nvflare.certificates import ADMIN
from medfed.engines.nvflare.engine import Networked
from medfed.engines.nvflare.processes import end_tree, nvflare_environment, spawn
from medfed.federation.runner import Runner

SITES = ("alpha", "beta", "gamma", "delta")
LIMITS = {"10kb": 1.25, "1mb": 1.25, "10mb": 1.4, "100mb": 1.5}
FEWER_PAIRS = {"10mb": 0.6, "100mb": 0.1}
COMMITS_ALLOWED = 3


def commit_milliseconds(folder: Path) -> float:
    """Median time of one synced SQLite commit where the sites' stores lie."""
    times = []
    with closing(sqlite3.connect(folder / "commit.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute("create table t(x)")
        for _ in range(40):
            start = time.perf_counter()
            db.execute("insert into t values(1)")
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


class BareNetwork(Loopback):
    """The same certificates and processes, with NVFLARE's objects only, and nobody who watches the job."""

    def start_coordinator(self) -> None:
        """NVFLARE's server alone."""
        network = self.network
        environment = nvflare_environment(network.run.resolve(), MEDFED_CONSORTIUM=str(self.folder.resolve()))
        command = [
            sys.executable, "-u", "-m", "nvflare.private.fed.app.server.server_train", "-m", str(network.server.resolve()),
            "-s", "fed_server.json", "--set", "secure_train=true", "org=medfed", "config_folder=config",
        ]  # fmt: skip
        network.run.mkdir(exist_ok=True)
        self.server = spawn(command, network.folder / "nvflare.log", environment, cwd="/")

    def submit(self) -> None:
        """The job, once all sites are there."""
        session = new_secure_session(ADMIN, str(self.network.admin.resolve()), timeout=20.0)
        self.until(lambda: len(session.get_system_info().client_info) == len(self.sites), 90)
        session.submit_job(str(self.network.job.resolve()))
        session.close()
        try:
            self.until(lambda: (self.network.run / "bare").exists(), 60)
        except TimeoutError:
            for log in (
                self.network.folder / "nvflare.log",
                *self.network.server.rglob("*.txt"),
                self.site(self.sites[0]).folder / "nvflare.log",
            ):
                print(log.read_text()[-2000:])
            raise
        time.sleep(3.0)

    def down(self) -> None:
        super().down()
        end_tree(self.server)

    def set_up(self) -> None:
        super().set_up()
        for path in (self.network.server, *(self.site(name).workspace for name in self.sites)):
            file = path / "local" / "resources.json"
            text = file.read_text().replace("medfed.engines.nvflare.relay.CoordinatorRelay", "bare_relay.BareServer")
            file.write_text(text.replace("medfed.engines.nvflare.relay.SiteRelay", "bare_relay.BareSite"))
        for name in ("config_fed_server.json", "config_fed_client.json"):
            file = self.network.job / "app" / "config" / name
            text = file.read_text().replace(f"{workspace.RELAYS}.CoordinatorRelay", "bare_relay.BareServer")
            text = text.replace(f"{workspace.RELAYS}.SiteRelay", "bare_relay.BareSite")
            file.write_text(text.replace('"at": "door"', "").replace('"at": "relay"', '"at": "bare"'))


@dataclass
class Pairs:
    """A method of the benchmark: in each round one sealed sum and one or two bare calls, in turns."""

    size: str
    count: int
    bare: Path
    sealed: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)

    steps = Echo.steps

    def start(self, study: Any) -> dict[str, Any]:
        return {"done": 0}

    def advance(self, federation: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        step = getattr(echo_steps, f"echo_{self.size}")
        model = np.random.default_rng(state["done"]).random(SIZES[self.size])
        size = 8 * SIZES[self.size]
        order = [0, 1, 2] if state["done"] % 2 else [2, 1, 0]
        for which in order:
            if which == 1:
                start = time.perf_counter()
                federation.sum(step, model=model)
                self.sealed.append(time.perf_counter() - start)
            else:
                (self.plain if which == 0 else self.again).append(bare_relay.ask(self.bare, size))
        return {"done": state["done"] + 1}

    def done(self, state: Mapping[str, Any]) -> bool:
        return int(state["done"]) >= self.count

    def result(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}


def measure(net: Loopback, study: Any, bare: Path, size: str, pairs: int, commit: float) -> bool:
    """Print one row; whether it is within its limit."""
    count = max(int(pairs * FEWER_PAIRS.get(size, 1.0)), 5)
    method = Pairs(size, count + 1, bare)
    engine = Networked(net.folder, study)
    runner = Runner(net.folder / "coordinator", engine, study, public_keys=engine.public_keys)
    with closing(engine), closing(runner):
        runner.execute(method, f"speed-{size}-{os.getpid()}")
    sealed, plain, again = (values[1:] for values in (method.sealed, method.plain, method.again))
    # A pair is a sealed call and the mean of the bare ones around it; the median is of the pairs' ratios.
    ratio = statistics.median(s / ((p + a) / 2) for s, p, a in zip(sealed, plain, again, strict=True))
    allowance = COMMITS_ALLOWED * commit / 1000 if commit > 1.0 else 0.0
    base = statistics.median(plain + again)
    allowed = LIMITS[size] + allowance / base
    bare_ratio = statistics.median(p / a for p, a in zip(plain, again, strict=True))
    print(
        f"{size:>6}  bare {1000 * base:9.1f} ms  sealed {1000 * statistics.median(sealed):9.1f} ms  ratio {ratio:.2f} "
        f"(at most {allowed:.2f})  bare against bare {bare_ratio:.2f}  {count} pairs",
        flush=True,
    )
    return ratio <= allowed


@dataclass
class Once:
    """One sum of a size, timed."""

    size: str
    seconds: float = 0.0

    steps = Echo.steps

    def start(self, study: Any) -> dict[str, Any]:
        return {"done": 0}

    def advance(self, federation: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        model = np.random.default_rng(1).random(SIZES[self.size])
        start = time.perf_counter()
        federation.sum(getattr(echo_steps, f"echo_{self.size}"), model=model)
        self.seconds = time.perf_counter() - start
        return {"done": 1}

    def done(self, state: Mapping[str, Any]) -> bool:
        return bool(state["done"])

    def result(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}


def largest(net: Loopback, study: Any) -> None:
    """One sum of 400 MB over four sites, and what the processes that carry it took for it."""
    method = Once("400mb")
    engine = Networked(net.folder, study)
    runner = Runner(net.folder / "coordinator", engine, study, public_keys=engine.public_keys)
    with closing(engine), closing(runner):
        runner.execute(method, f"largest-{os.getpid()}")
    print(f" 400mb  one sum, four sites: {method.seconds:.0f} s; after it:", flush=True)
    memory(net)


def memory(net: Loopback) -> None:
    """Print the peak resident memory of every kind of process so far."""
    for kind in (
        "server job",
        "server parent",
        "coordinator service",
        "site job",
        "site parent",
        "site service",
        "step",
    ):
        found = [
            p
            for site in (SITES if kind.startswith("si") or kind == "step" else ("",))
            for p in net.processes(kind, site)
        ]
        peaks = [_peak(process) for process in found]
        if peaks:
            print(f"  {kind:20} peak {max(peaks) / 2**20:7.0f} MB  ({len(peaks)} processes)", flush=True)


def _peak(process: psutil.Process) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def whole_study(net: Loopback, study: Any, times: int = 5) -> bool:
    """From the command's start to the report file, on a running consortium."""
    path = net.folder / "study.yaml"
    path.write_text(study.model_dump_json())
    seconds = []
    for index in range(times + 1):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "medfed", "run", str(path), "-c", str(net.folder), "--run", f"study-{index}", "--json"],
            capture_output=True, check=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        report = net.folder / "coordinator" / "runs" / f"study-{index}" / "report.html"
        assert report.exists(), done.stderr
    median = statistics.median(seconds[1:])
    print(f" study  6 Newton rounds, command to report: median {median:.2f} s of {times} (under 3 s)", flush=True)
    return median < 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="10kb,1mb,10mb,100mb,study,memory,400mb")
    parser.add_argument("--pairs", type=int, default=50)
    asked = parser.parse_args()
    only = asked.only.split(",")
    holds = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        echoes = synthetic(SITES, name="echoes", method={"use": "medfed-test-plugin:medfed_test_plugin.echo.Echo"})
        newton = synthetic(
            SITES, name="newton", method={"use": "medfed:medfed.methods.newton.Newton", "settings": {"tolerance": 1e-9}}
        )
        nets = [Loopback(Path(folder), SITES, [echoes, newton])]
        if set(only) & set(LIMITS):
            nets.append(BareNetwork(Path(other), SITES, [], port=free_port()))
        for net in nets:
            for index, site in enumerate(SITES):
                write_site(net.folder, site, 400, seed=index)
                policy = net.folder / "sites" / site / "policy.yaml"
                text = (
                    policy.read_text()
                    .replace("sum: 1.0", "sum: 1000000.0")
                    .replace("  medfed: {}\n", "  medfed: {}\n  medfed-test-plugin: {}\n")
                )
                policy.write_text(
                    text.replace('"medfed:medfed.evaluation.*"', '"medfed:medfed.evaluation.*", "medfed-test-plugin:*"')
                )
            net.set_up()
        try:
            nets[0].up()
            if len(nets) > 1:
                nets[1].start_coordinator()
                for site in SITES:
                    nets[1].start_site(site)
                nets[1].submit()
            commit = commit_milliseconds(Path(folder))
            print(f"one synced commit: {commit:.2f} ms; processors: {os.cpu_count()}", flush=True)
            for size in LIMITS:
                if size in only:
                    holds.append(measure(nets[0], echoes, nets[1].network.run / "bare", size, asked.pairs, commit))
            if "study" in only:
                holds.append(whole_study(nets[0], newton))
            if "memory" in only:
                memory(nets[0])
            if "400mb" in only:
                largest(nets[0], echoes)
        finally:
            for net in nets:
                net.down()
    sys.exit(0 if all(holds) else 1)


if __name__ == "__main__":
    main()
