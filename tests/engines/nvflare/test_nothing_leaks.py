"""Planted canaries: no secret, no row and no path of a site stands in a log or a file of others, or in a byte that was sent."""

import contextlib
import io
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from asking import call_of
from joined import PLUGIN, a_study, export, make_joined, propose_and_approve
from network import Network, a_free_port, bring_down, wait_for

from medfed.canonical import pack
from medfed.data.build import build_table
from medfed.engines.nvflare.channel import Unanswered, line_to
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.engines.nvflare.reasons import is_public
from medfed.evaluation.consortium_run import run_consortium
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key, new_signing_key
from medfed.federation.ledger import open_store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("network")]

SITES = ["north", "south"]
HOSTILE = f"{PLUGIN}:medfed_test_plugin.hostile."
STEPS = ["raises_with_a_record", "returns_a_row", "returns_undeclared", "returns_wrong_shape", "returns_text", "returns_many_values",
         "counts_of_three", "reads_another_part", "reply_not_listed", "writes_into_the_table", "returns_too_large"]  # fmt: skip
# One patient of each site, whose values stand nowhere else.
AGE, WEIGHT, NAME = 97, 137.40625, "CANARY-PATIENT"
CODE = Path(__file__).parent


def with_a_canary(index: int) -> str:
    lines = export(index).splitlines()
    return "\n".join([*lines, f"{NAME}-{index},1,{AGE},{WEIGHT + index}"])


class Recorded:
    """All that was sent, by whom: NVFLARE at the sites (which is what leaves them), and everybody on unix sockets."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder, self.network = folder, network

    def of_sites(self) -> bytes:
        found = []
        for name in SITES:
            found += [p.read_bytes() for p in (self.network.joined.site_network(name).workspace / "tmp").glob("sent-*")]
        return b"".join(found)

    def of_all(self) -> bytes:
        return self.of_sites() + b"".join(path.read_bytes() for path in self.folder.glob("sent-*"))


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, Recorded]]:
    """A network where everything that is sent is copied; below a folder that every user of the machine can look into."""
    place = Path(tempfile.mkdtemp(prefix="medfed-leaks-"))
    place.chmod(0o755)
    recorder = place / "recorder"
    shutil.copytree(CODE / "recorder", recorder)
    (recorder / "recorded").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        joined = make_joined(place / "consortium", SITES, port=a_free_port())
        for index, name in enumerate(SITES):
            (joined.site(name).folder / "data" / "export.csv").write_text(with_a_canary(index))
        found = Network(joined, a_study(SITES))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(recorder), *filter(None, [os.environ.get("PYTHONPATH")])]))
        try:
            approve_all(found)
            found.start_coordinator()
            for name in SITES:
                found.start_site(name)
            found.wait_connected(SITES)
            yield found, Recorded(recorder / "recorded", found)
        finally:
            bring_down(found)
            shutil.rmtree(place, ignore_errors=True)


def approve_all(network: Network) -> None:
    """The officers approve the study, and a second one whose steps are hostile, one by one, as if they had been taken in."""
    study = network.study
    propose_and_approve(network.joined, study, SITES)
    hostile = a_study(SITES, name="hostile")
    for name in SITES:
        site = network.joined.site(name)
        propose_and_approve(network.joined, hostile, [name])
        steps = [HOSTILE + step for step in STEPS]
        with closing(open_store(site.ledger_path, "call")) as db:
            approve(
                db, site=name, study=hostile, steps=steps, packages=packages_of(steps), until="2099-12-31", at="2026-01-01",
                table_version=build_table(site, hostile)[0].version, key=load_signing_key(site.keys),
            )  # fmt: skip


@pytest.fixture(scope="module")
def worked(spied: tuple[Network, Recorded]) -> dict[str, Any]:
    """A study is run; every hostile step is asked for; questions are put that go wrong in every way that there is."""
    network, _ = spied
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        run = run_consortium(network.folder, network.study, "first")
    assert list(run.result["fitted"]["sites"]) == SITES
    hostile = a_study(SITES, name="hostile")
    answers = []
    for index, step in enumerate(STEPS):
        for name in SITES:
            asked = call_of(hostile.hash, step=HOSTILE + step, ordinal=index, run="hostile", wait=10.0, roster=SITES)
            answers.append(network.ask(name, asked, 30.0))
    odd = [
        Message("propose", {"study": '{"medfed": 1'}), Message("propose", {"study": network.study.model_dump_json()[:-2]}),
        Message("fetch", {"payload": "0" * 64, "index": 0}), Message("shell", {}), Message("renew", {"certificate": "x"}),
        Message("standing", {"study": network.study.hash}), Message("facts", {"study": network.study.hash, "run": "first"}),
        call_of(hostile.hash, step="nowhere:x.y"), call_of("0" * 64), call_of(network.study.hash, kept="a" * 16 + "|x|1|a:b.c|0", run="gone"),
        Message("call", call_of(network.study.hash).content, b"no arrays"), Message("ping", {}),
        Message("call", call_of(network.study.hash, run="nan", step="medfed:medfed.methods.newton.logistic_terms").content,
                pack({"inputs": {"beta": np.full(3, np.nan), "centre": np.zeros(3), "scale": np.ones(3)}, "each": {}})),
    ]  # fmt: skip
    for name in SITES:
        for message in odd:
            with contextlib.suppress(Unanswered):
                answers.append(network.ask(name, message))
        with pytest.raises(Unanswered):
            ask_as_another(network, name)
    return {"answers": answers, "run": run, "shown": shown.getvalue(), "hostile": hostile}


def ask_as_another(network: Network, name: str) -> None:
    """A question with somebody else's signature."""
    other = Sealer(network.joined.coordinator.identity(), "coordinator", new_signing_key())
    public = network.joined.coordinator.members()[name].public_key
    with line_to(network.joined.coordinator.relay, other, name, public) as line:
        line.ask(Message("ping", {}), timeout=10)


