"""The network demo: a coordinator and four sites as processes of their own, kills in the middle, the same bits in the end."""

import json
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.applications.heart.exports import prepare as prepare_heart
from medfed.applications.heart.exports import read_study as heart_study
from medfed.applications.indomethacin.examples import example
from medfed.applications.indomethacin.exports import write_exports
from medfed.applications.indomethacin.walkthrough import HOSPITALS, set_up_site
from medfed.applications.network.officer import build_and_approve
from medfed.applications.network.party import Party, copy_site, free_port, separate_users, wait_until
from medfed.canonical import pack
from medfed.engines.site_roster import ROSTER_FILE
from medfed.engines.standing import network_standing
from medfed.errors import MedfedError
from medfed.evaluation.consortium_run import run_consortium
from medfed.federation.store import RunnerStore
from medfed.study import Study, load_study

MARK = ".medfed-network-demo"
CALLS_BEFORE_THE_KILLS = 3

# What there is to see, told in the reader's language where it is shown.
CONNECTED = "{count} sites are connected over mutual TLS after {seconds} s"
KILLED_SITE = "kill -9 of {count} processes of {site}, after {calls} calls"
KILLED_COORDINATOR = "kill -9 of {count} processes of the coordinator, the runner among them"
WAITED_FOR = "medfed status: {site} is waited for: {why}"
ANSWERS = "medfed status: {site} answers"
THE_RUN_IS = "medfed status: the run is {state}"
SAME = "{study}: {seconds} s, counted {sites}, the same bits"
OTHER = "{study}: {seconds} s, counted {sites}, NOT the same bits"
NOTHING_LEFT = "no process and no port is left"


@dataclass(frozen=True)
class Said:
    """One thing that was done. title: an English sentence for translation; lines: what there is to see."""

    title: str
    lines: tuple[str, ...] = ()


Say = Callable[[Said], None]


@dataclass(frozen=True)
class Compared:
    """One study over the network and in one process. same: whether the results' bytes are equal."""

    study: str
    sites: tuple[str, ...]
    same: bool
    bytes: int
    seconds: float
    faults: tuple[str, ...]
    report: Path


@dataclass(frozen=True)
class Found:
    """What the demo found. users: system users in use; left: what was still there after the stop (nothing, if all is well)."""

    folder: Path
    port: int
    users: int
    compared: tuple[Compared, ...]
    left: tuple[str, ...]


