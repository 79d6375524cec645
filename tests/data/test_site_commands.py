"""medfed site init, check and build, as a person at a terminal or a program meets them."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import yaml
from clinic import STUDY, contents, make_clinic, rows, study_with, variables_with

from medfed.cli.main import run_command
from medfed.data.build import check, open_table
from medfed.data.site_folder import load_site


@dataclass(frozen=True)
class Shown:
    """What a command left on the terminal, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def medfed(*words: str | Path) -> Shown:
    """The command as installed, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["medfed", "site", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        run_command()
    return Shown(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    return path


def with_a_dropped_row() -> list[dict[str, str]]:
    patients = rows()
    patients[3]["AGE"] = ""
    patients[4]["WEIGHT"] = "700"
    return patients


def test_check_shows_counts_and_writes_nothing(tmp_path: Path, study_file: Path) -> None:
    site = make_clinic(tmp_path / "clinic", with_a_dropped_row())
    before = contents(site.folder)
    shown = medfed("check", site.folder, study_file)
    assert (shown.returncode, shown.stderr) == (0, "")
    for words in ("Rows read: 40   Rows kept: 39", "dropped: 1  (age is missing)"):
        assert words in shown.stdout
    weight = next(line for line in shown.stdout.splitlines() if line.strip().startswith("weight"))
    assert [word.strip() for word in weight.split("│")][1:4] == ["39", "1", "1"]
    assert contents(site.folder) == before


def test_check_as_json_is_json_alone_and_the_page_is_written_where_asked(tmp_path: Path, study_file: Path) -> None:
    site = make_clinic(tmp_path / "clinic", with_a_dropped_row())
    page = tmp_path / "quality.html"
    shown = medfed("check", site.folder, study_file, "--json", "--html", page)
    quality = json.loads(shown.stdout)
    assert (quality["rows_kept"], quality["dropped"]) == (39, {"age is missing": 1})
    assert "The clinic" in page.read_text("utf-8")


def test_build_prints_the_version_that_an_approval_names(tmp_path: Path, study_file: Path) -> None:
    site = make_clinic(tmp_path / "clinic")
    shown = medfed("build", site.folder, study_file, "--json")
    version = json.loads(shown.stdout)["version"]
    assert open_table(site, study_with()).version == version
    assert version in medfed("build", site.folder, study_file).stdout


def test_a_refusal_is_on_standard_error_alone_with_exit_code_2(tmp_path: Path, study_file: Path) -> None:
    patients = rows()
    patients[0]["WEIGHT"] = "n/a"
    site = make_clinic(tmp_path / "clinic", patients)
    for command in ("check", "build"):
        for more in ((), ("--json",)):
            shown = medfed(command, site.folder, study_file, *more)
            assert (shown.returncode, shown.stdout) == (2, "")
            assert '1 of 40 values are not numbers ("n/a")' in shown.stderr
            assert "site.yaml, line 12" in shown.stderr
            assert "Traceback" not in shown.stderr
    assert not (site.folder / "tables").exists()


def test_what_stands_in_brackets_is_shown_as_it_is(tmp_path: Path, study_file: Path) -> None:
    """Rich reads [bold] as a style; a code of the study may look like that."""
    study = STUDY | {"variables": variables_with(sex={"codes": {"[red]": "Male", "female": "Female"}})}
    study_file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    site = make_clinic(tmp_path / "clinic", sex='{column: SEX, codes: {"1": "[red]", "2": female}}')
    assert "[red]: " in medfed("check", site.folder, study_file).stdout


def test_chinese_is_spoken(tmp_path: Path, study_file: Path) -> None:
    site = make_clinic(tmp_path / "clinic", with_a_dropped_row())
    assert "Rows read" not in medfed("check", site.folder, study_file, "--lang", "zh").stdout


@pytest.mark.parametrize("change", [{"EVENT": "0"}, {"AGE": "50"}, {"WEIGHT": ""}])
def test_warnings_are_shown_whole_and_in_the_readers_language(
    tmp_path: Path, study_file: Path, change: dict[str, str]
) -> None:
    site = make_clinic(tmp_path / "clinic", [patient | change for patient in rows()])
    (warning,) = check(site, study_with()).warnings
    assert f"! {warning}\n" in medfed("check", site.folder, study_file).stdout
    chinese = medfed("check", site.folder, study_file, "--lang", "zh").stdout
    assert "! " in chinese
    assert "every patient" not in chinese


def test_init_makes_a_site_that_only_its_owner_can_read_and_never_a_second_one(
    tmp_path: Path, study_file: Path
) -> None:
    folder = tmp_path / "new"
    title = 'St. "Mary\'s" Hospital: 圣玛丽'
    made = medfed("init", folder, "--name", "marys", "--title", title)
    assert made.returncode == 0, made.stderr
    site = load_site(folder)
    assert (site.name, site.title()) == ("marys", title)
    key = folder / "keys" / "pseudonym.key"
    assert (key.stat().st_mode & 0o777, (folder / "keys").stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(site.pseudonym_key()) == 32
    assert "data/export.csv does not exist" in medfed("check", folder, study_file).stderr
    before = contents(folder)
    again = medfed("init", folder, "--name", "marys")
    assert (again.returncode, contents(folder)) == (2, before)


@pytest.mark.parametrize("name", ["St Marys", "Marys", "", "mary's", "../marys"])
def test_init_with_a_name_that_no_study_can_invite_makes_nothing(tmp_path: Path, name: str) -> None:
    refused = medfed("init", tmp_path / "new", "--name", name)
    assert refused.returncode == 2
    assert "--name" in refused.stderr
    assert not (tmp_path / "new").exists()