def rows_of_patients(network: Network) -> dict[str, bytes]:
    """What a row looks like in text and in memory, raw, scaled as the study's table has it, and the pseudonym."""
    found: dict[str, bytes] = {"name": NAME.encode(), "surname": b"Smith"}
    for index, name in enumerate(SITES):
        weight = WEIGHT + index
        found |= {f"weight of {name}": str(weight).encode(), f"weight of {name}, in memory": struct.pack("<d", weight)}
        found[f"row of {name}, in memory"] = struct.pack("<dd", float(AGE), weight)
        table = parquet.read_table(next((network.joined.site(name).folder / "tables").rglob("*.parquet"))).to_pydict()
        column = next(values for title, values in table.items() if "pseudonym" in title)
        for place in (-1, 0, 5):
            found[f"pseudonym {place} of {name}"] = str(column[place]).encode()
            found[f"pseudonym {place} of {name}, in memory"] = struct.pack("<Q", column[place])
    return found


def secrets_of(network: Network) -> dict[str, bytes]:
    """Every private thing: keys line by line and raw, secrets of kits, codes."""
    found: dict[str, bytes] = {}
    for path in [*network.folder.rglob("*.key"), *network.folder.rglob("*.pem")]:
        text = path.read_text()
        for number, line in enumerate(text.splitlines()):
            if len(line) > 40 and "-----" not in line and "rootCA" not in path.name:
                found[f"{path}:{number}"] = line.encode()
        if path.name == "pseudonym.key":
            found[f"{path}, raw"] = bytes.fromhex(text.strip())
    for keys in (network.joined.coordinator.keys, *(network.joined.site(name).keys for name in SITES)):
        raw = load_signing_key(keys).private_bytes_raw()
        found |= {f"{keys}, raw": raw, f"{keys}, hex": raw.hex().encode()}
    for name, code in network.joined.codes.items():
        found[f"code of {name}"] = code.encode()
        found[f"enrolment of {name}"] = (network.joined.site_network(name).folder / "enrolment").read_bytes()
    return found


def files_of_others(network: Network) -> dict[str, bytes]:
    """All that the coordinator has, and all that NVFLARE has at the sites; keys themselves left out."""
    found = {}
    places = [network.folder / "coordinator", *(network.joined.site_network(name).workspace for name in SITES)]
    for path in [path for place in places for path in place.rglob("*")]:
        if path.is_file() and path.suffix not in (".key", ".pem") and not path.name.startswith("sent-"):
            found[str(path)] = path.read_bytes()
    return found


def seen(canaries: dict[str, bytes], texts: dict[str, bytes]) -> list[tuple[str, str]]:
    return [(canary, where) for canary, wanted in canaries.items() for where, text in texts.items() if wanted in text]


