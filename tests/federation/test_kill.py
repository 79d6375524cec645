"""kill -9 at seeded points: final bytes and charges are those of an undisturbed run, nothing is counted twice."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from kill_worker import COST

from medfed.canonical import unpack
from medfed.federation.ledger import verify_ledger
from medfed.federation.status import status_of

WORKER = Path(__file__).parent / "kill_worker.py"


def start(folder: Path, method: str, late: str, kill_at: int) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(WORKER), str(folder), method, late, str(kill_at)], env=environment, capture_output=True
    )
    if process.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(process.stderr.decode()[-2000:])
    return process.returncode


def facts(folder: Path) -> dict:
    """What must not differ: result bytes, ledgers row for row, what is kept."""
    db = sqlite3.connect(folder / "sites" / "sites.db")
    ledger = db.execute(
        "select l.site, l.number, l.kind, c.key, l.digest, l.payload, l.charge, l.spent, l.hash"
        " from ledger l left join call c on c.id=l.call order by l.site, l.number"
    ).fetchall()
    sets = db.execute("select site, key, sites, rows, passing, showing from opening order by site, key").fetchall()
    return {"result": (folder / "result").read_bytes(), "ledger": ledger, "opened": sets}


def check_charges(folder: Path) -> None:
    """No key sealed twice, every release and sealed refusal charged once, every chain whole."""
    db = sqlite3.connect(folder / "sites" / "sites.db")
    keys = db.execute("select site, call from ledger where kind in ('release', 'refusal')").fetchall()
    assert len(keys) == len(set(keys))
    for site, spent, count in db.execute(
        "select site, max(spent), sum(kind in ('release', 'refusal')) from ledger group by site"
    ).fetchall():
        assert spent == COST * count
        verify_ledger(db, site)


def check_control(folder: Path) -> None:
    """SCAFFOLD's sum of controls is exactly the sum of what the counted sites keep."""
    result = unpack((folder / "result").read_bytes())
    runner = sqlite3.connect(folder / "coordinator" / "runner.db")
    counted = json.loads(runner.execute("select counted from checkpoint where path='main'").fetchone()[0])["control"]
    db = sqlite3.connect(folder / "sites" / "sites.db")
    total = np.zeros_like(result["control_sum"])
    for site, key in sorted(counted.items()):
        (data,) = db.execute(
            "select bytes from keep where site=? and slot='control' and call=(select id from call where key=?)",
            (site, key),
        ).fetchone()
        total = total + unpack(data)["control"]
    assert (total == result["control_sum"]).all()
    assert np.abs(total).max() > 0


def check_status(folder: Path) -> None:
    """What ``medfed status`` says of a dead runner is true: interrupted, after the rounds that are checkpointed."""
    if not (folder / "coordinator" / "runner.db").exists():
        return
    db = sqlite3.connect(folder / "coordinator" / "runner.db")
    if not db.execute("select 1 from sqlite_master where name='head'").fetchone():
        return
    statuses = status_of(folder / "coordinator")
    rows = db.execute("select run, state from run").fetchall()
    assert [s.run for s in statuses] == [run for run, _ in rows]
    for status, (run, state) in zip(statuses, rows, strict=True):
        saved = db.execute("select round from checkpoint where path=?", (run,)).fetchone()
        assert status.rounds_finished == (saved[0] if saved else 0)
        assert status.state == ("interrupted" if state == "running" else state)
        assert status.waiting == ()


