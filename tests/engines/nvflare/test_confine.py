"""What NVFLARE's processes and a study's process can not do at a site, even if somebody has them run code."""

import json
import os
import socket
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from joined import Joined, a_study, propose_and_approve

from medfed.engines.nvflare import confine as module
from medfed.engines.nvflare.confine import confine, landlock_version, what_python_reads
from medfed.engines.nvflare.processes import nvflare_environment, spawn
from medfed.engines.nvflare.site_service import confinement
from medfed.engines.nvflare.step_processes import STEP_CONFINEMENT

pytestmark = pytest.mark.skipif(landlock_version() < 4, reason="this system has no Landlock, or one without TCP")

CODE = """
import ctypes, json, os, signal, socket, sys
from pathlib import Path
home, port, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tries = {
    "rows": lambda: next((home / "tables").rglob("*.parquet")).read_bytes(),
    "export": lambda: (home / "data" / "export.csv").read_text(),
    "ledger": lambda: (home / "ledger.db").read_bytes(),
    "signing key": lambda: (home / "keys" / "site_signing.pem").read_text(),
    "membership": lambda: (home / "network" / "membership.json").read_text(),
    "inbox": lambda: os.listdir(home / "network" / "inbox"),
    "by another name": lambda: Path(f"/proc/self/root{home}/ledger.db").read_bytes(),
    "another's memory": lambda: open(f"/proc/{parent}/mem", "rb").read(1),
    "another's environment": lambda: open(f"/proc/{parent}/environ", "rb").read(1),
    "home": lambda: os.listdir("/root" if os.geteuid() == 0 else Path.home()),
    "temporary files": lambda: os.listdir("/tmp"),
    "policy, written": lambda: (home / "policy.yaml").write_text("minimum_cell: 1"),
    "installed code, written": lambda: open(json.__file__, "a").close(),
    "a signal": lambda: os.kill(parent, 0),
    "tcp": lambda: socket.create_connection(("127.0.0.1", port), 2).close(),
    "listening": lambda: socket.create_server(("127.0.0.1", 0)).close(),
    "workspace": lambda: (home / "network" / "nvflare" / "made").write_text("x"),
    "workspace's key": lambda: (home / "network" / "nvflare" / "startup" / "client.key").read_text(),
    "token": lambda: (home / "network" / "run" / "registration.json").read_text(),
    "packages": lambda: __import__("numpy"),
}
out = {}
for name, act in tries.items():
    try:
        out[name] = act() != b""  # some of the system's files are empty to those who may not read them
    except (OSError, StopIteration):
        out[name] = False
print("RESULT" + json.dumps(out))
"""
OF_THE_SITE = {"rows", "export", "ledger", "signing key", "membership", "inbox", "by another name", "policy, written"}
OF_THE_MACHINE = {
    "another's memory",
    "another's environment",
    "home",
    "temporary files",
    "installed code, written",
    "a signal",
}
OF_NVFLARE = {"workspace", "workspace's key", "token"}
TCP = {"tcp", "listening"}


@pytest.fixture(scope="module")
def site(joined: Joined) -> Path:
    propose_and_approve(joined, a_study(["north", "south"]), ["north"])
    joined.site_network("north").write_token()
    return joined.site("north").folder.resolve()


def outcome(site: Path, tmp_path: Path, confined: Any) -> set[str]:
    """What a process that is started like this can do."""
    code, log = tmp_path / "code", tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(CODE),
            str(site),
            str(server.getsockname()[1]),
            str(os.getpid()),
        ]
        process = spawn(command, log, nvflare_environment(code), confined=confined, cwd="/")
        assert process.wait(60) == 0, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("RESULT")]
    return {name for name, done in json.loads(lines[0].removeprefix("RESULT")).items() if done}


def test_a_process_as_it_is_started_by_anybody_can_do_all_of_it(site: Path, tmp_path: Path) -> None:
    """The measure of what follows."""
    policy = (site / "policy.yaml").read_bytes()
    try:
        found = outcome(site, tmp_path, None)
    finally:
        (site / "policy.yaml").write_bytes(policy)
    assert found >= OF_THE_SITE | OF_NVFLARE | TCP | {"home", "temporary files", "a signal", "packages"}


def test_nvflares_processes_reach_their_workspace_and_the_network_only(
    joined: Joined, site: Path, tmp_path: Path
) -> None:
    found = outcome(site, tmp_path, confinement(joined.site_network("north")))
    assert found == OF_NVFLARE | TCP | {"packages"}


def test_a_studys_process_reaches_no_network(site: Path, tmp_path: Path) -> None:
    policy = (site / "policy.yaml").read_bytes()
    try:
        found = outcome(site, tmp_path, STEP_CONFINEMENT)
    finally:
        (site / "policy.yaml").write_bytes(policy)
    assert found.isdisjoint(TCP | {"a signal", "another's memory"})
    assert found >= {"rows", "ledger", "packages"}


def test_a_site_that_lies_among_what_python_reads_is_not_opened_by_the_way(tmp_path: Path) -> None:
    """Confined like that it would give up nothing of the site: it says that it can't."""
    for place in what_python_reads():
        assert not confine(read={place}, write=[tmp_path], secret=place / "sites" / "north", tcp=True)


def test_without_landlock_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "landlock_version", lambda: 0)
    assert not confine(read=what_python_reads(), tcp=True)
    monkeypatch.setattr(module, "landlock_version", lambda: 3)
    assert not confine(read=None, tcp=False)