def test_the_recorder_and_the_canaries_work(spied: tuple[Network, Recorded], worked: dict[str, Any]) -> None:
    """The measure of what follows: what may leave is found, and canaries are found where they belong."""
    network, recorded = spied
    payloads = [answer.content["payload"] for answer in worked["answers"] if answer.content.get("state") == "answer"]
    assert network.study.hash.encode() in recorded.of_all()
    assert b'"state":"failure"' in recorded.of_sites()
    assert all(payload.encode() in recorded.of_sites() for payload in payloads)
    assert len(recorded.of_sites()) > 50_000
    home = network.joined.site("north").folder
    at_home = {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    rows, secrets = rows_of_patients(network), secrets_of(network)
    assert {canary for canary, _ in seen(rows, at_home)} >= {"name", "weight of north", "surname"}
    assert len({canary for canary, _ in seen(secrets, at_home)}) > 5
    site_log = (home / "site.log").read_text()
    assert "patient Smith" in site_log  # a step's own words stay with the site


def test_no_row_of_a_patient_leaves(spied: tuple[Network, Recorded], worked: dict[str, Any]) -> None:
    network, recorded = spied
    rows = rows_of_patients(network)
    assert seen(rows, {"sent": recorded.of_all()} | files_of_others(network)) == []
    told = {"shown": worked["shown"].encode(), "answers": repr(worked["answers"]).encode()}
    assert seen(rows, told) == []


def test_no_secret_is_sent_or_written_anywhere_else(spied: tuple[Network, Recorded], worked: dict[str, Any]) -> None:
    network, recorded = spied
    secrets = secrets_of(network)
    assert len(secrets) > 60
    texts = {"sent": recorded.of_all(), "shown": worked["shown"].encode()} | files_of_others(network)
    roster = str(network.joined.coordinator.roster_path)
    own = {where for where in texts if where.endswith((".kit", ".crt")) or where == roster}
    assert seen(secrets, {where: text for where, text in texts.items() if where not in own}) == []
    assert [
        found for found in seen(secrets, {w: texts[w] for w in own if not w.endswith(".kit")}) if "code" in found[0]
    ] == []
    for name in SITES:  # and none in the site's own logs
        assert seen(secrets, {"log": network.log(name).encode()}) == []
    assert seen(secrets, {"log": network.server_log().encode()}) == []


def test_no_path_of_a_sites_machine_leaves(spied: tuple[Network, Recorded], worked: dict[str, Any]) -> None:
    network, recorded = spied
    paths = {name: str(network.joined.site(name).folder).encode() for name in SITES}
    of_coordinator = {where: text for where, text in files_of_others(network).items() if "/coordinator/" in where}
    texts = {
        "sent": recorded.of_sites(),
        "shown": worked["shown"].encode(),
        "answers": repr(worked["answers"]).encode(),
    }
    assert seen(paths, texts | of_coordinator) == []
    assert b"Traceback" not in recorded.of_sites()


def test_every_reason_that_left_is_one_that_may_leave(worked: dict[str, Any]) -> None:
    reasons = {answer.content["reason"] for answer in worked["answers"] if answer.content.get("state") == "failure"}
    assert len(reasons) > 8
    ours = {reason for reason in reasons if not is_public(reason)}
    assert all(reason.startswith(("a call", "a message", "what is asked", "the inputs of a call", "a new certificate")) for reason in ours), ours  # fmt: skip


def test_a_command_line_of_no_process_holds_a_secret(spied: tuple[Network, Recorded], worked: dict[str, Any]) -> None:
    """Every user of the machine can read those."""
    network, _ = spied
    lines = {str(process.pid): " ".join(process.cmdline()).encode() for process in network.processes()}
    assert len(lines) > 6
    tokens = {
        path.name: json.loads(path.read_text())["signature"].encode()
        for path in network.folder.rglob("registration.json")
    }
    assert seen(secrets_of(network) | tokens, lines) == []
    assert all(b" -t " not in line and b" -ts " not in line for line in lines.values())  # NVFLARE's own tokens


# -- other users of the machine --------------------------------------------------------------------------------------


def private_files(network: Network) -> list[Path]:
    places = [network.folder / "coordinator" / "network"]
    for name in SITES:
        home = network.joined.site(name).folder
        places += [home / "keys", home / "network", home / "tables"]
    found = [path for place in places for path in place.rglob("*") if not path.is_dir()]
    return found + [p for name in SITES for p in network.joined.site(name).folder.glob("ledger*") if p.is_file()]


def as_another_user(paths: list[Path]) -> list[str]:
    """Which of these another user of the machine can read, write or connect to."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        out = []
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for path in paths:
                for flags in (os.O_RDONLY, os.O_WRONLY):
                    with contextlib.suppress(OSError):
                        os.close(os.open(path, flags))
                        out.append(str(path))
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(path))
                    out.append(str(path))
        finally:
            os.write(write, json.dumps(out).encode()[:60_000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return list(json.loads(found))


def test_sockets_keys_and_rows_are_closed_to_other_users(
    spied: tuple[Network, Recorded], worked: dict[str, Any]
) -> None:
    network, _ = spied
    sockets = [network.joined.coordinator.relay, *(network.joined.site_network(name).run / "door" for name in SITES)]
    wait_for(lambda: all(path.exists() for path in sockets), 30, "a socket is missing")
    for path in sockets:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    for path in [*network.folder.rglob("*.key"), *network.folder.rglob("*.pem"), *network.folder.rglob("*.kit"), *network.folder.rglob("enrolment"),
                 *network.folder.rglob("registration.json"), *network.folder.rglob("roster.json"), *network.folder.rglob("ledger.db*")]:  # fmt: skip
        if path.name != "rootCA.pem":
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only an administrator can become another user")
def test_another_user_reads_and_connects_to_nothing(spied: tuple[Network, Recorded], worked: dict[str, Any]) -> None:
    network, _ = spied
    public = network.joined.site("north").folder / "site.yaml"
    assert as_another_user([public]) == [str(public)]  # the way there is open
    paths = private_files(network)
    assert len(paths) > 100
    assert as_another_user(paths) == []
