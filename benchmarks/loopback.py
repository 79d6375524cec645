"""A real network on this machine for benchmarks and tests: a coordinator and sites as processes, over mutual TLS."""

import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from medfed.applications.network.officer import build_and_approve
from medfed.data.site_folder import init_site, load_site
from medfed.engines.nvflare import renewal
from medfed.engines.nvflare.consortium import TEMPLATE, Network
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.join import SiteNetwork, join
from medfed.engines.nvflare.kit import open_kit
from medfed.engines.nvflare.processes import ServiceLock, start_service
from medfed.engines.standing import network_standing
from medfed.federation.keys import write_signing_key
from medfed.federation.policy import POLICY_TEMPLATE
from medfed.study import Study
from medfed.study.load import study_from_dict

FEATURES = 5

MAPPING = """\
site: {name}
sources: {{export: {{path: data/export.csv}}}}
patient: {{source: export, column: patient}}
mapping:
  event: {{column: event, codes: {{"0": no, "1": yes}}}}
"""


def synthetic(sites: Sequence[str], **more: Any) -> Study:
    """Five numbers and an event; ``more`` replaces parts of the study."""
    numbers = {
        f"x{i}": {"meaning": f"x{i}", "type": "number", "role": "covariate", "unit": "1", "range": [-10, 10]}
        for i in range(FEATURES)
    }
    event = {"meaning": "event", "type": "code", "role": "outcome", "codes": {"no": "no", "yes": "yes"}, "event": "yes"}
    study = {
        "medfed": 1, "name": "synthetic", "title": "Synthetic", "question": "Who has the event?",
        "variables": {"event": event, **numbers}, "task": {"kind": "risk_prediction"},
        "method": {"use": "medfed:medfed.methods.newton.Newton"},
        "sites": {"invited": list(sites), "minimum": len(sites), "deadline_minutes": 10},
    }  # fmt: skip
    return study_from_dict(study | more)


def write_site(folder: Path, name: str, rows: int, seed: int) -> None:
    """A site's folder with an invented export."""
    home = folder / "sites" / name
    init_site(home, name)
    mapping = "".join(f"  x{i}: {{column: x{i}, unit: '1'}}\n" for i in range(FEATURES))
    (home / "site.yaml").write_text(MAPPING.format(name=name) + mapping)
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(rows, FEATURES)), 3)
    event = rng.random(rows) < 1 / (1 + np.exp(-(x @ np.linspace(-0.8, 0.8, FEATURES) - 0.3)))
    lines = ["patient,event," + ",".join(f"x{i}" for i in range(FEATURES))]
    lines += [f"{name}{i},{int(e)}," + ",".join(map(str, row)) for i, (e, row) in enumerate(zip(event, x, strict=True))]
    (home / "data" / "export.csv").write_text("\n".join(lines) + "\n")
    (home / "policy.yaml").write_text(POLICY_TEMPLATE)
    write_signing_key(home / "keys")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Loopback:
    """A network below ``folder``. Sites' folders have to be there; ``up`` does the rest."""

    folder: Path
    sites: Sequence[str]
    studies: Sequence[Study]
    port: int = field(default_factory=free_port)

    @property
    def network(self) -> Network:
        return Network(self.folder)

    def site(self, name: str) -> SiteNetwork:
        return SiteNetwork(load_site(self.folder / "sites" / name))

    def set_up(self) -> None:
        """Consortium, kits, joins, proposals, approvals; nothing runs yet."""
        text = TEMPLATE.format(name="loopback", host="localhost", port=self.port)
        (self.folder / "consortium.yaml").write_text(text)
        declared = self.network.declared()
        renewal.create(self.network, declared)
        for name in self.sites:
            path, code, _ = renewal.invite(self.network, declared, name)
            join(load_site(self.folder / "sites" / name), open_kit(path, code))
            for study in self.studies:
                self.propose(name, study)

    def propose(self, name: str, study: Study) -> None:
        """A study into a site's inbox, built and approved."""
        site = self.folder / "sites" / name
        Inbox(load_site(site)).receive(study.model_dump_json(), "", datetime.now(UTC).isoformat(timespec="seconds"))
        build_and_approve(site, study)

    def start_coordinator(self) -> None:
        start_service("medfed.engines.nvflare.coordinator_service", self.folder, self.network.folder / "service.log")

    def start_site(self, name: str) -> None:
        start_service("medfed.engines.nvflare.site_service", self.folder / "sites" / name, self.site(name).log)

    def up(self, seconds: float = 120.0) -> float:
        """Start everything; seconds until all sites are connected."""
        self.start_coordinator()
        for name in self.sites:
            self.start_site(name)
        return self.until(lambda: self.connected() == set(self.sites), seconds)

    def connected(self) -> set[str]:
        found = network_standing(self.folder / "coordinator")
        return {site.name for site in found.sites if site.state == "connected"} if found else set()

    @staticmethod
    def until(true: Callable[[], bool], seconds: float) -> float:
        """Until ``true()``; seconds it took. TimeoutError otherwise."""
        start = time.monotonic()
        while not true():
            if time.monotonic() - start > seconds:
                raise TimeoutError(f"not within {seconds:g} s")
            time.sleep(0.05)
        return time.monotonic() - start

    def down(self) -> None:
        """Stop everything."""
        for name in self.sites:
            ServiceLock(self.site(name).run).stop_holder()
        ServiceLock(self.network.run).stop_holder()

    def wipe(self) -> None:
        self.down()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- processes ---------------------------------------------------------------------------------------------------

    def processes(self, kind: str, site: str = "") -> list[psutil.Process]:
        """Living processes by kind: site service | site parent | site job | step | coordinator service | server parent |
        server job."""
        module, where = self._kinds()[kind](site)
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(module in word for word in words) and any(
                word == where or word.startswith(f"{where}/") for word in words
            ):
                found.append(process)
        return found

    def _kinds(self) -> Mapping[str, Callable[[str], tuple[str, str]]]:
        home = self.folder.resolve()
        server = str(home / "coordinator" / "network" / "nvflare" / "server")

        def at(module: str, inner: str = "") -> Callable[[str], tuple[str, str]]:
            return lambda site: (module, str(home / "sites" / site / inner) if inner else str(home / "sites" / site))

        return {
            "site service": at("medfed.engines.nvflare.site_service"),
            "step": at("medfed.engines.nvflare.step_process"),
            "site parent": at("nvflare.private.fed.app.client.client_train", "network/nvflare"),
            "site job": at("nvflare.private.fed.app.client.worker_process", "network/nvflare"),
            "coordinator service": lambda site: ("medfed.engines.nvflare.coordinator_service", str(home)),
            "server parent": lambda site: ("nvflare.private.fed.app.server.server_train", server),
            "server job": lambda site: ("nvflare.private.fed.app.server.runner_process", server),
        }

    def signal(self, kind: str, site: str, sign: int) -> int:
        """Send a signal to the processes of a kind; how many there were."""
        found = self.processes(kind, site)
        for process in found:
            process.send_signal(signal.Signals(sign))
        return len(found)
