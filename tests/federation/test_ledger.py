"""Edit, deletion, reordering and truncation of a ledger, each found."""

import hashlib
import sqlite3
from pathlib import Path

import pytest
from consortium import fixed_keys, synthetic_study, synthetic_tables

from medfed.engines.what_if import what_if
from medfed.errors import FederationError, LedgerError
from medfed.federation.ledger import SignedHead, append_event, is_head_signed, open_store, rows_of, verify_ledger
from medfed.federation.packages import find_method
from medfed.federation.runner import Runner

SITES = ["a", "b"]


@pytest.fixture
def consortium(tmp_path: Path) -> tuple[Path, dict[str, tuple[SignedHead, str]]]:
    """A finished Newton run: the sites' store, and the signed heads that the coordinator holds."""
    study = synthetic_study(SITES)
    engine, public = what_if(
        tmp_path / "sites", synthetic_tables(study, [120, 90]), study, [find_method(study)], keys=fixed_keys(SITES)
    )
    runner = Runner(tmp_path / "coordinator", engine, study, durability="process", public_keys=public)
    runner.execute(find_method(study))
    heads = runner.store.heads()
    runner.close()
    engine.doors[0].store.db.close()
    return tmp_path / "sites" / "sites.db", heads


def test_an_untouched_ledger_holds(consortium: tuple[Path, dict[str, tuple[SignedHead, str]]]) -> None:
    path, heads = consortium
    db = open_store(path, "process")
    for site in SITES:
        assert verify_ledger(db, site, heads[site][0]).number > 5
        assert is_head_signed(*heads[site])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("update ledger set amount=1 where site='a' and number=3", "edited"),
        ("update ledger set charge=9, spent=9 where site='a' and number=3", "edited"),
        ("update ledger set at='2020-01-01' where site='a' and number=2", "edited"),
        ("update call set key='other' where id=2", "edited"),
        ("update ledger set bytes=x'00' where site='a' and number=2", "stored bytes"),
        ("delete from ledger where site='a' and number=3", "missing or moved"),
        ("delete from ledger where site='a' and number=0", "missing or moved"),
        (
            "update ledger set number=-5 where site='a' and number=2;update ledger set number=2 where site='a' and number=3;"
            "update ledger set number=3 where site='a' and number=-5",
            "reordered",
        ),
        ("delete from ledger where site='a' and number>=4", "cut off"),
        ("delete from ledger where site='a'", "cut off"),
    ],
)
def test_a_changed_ledger_is_found(
    consortium: tuple[Path, dict[str, tuple[SignedHead, str]]], change: str, word: str
) -> None:
    path, heads = consortium
    db = sqlite3.connect(path)
    db.executescript(change)
    db.commit()
    with pytest.raises(LedgerError, match=word):
        verify_ledger(db, "a", heads["a"][0])
    if "call set" not in change:
        verify_ledger(db, "b", heads["b"][0])


def test_a_chain_written_anew_does_not_meet_the_signed_head(
    consortium: tuple[Path, dict[str, tuple[SignedHead, str]]],
) -> None:
    """An attacker with the database, but not the key, recomputes every hash: the coordinator's head gives it away."""
    path, heads = consortium
    from medfed.federation.ledger import row_hash

    db = sqlite3.connect(path)
    previous = ""
    for row in list(rows_of(db, "a")):
        amount = 1 if row["number"] == 3 else row["amount"]
        previous = row_hash(
            previous, "a", row["number"], row["kind"], row["key"], row["study"] or "", row["part"] or "",
            row["subject"] or "", row["digest"], row["payload"],
            row["size"], amount, row["charge"], row["spent"], row["at"],
        )  # fmt: skip
        db.execute("update ledger set amount=?, hash=? where site='a' and number=?", (amount, previous, row["number"]))
    db.commit()
    verify_ledger(db, "a")
    with pytest.raises(LedgerError, match="cut off or replaced"):
        verify_ledger(db, "a", heads["a"][0])


def test_a_forged_head_is_not_taken_for_signed(consortium: tuple[Path, dict[str, tuple[SignedHead, str]]]) -> None:
    _, heads = consortium
    head, public = heads["a"]
    forged = SignedHead("a", head.number, hashlib.sha256(b"x").hexdigest(), head.signature)
    assert not is_head_signed(forged, public)
    assert not is_head_signed(head, heads["b"][1])


def test_a_runner_refuses_a_site_whose_ledger_was_cut(tmp_path: Path) -> None:
    study = synthetic_study(SITES)
    keys = fixed_keys(SITES)
    tables = synthetic_tables(study, [120, 90])
    method = find_method(study)
    for name in ("first", "second"):
        engine, public = what_if(tmp_path / "sites", tables, study, [method], keys=keys)
        runner = Runner(tmp_path / "coordinator", engine, study, durability="process", public_keys=public)
        if name == "second":
            with pytest.raises(FederationError, match="rows were cut off or replaced"):
                runner.execute(method, name)
        else:
            runner.execute(method, name)
        runner.close()
        db = engine.doors[0].store.db
        db.execute("delete from ledger where site='b' and number>3")
        db.close()


def test_an_event_continues_the_chain(consortium: tuple[Path, dict[str, tuple[SignedHead, str]]]) -> None:
    path, heads = consortium
    db = open_store(path, "process")
    head = append_event(db, "a", "prediction", "study", b"{}", at="2026-01-01")
    assert head.number == heads["a"][0].number + 1
    verify_ledger(db, "a", heads["a"][0])