def kill_run(tmp_path: Path, method: str, late: str, kills: int, seed: int) -> tuple[int, dict]:
    quiet = tmp_path / "quiet"
    start(quiet, method, "no", 0)
    points = int((quiet / "points").read_text().split("\n")[0])
    wanted = facts(quiet)
    check_charges(quiet)
    rng = random.Random(seed)
    done, where = 0, {}
    while done < kills:
        folder = tmp_path / f"run{done}"
        # Every restart is killed again, a little later each time, so that the run goes on through several deaths.
        for _ in range(6):
            code = start(folder, method, late, rng.randint(1, max(points // 3, 2)))
            if code == 0:
                break
            done += 1
            name = (folder / "killed_at").read_text()
            where[name] = where.get(name, 0) + 1
            check_status(folder)
        if not (folder / "result").exists():
            assert start(folder, method, late, 0) == 0
        check_charges(folder)
        if late == "no":
            assert facts(folder) == wanted
        if method.endswith("scaffold"):
            check_control(folder)
        shutil.rmtree(folder, ignore_errors=True)  # SQLite may drop its own files meanwhile
    return done, where


@pytest.mark.parametrize("method", ["newton", "scaffold", "study", "secure-newton", "secure-scaffold"])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    done, _ = kill_run(tmp_path, method, "no", 6, seed=1)
    assert done >= 6


def sealed_bytes(folder: Path) -> dict:
    """(site, key) -> hash of the bytes sealed under it, and what they were charged."""
    path = folder / "sites" / "sites.db"
    if (
        not path.exists()
        or not sqlite3.connect(path).execute("select 1 from sqlite_master where name='opened'").fetchone()
    ):
        return {}
    rows = sqlite3.connect(path).execute(
        "select l.site, c.key, l.payload, l.event from ledger l join call c on c.id=l.call"
    )
    return {(site, key): (payload, event) for site, key, payload, event in rows}


def kill_private_run(folder: Path, method: str, late: str, kills: int, seed: int) -> int:
    """Noise differs from run to run, so what must hold is: sealed once, never drawn again, charged as planned."""
    rng, done, seen = random.Random(seed), 0, {}
    code = -1
    while done < kills and code != 0:
        code = start(folder, method, late, rng.randint(1, 60 if method == "private" else 120))
        done += code != 0
        now = sealed_bytes(folder)
        assert {key: now[key] for key in seen} == seen, "what was sealed stays as it is"
        seen = now
    if code != 0:
        assert start(folder, method, late, 0) == 0
    db = sqlite3.connect(folder / "sites" / "sites.db")
    assert {key: sealed_bytes(folder)[key] for key in seen} == seen
    rows = db.execute("select site, call from ledger where event is not null").fetchall()
    assert len(rows) == len(set(rows)), "each site once a call"
    # A site whose first answer was late is in no set, and is asked no more; five of six are enough.
    fewest = 5 if late == "drawn" and method.startswith("secure") else 6
    answered = Counter(call for _, call in rows)
    assert len(answered) == 7, "a count and six rounds"
    assert min(answered.values()) >= fewest
    events = dict(db.execute("select site, count(distinct event) from ledger where event is not null group by site"))
    kinds = 1 if method.endswith("shares") else 2
    assert max(events.values()) == kinds, "of a count, and of a round"
    assert sum(found == kinds for found in events.values()) >= fewest
    for site in events:
        verify_ledger(db, site)
    sets = db.execute("select count(*), count(distinct sites) from noisy_opening group by key").fetchall()
    assert len(sets) == (0 if method == "private" else 7)
    assert {different for _, different in sets} <= {1}, "all sites have opened one set, once"
    return done


PRIVATE = ("private", "secure-private", "secure-shares")


@pytest.mark.parametrize("late", ["no", "drawn"])
@pytest.mark.parametrize("method", PRIVATE)
def test_a_killed_private_run_draws_and_charges_nothing_twice(tmp_path: Path, method: str, late: str) -> None:
    assert kill_private_run(tmp_path / "run", method, late, 6, seed=3) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("late", ["no", "drawn"])
@pytest.mark.parametrize("method", PRIVATE)
def test_twenty_kills_of_private_runs(tmp_path: Path, method: str, late: str) -> None:
    killed, run = 0, 0
    while killed < 20:
        killed += kill_private_run(tmp_path / str(run), method, late, 8, seed=100 + run)
        run += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "late"),
    [(m, late) for m in ("newton", "scaffold") for late in ("no", "drawn")]
    + [("study", "no"), ("secure-newton", "no"), ("secure-scaffold", "no"), ("secure-study", "no")],
)
def test_many_kills(tmp_path: Path, method: str, late: str) -> None:
    wanted = 20 if method.startswith("secure") else 50
    done, where = kill_run(tmp_path, method, late, wanted, seed=11)
    assert done >= wanted
    if not method.startswith("secure"):
        inside = sum(count for name, count in where.items() if name.startswith("seal: "))
        assert inside >= wanted / 2, "most fall inside the seal"
    else:
        assert any("opening" in name for name in where), "some fall between the set's record and the shares"
