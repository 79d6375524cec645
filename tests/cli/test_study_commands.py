"""medfed study new, check, show, hash."""

from pathlib import Path

import pytest
from consortium_folder import STUDY, done, medfed, refused

from medfed.study import load_study


@pytest.mark.parametrize("kind", ["risk", "treatment", "survival"])
def test_a_new_study_passes_its_check_as_it_is(tmp_path: Path, kind: str) -> None:
    shown = done("study", "new", tmp_path / "Stroke after TAVI", "--kind", kind)
    path = tmp_path / "Stroke after TAVI" / "study.yaml"
    assert f"medfed study check {path}" in shown.out
    assert load_study(path).name == "stroke-after-tavi"
    assert "the study is well formed" in done("study", "check", path).out
    assert done("study", "check", path.parent, "--json").json["hash"] == load_study(path).hash


@pytest.mark.parametrize("folder", ["心脏病", "2026", "a" * 200, "-"])
def test_any_folder_name_gives_a_study_a_name(tmp_path: Path, folder: str) -> None:
    done("study", "new", tmp_path / folder)
    done("study", "check", tmp_path / folder)


def test_a_new_study_never_overwrites_one(tmp_path: Path) -> None:
    done("study", "new", tmp_path)
    (tmp_path / "study.yaml").write_text("mine", encoding="utf-8")
    assert "exists already; nothing was changed" in refused("study", "new", tmp_path)
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_an_unknown_kind_of_study_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    assert "--kind is risk, treatment or survival, not 'cohort'" in refused(
        "study", "new", tmp_path / "x", "--kind", "cohort"
    )
    assert not (tmp_path / "x").exists()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def test_the_hash_is_printed_alone(study: Path) -> None:
    assert done("study", "hash", study).out == load_study(study).hash + "\n"


def test_check_as_json_names_steps_and_features(study: Path) -> None:
    found = done("study", "check", study, "--json").json
    assert found["features"] == ["intercept", "age", "weight"]
    assert found["hash"] == load_study(study).hash
    assert all(step.startswith("medfed:medfed.") for step in found["steps"])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("role: outcome", "rule: outcome", "study.yaml, line 9, variables.event.rule: there is no key 'rule' here; did you mean 'role'?"),
        ("unit: kg", "unit: kgg", "line 22, variables.weight.unit: there is no unit 'kgg'; did you mean 'kg'?"),
        ("newton.Newton", "newton.Neuton", "method.use: 'medfed:medfed.methods.newton.Neuton' does not exist in the installed"),
        ("medfed:medfed.methods", "scipy:medfed.methods", "package 'scipy' is not installed at this site, or does not hold"),
        ('.Newton"}', '.Newton", settings: {toleranse: 1}}', "Newton has no setting 'toleranse'; did you mean 'tolerance'?"),
        ('.Newton"}', '.Newton", settings: {tolerance: small}}', "'small' is not of type float; correct it"),
        ("newton.Newton", "newton.dataclass", "is not a method"),
    ],
)  # fmt: skip
def test_check_says_what_is_wrong_and_what_to_write(study: Path, old: str, new: str, sentence: str) -> None:
    text = study.read_text(encoding="utf-8")
    assert old in text
    study.write_text(text.replace(old, new, 1), encoding="utf-8")
    shown = medfed("study", "check", study)
    assert (shown.code, shown.out) == (2, "")
    assert sentence in shown.err


def test_show_tells_a_person_what_is_asked_in_both_languages(study: Path) -> None:
    english, chinese = done("study", "show", study).out, done("study", "show", study, "--lang", "zh").out
    for words in ("Three sites", "Who has the event?", "weight", "kg, 30 – 200", "no, yes", load_study(study).hash):
        assert words in english
    for words in ("三家医院", "谁会发生结局事件？", "体重"):
        assert words in chinese
    assert "medfed.methods.newton" in english
    assert done("study", "show", study, "--json").json["variables"]["weight"]["unit"] == "kg"


def test_show_prints_a_title_as_it_stands(study: Path) -> None:
    """Rich takes [/bold] for the end of a style that was never begun, and stops with an error."""
    study.write_text(
        STUDY.replace("Three sites", "'Trial [/bold] [red]A'").replace("Weight,", "'W [/x]',"), encoding="utf-8"
    )
    shown = done("study", "show", study).out
    assert "Trial [/bold] [red]A" in shown
    assert "W [/x]" in shown


def test_an_unknown_language_is_refused(study: Path) -> None:
    assert "there is no language 'fr'; choose en or zh" in refused("study", "show", study, "--lang", "fr")


def test_help_and_version_are_there() -> None:
    assert done("--version").out.startswith("medfed ")
    assert "approve" in medfed("site", "--help").out
    wrong = medfed("study", "chekc", "x")
    assert (wrong.code, wrong.out) == (2, "")
    assert "chekc" in wrong.err
