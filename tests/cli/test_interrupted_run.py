"""A run that is killed, stopped by Ctrl-C, or out of disk: what is said is true, and going on ends with the same numbers."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from consortium_folder import SITES, STUDY, approve_all, done, make_sites, medfed, refused

from medfed.errors import FederationError
from medfed.federation.ledger import verify_ledger
from medfed.federation.status import status_of
from medfed.models.linear import load_model

COMMAND = [sys.executable, "-c", "from medfed.cli.main import run_command; run_command()"]
# Long enough to be met alive, also on a busy machine: 240 rounds, each on disk before it counts.
LONG_STUDY = STUDY.replace("newton.Newton", "fedavg.FedAvg").replace(
    '.FedAvg"}', '.FedAvg", settings: {rounds: 240}}'
).replace("{design: cross_validation, compare: [local, federated, pooled]}", "{design: none}").replace("minimum: 2", "minimum: 3")  # fmt: skip


def facts(folder: Path, run: str) -> tuple[Any, Any]:
    """What must not differ: the model's coefficients, and what each site released and was charged, call by call."""
    model = load_model(folder / "coordinator" / "runs" / run / "model.medfed")
    released = []
    for name in SITES:
        with closing(sqlite3.connect(folder / "sites" / name / "ledger.db")) as db:
            verify_ledger(db, name)
            rows = db.execute(
                "select c.key, l.payload, l.amount, l.charge from ledger l join call c on c.id=l.call"
                " where l.kind='release' and (c.run=? or c.run like ?)", (run, f"{run}/%"),
            ).fetchall()  # fmt: skip
        keys = [key for key, *_ in rows]
        assert len(keys) == len(set(keys)), "a question was answered twice"
        released.append(sorted((key.replace(f"|{run}|", "|").replace(f"|{run}/", "|/"), *more) for key, *more in rows))
    return (model.coefficients.tolist(), released)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Three sites that approved a long study, and the facts of a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = make_sites(folder)
    study.write_text(LONG_STUDY, encoding="utf-8")
    approve_all(folder, study)
    copy = folder.parent / "undisturbed-copy"
    shutil.copytree(folder, copy)
    done("run", study, "-c", copy, "--run", "first", "--durability", "process", "--json")
    return folder, facts(copy, "first")


@pytest.fixture
def folder(undisturbed: tuple[Path, Any], tmp_path: Path) -> Path:
    shutil.copytree(undisturbed[0], tmp_path / "copy")
    return tmp_path / "copy"


def started(folder: Path) -> "subprocess.Popen[bytes]":
    """`medfed run` in a process of its own, held still in the middle of its rounds."""
    command = [*COMMAND, "run", str(folder / "study.yaml"), "-c", str(folder), "--run", "first"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # Whoever starts the tests in the background has Ctrl-C ignored, and children take that over.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while process.poll() is None:
        if (folder / "coordinator" / "runner.db").exists():
            try:
                statuses = status_of(folder / "coordinator")
            except FederationError:  # its tables are being made
                statuses = []
            if statuses and statuses[0].calls_journaled >= 1:
                process.send_signal(signal.SIGSTOP)
                return process
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(process.stderr.read().decode() if process.stderr else "it ended before it was met")


def test_a_killed_run_is_interrupted_and_resume_ends_with_the_same_numbers(
    folder: Path, undisturbed: tuple[Path, Any]
) -> None:
    process = started(folder)
    (status,) = done("status", "-c", folder, "--json").json
    assert status["state"] == "suspended"
    assert "is suspended (its process got SIGSTOP)" in refused("resume", "first", "-c", folder)
    assert "so it has no round to give up" in refused("abandon", "first", "-c", folder)
    assert "in use by another runner" in refused("run", folder / "study.yaml", "-c", folder, "--run", "second")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (status,) = done("status", "-c", folder, "--json").json
    assert (status["state"], status["run"]) == ("interrupted", "first")
    assert status["open_round"] == status["rounds_finished"] + 1
    assert "interrupted" in done("status", "-c", folder).out
    assert "go on with `medfed resume`" in done("status", "-c", folder).out
    damaged = folder.parent / "damaged"
    shutil.copytree(folder, damaged)
    assert done("resume", "-c", folder, "--durability", "process", "--json").json["run"] == "first"
    assert facts(folder, "first") == undisturbed[1]
    assert done("status", "-c", folder, "--json").json[0]["state"] == "finished"
    with closing(sqlite3.connect(damaged / "coordinator" / "runner.db")) as db:
        db.execute("update checkpoint set state=substr(state, 1, length(state) / 2)")
        db.commit()
    sentence = refused("resume", "first", "-c", damaged)
    assert "is truncated or damaged; restore the coordinator's folder from a backup, or start a new run" in sentence


def test_ctrl_c_stops_in_a_sentence_and_resume_ends_with_the_same_numbers(
    folder: Path, undisturbed: tuple[Path, Any]
) -> None:
    process = started(folder)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err.decode().strip() == "Stopped. What was finished is kept; `medfed resume first` goes on."
    assert done("status", "-c", folder, "--json").json[0]["state"] == "interrupted"
    done("resume", "-c", folder, "--durability", "process", "--json")
    assert facts(folder, "first") == undisturbed[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 8 MB. Needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made with tmpfs")
@pytest.mark.parametrize("where", ["coordinator", "sites/north"])
def test_a_full_disk_stops_the_run_in_a_sentence_and_with_space_it_ends_with_the_same_numbers(
    folder: Path, undisturbed: tuple[Path, Any], small_disk: Path, where: str
) -> None:
    """The disk is made a little less full each time, so that it is full at the store, the seal, the journal, the
    checkpoint, the model and the report."""
    place = folder / where
    if place.exists():
        shutil.copytree(place, small_disk, dirs_exist_ok=True)
        shutil.rmtree(place)
    place.symlink_to(small_disk)
    filler, sentences, step = small_disk / "filler", [], 16_384
    filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    for _ in range(40):
        status = medfed("status", "-c", folder, "--json")
        assert status.code in (0, 2)
        words = ["resume", "first"] if "first" in status.out else ["run", folder / "study.yaml", "--run", "first"]
        shown = medfed(*words, "-c", folder, "--durability", "process", "--json")
        if shown.code == 0:
            break
        assert (shown.code, shown.out) == (2, ""), shown
        assert "Traceback" not in shown.err
        sentences.append(shown.err.strip())
        os.truncate(filler, max(filler.stat().st_size - step, 0))
        step = round(1.2 * step)
    assert len(set(sentences)) > 1, sentences
    for sentence in sentences:
        assert re.search("full|No space left|policy, keys or ledger can't be read", sentence), sentence
    assert facts(folder, "first") == undisturbed[1]
    assert not [path for path in folder.rglob(".*") if path.is_file()], "something half-written is left"