class Demo:
    """The parties of one consortium below a folder, and what they do."""

    def __init__(
        self, folder: Path, name: str, sites: Sequence[str], studies: Sequence[Study], say: Say, lang: str = "en"
    ) -> None:
        self.folder = folder
        self.name = name
        self.studies = studies
        self.say = say
        self.port = free_port()
        folder.chmod(0o711)
        numbers, self.why_one_user = separate_users(folder, len(sites) + 1)
        speaks = {"MEDFED_LANG": lang}
        self.coordinator = Party("coordinator", folder / "coordinator-machine", numbers[0], speaks)
        self.sites = {
            site: Party(site, folder / "sites" / site, numbers[i + 1], speaks) for i, site in enumerate(sites)
        }

    def set_up(self) -> None:
        """consortium.yaml, kits, every site joins; services start; until all are connected."""
        home = self.coordinator.folder
        home.mkdir()
        self.coordinator.give()
        (self.folder / "sites").chmod(0o711)
        for site in self.sites.values():
            site.give()
        self.coordinator.type(
            "consortium", "init", str(home), "--name", self.name, "--host", "localhost", "--port", str(self.port)
        )
        self.coordinator.type("coordinator", "start", "-c", str(home))
        kits = self._each(lambda site: self.coordinator.ask("consortium", "invite", site.name, "-c", str(home)))
        self.say(Said("The coordinator sets up the consortium and makes a sealed kit for each site",
                      tuple(f"{name}: {kit['fingerprint']}" for name, kit in kits.items())))  # fmt: skip

        def joins(site: Party) -> str:
            kit = kits[site.name]
            handed = site.folder / "handed-over.kit"
            shutil.copyfile(kit["kit"], handed)
            if site.user is not None:
                shutil.chown(handed, site.user, site.user)
            site.type(
                "site",
                "join",
                str(handed),
                str(site.folder),
                "--code",
                kit["code"],
                "--fingerprint",
                kit["fingerprint"],
            )
            handed.unlink()
            return site.type("site", "start", str(site.folder)).strip()

        lines = self._each(joins)
        took = wait_until(lambda: self.connected() == set(self.sites), 90, "that all sites are connected")
        self.say(Said("Every site joins with its kit and starts its service; connections go out from the sites only",
                      (*lines.values(), CONNECTED.format(count=len(self.sites), seconds=f"{took:.0f}"))))  # fmt: skip

    def approve(self) -> None:
        """Propose the studies; the sites' officers decide."""
        home = self.coordinator.folder
        for study in self.studies:
            path = home / f"{study.name}.yaml"
            path.write_text(study.model_dump_json())
            if self.coordinator.user is not None:
                shutil.chown(path, self.coordinator.user, self.coordinator.user)
            wait_until(lambda path=path: self.has_arrived(path), 90, f"that every site has the proposal {study.name}")
        officer = "medfed.applications.network.officer"
        approved = self._each(lambda site: site.type(str(site.folder), module=officer).split())
        self.say(Said("The studies are proposed; every site reads its inbox, builds its table and approves by hash",
                      tuple(f"{site}: {', '.join(names)}" for site, names in approved.items())))  # fmt: skip

    def has_arrived(self, path: Path) -> bool:
        """Propose a study; whether all sites have it. Just after they joined, the line to them may be laid anew."""
        home = str(self.coordinator.folder)
        found = self.coordinator.ask("consortium", "propose", str(path), "-c", home)["sites"]
        return all(site["state"] != "away" for site in found.values())

    def run(self, study: Study, *, kill: str | None) -> tuple[dict[str, Any], float, tuple[str, ...]]:
        """Run a study; with ``kill``, that site and the coordinator are killed in the middle and started again."""
        home, started = self.coordinator.folder, time.monotonic()
        words = ("-c", str(home), "--json")
        process = self.coordinator.start("run", f"{study.name}.yaml", "--run", study.name, *words)
        if kill is None:
            return json.loads(self.coordinator.finish(process, "run")), time.monotonic() - started, ()
        site, said = self.sites[kill], []
        wait_until(
            lambda: self.calls(study.name) >= CALLS_BEFORE_THE_KILLS or process.poll() is not None,
            120,
            "that the run is under way",
        )
        said.append(KILLED_SITE.format(count=site.kill(), site=kill, calls=self.calls(study.name)))
        if process.poll() is not None:
            raise MedfedError("the run ended before anything was killed: " + self.coordinator.finish(process, "run"))
        wait_until(lambda: kill in self.waited_for(), 60, f"that {kill} is waited for")
        said.append(self.status_line(kill))
        process.kill()
        process.communicate()
        said.append(KILLED_COORDINATOR.format(count=self.coordinator.kill() + 1))
        state = self.coordinator.ask("status", "-c", str(home))["runs"][-1]["state"]
        said.append(THE_RUN_IS.format(state=state))
        self.coordinator.type("coordinator", "start", "-c", str(home))
        site.type("site", "start", str(site.folder))
        self.say(
            Said("One site and the coordinator are killed in the middle of the run, and started again", tuple(said))
        )
        process = self.coordinator.start("resume", study.name, *words)
        report = json.loads(self.coordinator.finish(process, "resume"))
        return report, time.monotonic() - started, tuple(said)

    def calls(self, run: str) -> int:
        """Calls that the runner has journaled, from its store."""
        question = "select count(*) from journal where run=? or run like ?"
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=1)) as db:
            return int(db.execute(question, (run, f"{run}/%")).fetchone()[0])
        return 0

    def waited_for(self) -> dict[str, Any]:
        """Sites that `medfed status` says are away and waited for."""
        runs = self.coordinator.ask("status", "-c", str(self.coordinator.folder))["runs"]
        return {wait["site"]: wait for run in runs for wait in run["waits"] if wait["state"] == "away"}

    def status_line(self, site: str) -> str:
        wait = self.waited_for().get(site)
        return WAITED_FOR.format(site=site, why=wait["why"]) if wait else ANSWERS.format(site=site)

    @property
    def store(self) -> Path:
        return self.coordinator.folder / "coordinator" / "runner.db"

    def connected(self) -> set[str]:
        found = network_standing(self.coordinator.folder / "coordinator")
        return {site.name for site in found.sites if site.state == "connected"} if found else set()

    def result(self, run: str) -> bytes:
        """A run's result as it is stored."""
        return _result(self.coordinator.folder / "coordinator", run)

    def stop(self) -> tuple[str, ...]:
        """Stop every service; what is left of processes and ports."""
        self._each(lambda site: site.type("site", "stop", str(site.folder)))
        self.coordinator.type("coordinator", "stop", "-c", str(self.coordinator.folder))
        return self.left()

    def left(self) -> tuple[str, ...]:
        found = [
            f"process {p.pid} of {party.name}"
            for party in (self.coordinator, *self.sites.values())
            for p in party.processes()
        ]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                found.append(f"port {self.port}")
        return tuple(found)

    def _each(self, do: Callable[[Party], Any]) -> dict[str, Any]:
        """For all sites at the same time."""
        with ThreadPoolExecutor(len(self.sites)) as pool:
            return dict(zip(self.sites, pool.map(do, self.sites.values()), strict=True))


