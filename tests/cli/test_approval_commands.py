"""medfed site preview, approve, revoke, packages: what an officer reads and signs."""

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest
from consortium_folder import STUDY, done, make_sites, refused

from medfed.study import load_study


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One site with its table built; tests that sign work in a copy."""
    folder = tmp_path_factory.mktemp("built")
    study = make_sites(folder, ["north"])
    done("site", "build", folder / "sites" / "north", study)
    return folder


@pytest.fixture
def here(built: Path, tmp_path: Path) -> tuple[Path, Path]:
    """(site folder, study file) of a copy of it."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy" / "sites" / "north", tmp_path / "copy" / "study.yaml"


def ledger_rows(site: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = done("site", "ledger", site, "--json").json
    return rows


def test_preview_lists_every_array_that_would_leave_with_size_and_limit(here: tuple[Path, Path]) -> None:
    site, study = here
    found = done("site", "preview", site, study, "--json").json
    assert found["hash"] == load_study(study).hash
    assert found["patients"] == 150
    assert found["steps"]
    for step in found["steps"]:
        assert (step["held_back"] is None) == (step["releases"][0]["kind"] != "reply")
        for release in step["releases"]:
            assert release["values"] >= 1
            assert release["bytes"] >= 8
            assert release["limit"]
    shown = done("site", "preview", site, study).out
    for step in found["steps"]:
        assert step["step"] in shown
    assert "Would be held back: the policy does not list" in shown


def test_preview_says_what_the_policy_would_hold_back(here: tuple[Path, Path]) -> None:
    site, study = here
    policy = (site / "policy.yaml").read_text()
    (site / "policy.yaml").write_text(policy.replace("minimum_patients: 10", "minimum_patients: 1000"))
    found = done("site", "preview", site, study, "--json").json
    assert {step["held_back"] for step in found["steps"] if step["releases"][0]["kind"] != "reply"} == {
        "the site has fewer patients in this study than may be seen"
    }
    assert "Would be held back" in done("site", "preview", site, study).out


def test_preview_needs_a_table(tmp_path: Path) -> None:
    study = make_sites(tmp_path, ["north"])
    sentence = refused("site", "preview", tmp_path / "sites" / "north", study)
    assert "has no table for study 'three-sites'; run `medfed site build` first" in sentence


def test_an_approval_is_a_row_of_the_ledger_with_study_table_packages_and_last_day(here: tuple[Path, Path]) -> None:
    site, study = here
    version = done("site", "preview", site, study, "--json").json["table_version"]
    given = done("site", "approve", site, study, "--json", "--officer", "A. Officer", "--until", "2999-12-31").json
    assert (given["study"], given["table_version"], given["until"]) == (load_study(study).hash, version, "2999-12-31")
    assert given["packages"] == done("site", "packages", study, "--json").json
    assert given["steps"] == done("study", "check", study, "--json").json["steps"]
    (row,) = ledger_rows(site)
    assert (row["kind"], row["subject"], row["number"]) == ("approval", given["study"], given["ledger_row"])
    assert done("site", "verify", site, "--json").json["rows"] == 1


def test_an_approval_lasts_180_days_unless_told_and_until_the_end_of_its_last_day(here: tuple[Path, Path]) -> None:
    site, study = here
    assert done("site", "approve", site, study, "--json").json["until"] == str(date.today() + timedelta(days=180))
    today = str(date.today())
    assert done("site", "approve", site, study, "--json", "--until", today).json["until"] == today


def test_the_hash_and_the_version_that_were_read_may_be_given_by_their_beginning(here: tuple[Path, Path]) -> None:
    site, study = here
    found = done("site", "preview", site, study, "--json").json
    done("site", "approve", site, study, "--hash", found["hash"][:8], "--table-version", found["table_version"][:8])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--hash", "0" * 64], "has the hash {hash}, not 0000000000000000000000000000000000000000000000000000000000000000; it is not the study you read. Not approved"),
        (["--hash", "{hash:.4}"], "it is not the study you read. Not approved"),
        (["--until", "{yesterday}"], "--until {yesterday} has passed; choose a later day"),
        (["--until", "soon"], "--until is a day like 2027-06-30, not 'soon'"),
        (["--table-version", "0123abcd"], "has version {version}, not 0123abcd. Not approved"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_not_approved(here: tuple[Path, Path], options: list[str], sentence: str) -> None:
    site, study = here
    facts = {
        "hash": load_study(study).hash,
        "version": done("site", "preview", site, study, "--json").json["table_version"],
        "yesterday": str(date.today() - timedelta(days=1)),
    }
    assert sentence.format(**facts) in refused("site", "approve", site, study, *(o.format(**facts) for o in options))
    assert ledger_rows(site) == []


def test_a_step_that_the_policy_does_not_allow_is_not_approved(here: tuple[Path, Path]) -> None:
    site, study = here
    policy = (site / "policy.yaml").read_text()
    (site / "policy.yaml").write_text(policy.replace('"medfed:medfed.evaluation.*"', '"medfed:medfed.nothing.*"'))
    sentence = refused("site", "approve", site, study)
    assert "the policy of site 'north' does not allow the step medfed:medfed.evaluation." in sentence
    assert ledger_rows(site) == []


def test_a_study_that_does_not_invite_the_site_is_not_approved(here: tuple[Path, Path]) -> None:
    site, study = here
    study.write_text(STUDY.replace("[north, south, west]", "[nord, south, west]"), encoding="utf-8")
    done("site", "build", site, study)
    sentence = refused("site", "approve", site, study)
    assert "study 'three-sites' does not invite the site 'north'; it invites nord, south, west" in sentence


def test_a_signing_key_that_others_can_read_signs_nothing(here: tuple[Path, Path]) -> None:
    site, study = here
    key = site / "keys" / "site_signing.pem"
    key.chmod(0o644)
    assert f"run: chmod 600 {key}" in refused("site", "approve", site, study)
    assert ledger_rows(site) == []


def test_a_damaged_table_is_not_approved(here: tuple[Path, Path]) -> None:
    site, study = here
    (table,) = (site / "tables").glob("*/table.json")
    content = json.loads(table.read_text())
    table.write_text(json.dumps(content | {"version": "0" * 64}))
    assert "is damaged or was changed; run `medfed site build`" in refused("site", "approve", site, study)


def test_a_withdrawn_approval_is_a_row_of_the_ledger(here: tuple[Path, Path]) -> None:
    site, study = here
    done("site", "approve", site, study)
    assert (
        "north has withdrawn its approval of three-sites; row 1 of its ledger"
        in done("site", "revoke", site, study).out
    )
    assert [row["kind"] for row in ledger_rows(site)] == ["approval", "revocation"]


def test_only_what_was_approved_can_be_withdrawn(here: tuple[Path, Path]) -> None:
    """Who withdraws from an edited study.yaml would think that the approval is gone, and it would stand."""
    site, study = here
    assert "has approved nothing yet" in refused("site", "revoke", site, study)
    assert not (site / "ledger.db").exists()
    done("site", "approve", site, study)
    approved = load_study(study).hash
    study.write_text(STUDY.replace("Three sites", "Four sites"), encoding="utf-8")
    sentence = refused("site", "revoke", site, study)
    assert "has not approved the study of the hash" in sentence
    assert f"three-sites {approved[:12]}" in sentence
    assert [row["kind"] for row in ledger_rows(site)] == ["approval"]
    done("site", "revoke", site, approved[:12])
    assert [row["subject"] for row in ledger_rows(site)] == [approved, approved]
    assert "has not approved" in refused("site", "revoke", site, approved[:12])


def test_packages_prints_lines_that_pin_the_policy(here: tuple[Path, Path]) -> None:
    """What is printed goes into policy.yaml as it is; then another version of the package is refused."""
    site, study = here
    line = done("site", "packages", study).out.strip()
    policy = (site / "policy.yaml").read_text()
    assert "  medfed: {}" in policy
    (site / "policy.yaml").write_text(policy.replace("  medfed: {}", f"  {line}"))
    done("site", "preview", site, study)
    done("site", "approve", site, study)
