"""medfed run under secure sums, over four sites of which one has four patients: who is counted, who is waited for, what is said."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from consortium_folder import MAPPINGS, STUDY, done, export, make_sites, medfed, patients_of, refused

SITES = ("north", "south", "west", "east")
SECURE = STUDY.replace("privacy: {sums: plain}\n", "").replace("[north, south, west]", f"[{', '.join(SITES)}]")


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure")
    make_sites(folder, SITES[:3])
    east = folder / "sites" / "east"
    done("site", "init", east, "--name", "east", "--title", "Hospital east")
    (east / "site.yaml").write_text(f"site: east\ntitle: Hospital east\n{MAPPINGS['north']}", encoding="utf-8")
    few = [patient | {"patient": f"E{at}"} for at, patient in enumerate(patients_of("west")[:4])]
    (east / "data" / "export.csv").write_bytes(export("north", few))
    study = folder / "study.yaml"
    study.write_text(SECURE, encoding="utf-8")
    for name in SITES:
        done("site", "build", folder / "sites" / name, study)
        done("site", "approve", folder / "sites" / name, study)
    return folder


@pytest.fixture
def folder(approved: Path, tmp_path: Path) -> Path:
    shutil.copytree(approved, tmp_path / "copy")
    return tmp_path / "copy"


def run(folder: Path, *more: str) -> dict[str, Any]:
    words = ("run", folder / "study.yaml", "-c", folder, "--durability", "process", "--json", *more)
    found: dict[str, Any] = done(*words).json
    return found


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {site["name"]: site["reason"] for site in report["sites"] if not site["counted"]}


def test_all_are_counted_and_the_report_says_how_sums_are_protected(folder: Path) -> None:
    report = run(folder, "--run", "first")
    assert reasons(report) == {}
    assert (report["protection"], report["plain_because"]) == ("secure", None)
    (method,) = report["prediction"]["methods"]
    assert {row["site"] for row in method["results"]} == {None}
    assert method["results"][0]["n"] == 454
    page = (folder / "coordinator" / "runs" / "first" / "report.html").read_text("utf-8")
    assert "only totals are seen" in page
    assert "How many patients there are" in page, "the count of units is among what left"


def test_preview_and_approval_say_how_sums_are_protected_and_among_whom(folder: Path) -> None:
    site, study = folder / "sites" / "east", folder / "study.yaml"
    assert "Sums are secure: only totals over several sites are seen" in done("site", "preview", site, study).out
    shown = " ".join(done("site", "approve", site, study).out.split())
    assert "hidden among north, south, west, east. Fingerprint of their keys" in shown
    fingerprint = shown.partition("other officers: ")[2].split()[:4]
    assert shown.count(" ".join(fingerprint)) == 1
    assert fingerprint == " ".join(done("site", "approve", folder / "sites" / "west", study).out.split()).split()[-4:]
    keys = json.loads((folder / "roster.json").read_text())["sites"]
    assert done("site", "approve", site, study, "--json").json["roster"] == {name: keys[name] for name in SITES}
    study.write_text(STUDY, encoding="utf-8")
    done("site", "build", folder / "sites" / "west", study)
    said = " ".join(done("site", "approve", folder / "sites" / "west", study).out.split())
    assert "Sums are plain, because the study asks for sums in plain." in said


def test_a_site_that_was_away_from_the_start_is_named_and_the_others_go_on(folder: Path) -> None:
    shutil.move(folder / "sites" / "west", folder / "west")
    assert reasons(run(folder)) == {"west": "the site's folder is not here"}


def test_a_site_that_goes_after_a_total_is_waited_for_by_name(folder: Path) -> None:
    run(folder, "--run", "first")
    shutil.move(folder / "sites" / "west", folder / "west")
    shown = medfed("run", folder / "study.yaml", "-c", folder, "--run", "second", "--durability", "process")
    assert shown.code == 2
    said = " ".join(shown.err.split())
    assert (
        "west took part in the totals so far and is missing now (west unreachable: the site's folder is not here)"
        in said
    )
    assert "so the run waits" in said
    shutil.move(folder / "west", folder / "sites" / "west")
    assert reasons(done("resume", "-c", folder, "--json").json) == {}


def test_too_few_sites_for_a_secure_sum_are_named(folder: Path) -> None:
    for name in ("west", "south"):
        shutil.move(folder / "sites" / name, folder / name)
    shown = medfed("run", folder / "study.yaml", "-c", folder, "--run", "first", "--durability", "process")
    assert shown.code == 2
    assert "2 of 4 sites answered 'moments', a secure sum needs 3 of them" in " ".join(shown.err.split())


def test_another_key_under_a_sites_name_is_believed_by_nobody(folder: Path) -> None:
    roster = json.loads((folder / "roster.json").read_text())
    roster["sites"]["east"] = roster["sites"]["west"]
    (folder / "roster.json").write_text(json.dumps(roster))
    sentence = refused("site", "approve", folder / "sites" / "east", folder / "study.yaml")
    assert "the roster has another key of site 'east' than its own; nothing was approved" in sentence
    assert reasons(run(folder)) == {}, "what is approved already holds the keys as they were"
    (folder / "roster.json").write_text("{")
    assert "roster.json is damaged" in refused("site", "approve", folder / "sites" / "east", folder / "study.yaml")


def test_a_study_of_two_sites_is_plain_and_says_why(folder: Path) -> None:
    study = folder / "study.yaml"
    study.write_text(
        SECURE.replace(", west, east]", "]").replace("name: three-sites", "name: two-sites"), encoding="utf-8"
    )
    for name in ("north", "south"):
        done("site", "build", folder / "sites" / name, study)
        shown = done("site", "approve", folder / "sites" / name, study)
        assert "Sums are plain, because secure sums need at least three sites" in " ".join(shown.out.split())
    report = run(folder, "--run", "two")
    assert report["protection"] == "plain"
    assert report["plain_because"].startswith("secure sums need at least three sites")
    assert "secure sums need at least three sites" in (folder / "coordinator/runs/two/report.html").read_text("utf-8")