def _result(coordinator: Path, run: str) -> bytes:
    store = RunnerStore(coordinator, read_only=True)
    try:
        found = store.result(run)
    finally:
        store.close()
    if found is None:
        raise MedfedError(f"{coordinator}: run {run!r} has no result")
    return pack(found)


def in_one_process(folder: Path, sites: Mapping[str, Path], study: Study) -> bytes:
    """The same study over copies of the site folders on the embedded engine: the result's bytes."""
    for path in sites.values():
        build_and_approve(path, study)
    run_consortium(folder, study, study.name)
    return _result(folder / "coordinator", study.name)


def prepare(folder: Path) -> None:
    """Empty the folder. MedfedError where something else than an earlier demo made it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise MedfedError(f"{folder} is not empty and was not made by the network demo; choose another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).write_text("made by the network demo; a later one replaces it\n")


def walk(folder: Path, say: Say, *, heart: Path | None = None, lang: str = "en") -> Found:
    """Indomethacin, and heart where ``heart`` holds its files; each over a network of its own. lang: the commands'."""
    prepare(folder)
    first = folder / "indomethacin"
    first.mkdir()
    write_exports(first)
    for name in HOSPITALS:
        set_up_site(first, name)
    studies = [load_study(example(name) / "study.yaml") for name in ("indomethacin", "ercp-risk")]
    found = [_one(first, "indomethacin-trial", HOSPITALS, studies, say, killed="indiana", lang=lang)]
    if heart is not None:
        second = folder / "heart"
        second.mkdir()
        names = list(prepare_heart(heart, second))
        found.append(_one(second, "heart-disease", names, [heart_study()], say, killed=None, lang=lang))
    return Found(
        folder,
        found[0].port,
        found[0].users,
        tuple(c for f in found for c in f.compared),
        tuple(x for f in found for x in f.left),
    )


def _one(
    folder: Path,
    name: str,
    sites: Sequence[str],
    studies: Sequence[Study],
    say: Say,
    *,
    killed: str | None,
    lang: str,
) -> Found:
    alone = folder / "one-process"
    for site in sites:
        (alone / "sites" / site).mkdir(parents=True)
        copy_site(folder / "sites" / site, alone / "sites" / site)
    if (folder / ROSTER_FILE).exists():
        shutil.copy2(folder / ROSTER_FILE, alone / ROSTER_FILE)
    demo = Demo(folder, name, sites, studies, say, lang)
    if demo.why_one_user:
        say(Said("One system user for all parties", (demo.why_one_user,)))
    compared = []
    try:
        demo.set_up()
        demo.approve()
        for index, study in enumerate(studies):
            report, seconds, faults = demo.run(study, kill=killed if index == 0 else None)
            counted = tuple(site["name"] for site in report["sites"] if site["counted"])
            over_network, run = demo.result(study.name), study.name
            page = demo.coordinator.folder / "coordinator" / "runs" / run / "report.html"
            alone_bytes = in_one_process(alone, {site: alone / "sites" / site for site in sites}, study)
            compared.append(
                Compared(study.name, counted, over_network == alone_bytes, len(over_network), seconds, faults, page)
            )
            line = (SAME if compared[-1].same else OTHER).format(
                study=study.name, seconds=f"{seconds:.1f}", sites=", ".join(counted)
            )
            say(Said("The study has run over the network, and again in one process", (line,)))
    finally:
        left = demo.stop()
    say(Said("Everything is stopped", left or (NOTHING_LEFT,)))
    return Found(folder, demo.port, 1 if demo.why_one_user else len(sites) + 1, tuple(compared), left)
