"""medfed study: what is wrong with a method has a line too; a person is shown all that the file declares."""

import json
from pathlib import Path

import pytest
from study_text import TEXT

from medfed.cli.main import run_command
from medfed.study import load_study, parse_study


class Command:
    """``medfed study ...`` as it is installed: exit code, standard output, standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["medfed", "study", *map(str, words)])
        self.monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            run_command()
        shown = self.capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err


@pytest.fixture
def study_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_every_method_and_setting_that_is_not_installed_is_told_with_its_line(
    study_command: Command, tmp_path: Path
) -> None:
    variants = (
        "variants:\n"
        '  misspelt: {use: "medfed:medfed.methods.fedavg.FedAvgg"}\n'
        '  absent: {use: "nowhere:nowhere.methods.Some"}\n'
    )
    text = TEXT.replace("settings: {tolerance: 1e-8}\n", "settings:\n    l2: 1\n    tolerence: 1\n" + variants)
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    code, out, err = study_command("check", path)
    assert (code, out) == (2, "")
    setting, misspelt, absent = err.splitlines()
    assert setting.startswith(f"{path}, line 26, method.settings: Newton has no setting 'tolerence'")
    assert "did you mean 'tolerance'?" in setting
    assert misspelt.startswith(f"{path}, line 28, variants.misspelt.use: ")
    assert misspelt.endswith("did you mean 'medfed:medfed.methods.fedavg.FedAvg'?")
    assert absent.startswith(f"{path}, line 29, variants.absent.use: ")


def test_show_has_every_key_of_the_file_and_cuts_no_meaning_short(study_command: Command, tmp_path: Path) -> None:
    meaning = "手术当日的周岁年龄，以出生日期与手术日期计算，不足一岁者不计"
    text = TEXT.replace("meaning: Age", f"meaning: {{en: Age, zh: {meaning}}}")
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    code, out, err = study_command("show", tmp_path, "--lang", "zh")
    assert (code, err) == (0, "")
    assert "…" not in out
    column = "".join(line.split("│")[2].strip() for line in out.splitlines() if line.count("│") > 3)
    assert meaning in column
    for words in (
        "unit: patient, protects patient",
        "cohort: 18 ≤ age",
        "task: risk_prediction, coding reference",
        "parts: folds, folds 5",
        "privacy: sums strongest",
        "evaluation: cross_validation, compare federated",
        "seed: 1",
        "limits: rows_per_site 100000",
    ):
        assert words in out
    assert set(parse_study(text).model_dump()) == {
        "medfed", "name", "title", "question", "unit", "protects", "variables", "cohort", "task", "method", "variants",
        "parts", "privacy", "evaluation", "seed", "sites", "limits",
    }, "a new key of the file has to be shown as well"  # fmt: skip


def test_show_says_the_event_the_reference_and_the_texts_of_codes(study_command: Command, tmp_path: Path) -> None:
    arm = (
        "  arm: {meaning: Arm, type: code, role: arm, codes: {p: {en: Placebo, zh: 安慰剂}, d: Drug}, reference: p}\n"
        "  age:\n"
    )
    (tmp_path / "study.yaml").write_text(TEXT.replace("  age:\n", arm), encoding="utf-8")
    shown = {lang: " ".join(study_command("show", tmp_path, "--lang", lang)[1].split()) for lang in ("en", "zh")}
    assert "event: yes" in shown["en"]
    assert "p (Placebo)" in shown["en"]
    assert "p (安慰剂)" in shown["zh"]
    assert "reference: p" in shown["zh"].replace("│ ", "")


def test_hash_and_new_speak_json(study_command: Command, tmp_path: Path) -> None:
    code, out, err = study_command("new", tmp_path / "asthma", "--kind", "treatment", "--json")
    written = json.loads(out)
    study = load_study(tmp_path / "asthma")
    assert (code, err, written["name"], written["hash"]) == (0, "", "asthma", study.hash)
    assert Path(written["file"]) == tmp_path / "asthma" / "study.yaml"
    found = json.loads(study_command("hash", tmp_path / "asthma", "--json")[1])
    assert found == {"name": "asthma", "hash": study.hash, "table_hash": study.table_hash}


def test_the_help_tells_in_which_order_to_go(study_command: Command) -> None:
    words = " ".join(study_command("--help")[1].split())
    assert words.index("`new`") < words.index("`check`") < words.index("`show`") < words.index("`hash`")
