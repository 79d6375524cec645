"""medfed site ledger and verify: what was recorded, and whether it still is what was recorded."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from consortium_folder import approve_all, contents, done, make_sites, medfed, refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium after one run."""
    folder = tmp_path_factory.mktemp("finished")
    study = make_sites(folder)
    approve_all(folder, study)
    done("run", study, "-c", folder, "--run", "first", "--durability", "process", "--json")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_ledger_tells_what_left_by_round_and_step(folder: Path) -> None:
    rows = done("site", "ledger", folder / "sites" / "north", "--json").json
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert rows[0]["kind"] == "approval"
    released = [row for row in rows if row["kind"] == "release"]
    assert {row["run"].partition("/")[0] for row in released} == {"first"}
    assert all(row["amount"] > 0 and row["size"] > 0 and len(row["hash"]) == 64 for row in released)
    shown = done("site", "ledger", folder / "sites" / "north").out
    assert "approval" in shown
    assert "release" in shown


def test_a_site_without_a_ledger_lists_nothing_and_gets_none(tmp_path: Path) -> None:
    make_sites(tmp_path, ["north"])
    site = tmp_path / "sites" / "north"
    before = contents(site)
    assert done("site", "ledger", site, "--json").json == []
    assert "does not exist; the site has approved nothing yet" in refused("site", "verify", site)
    assert contents(site) == before


def test_a_whole_ledger_is_verified_against_the_coordinators_head(folder: Path) -> None:
    for name in ("north", "south", "west"):
        site = folder / "sites" / name
        found = done("site", "verify", site, "--coordinator", folder / "coordinator", "--json").json
        assert found["checked_against_coordinator"] is True
        assert found["rows"] == len(done("site", "ledger", site, "--json").json)
        assert "the ledger is whole" in done("site", "verify", site).out


def edited(folder: Path, sql: str) -> None:
    db = sqlite3.connect(folder / "sites" / "north" / "ledger.db")
    assert db.execute(sql).rowcount == 1
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("update ledger set amount=1 where number=3", "ledger of site 'north', row 3: its content is not what was sealed"),
        ("update ledger set charge=0.5 where number=2", "ledger of site 'north', row 2: "),
        ("delete from ledger where number=2", "row 3: row 2 is missing or moved; the ledger was changed after sealing"),
        ("update ledger set at='2000-01-01' where number=0", "ledger of site 'north', row 0: its content is not what"),
        ("update ledger set bytes=x'00' where number=(select max(number) from ledger)", "the stored bytes are not those"),
    ],
)  # fmt: skip
def test_an_edited_ledger_is_found_at_its_row(folder: Path, sql: str, sentence: str) -> None:
    edited(folder, sql)
    assert sentence in refused("site", "verify", folder / "sites" / "north")


def test_a_ledger_that_was_cut_is_found_with_the_coordinators_head(folder: Path) -> None:
    edited(folder, "delete from ledger where number=(select max(number) from ledger)")
    site = folder / "sites" / "north"
    done("site", "verify", site)
    sentence = refused("site", "verify", site, "--coordinator", folder / "coordinator")
    assert "whose signed head the coordinator holds, is not in it; rows were cut off or replaced" in sentence


def test_a_run_over_a_cut_ledger_is_refused(folder: Path) -> None:
    edited(folder, "delete from ledger where number=(select max(number) from ledger)")
    shown = medfed("run", folder / "study.yaml", "-c", folder, "--run", "second")
    assert shown.code == 2
    assert "rows were cut off or replaced. Ask the site to restore its ledger" in shown.err


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, None])
def test_a_file_that_is_no_ledger_any_more_is_one_sentence(folder: Path, damage: bytes | None) -> None:
    site = folder / "sites" / "north"
    path = site / "ledger.db"
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    data = path.read_bytes()
    path.write_bytes(damage or data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    for command in ("verify", "ledger"):
        sentence = refused("site", command, site)
        assert str(path) in sentence
        assert "restore it from a backup" in sentence or "check the disk" in sentence
