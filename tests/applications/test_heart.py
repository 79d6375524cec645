"""Heart disease at four hospitals: the studies as files, the whole way on invented rows, and published data where given.

The invented rows have the collection's format, sizes and gaps and no meaning. The published figures need the files:
MEDFED_DATA names a folder that holds them (docs/heart-disease.md says where to get them).
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medfed.applications.heart import HOSPITALS, flamby, leave_one_out, prepare
from medfed.applications.heart.exports import COLUMNS, ROWS, build_and_approve, read_study
from medfed.applications.heart.transport import held_back
from medfed.data.build import open_table
from medfed.data.site_folder import load_site
from medfed.data.table import StudyTable
from medfed.engines.site_folders import find_sites
from medfed.engines.what_if import what_if
from medfed.errors import FederationError, MedfedError
from medfed.evaluation.calibration import updated_intercept
from medfed.evaluation.study_run import StudyRun, pooled_leave_one_out, predictor_at
from medfed.federation.here import Here, fit
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy, load_policy
from medfed.federation.runner import Runner
from medfed.methods.recalibration import Recalibration

DATA = Path(os.environ["MEDFED_DATA"]) if os.environ.get("MEDFED_DATA") else None
needs_data = pytest.mark.skipif(
    DATA is None or not list(DATA.rglob("processed.cleveland.data")),
    reason="MEDFED_DATA names no folder with the UCI heart disease files (docs/heart-disease.md says where to get them)",
)
STUDIES = Path(__file__).parents[2] / "studies" / "heart-disease"
CODED = {"sex": 2, "cp": 4, "fbs": 2, "restecg": 3, "exang": 2}
NUMBERS = ("age", "trestbps", "thalach", "oldpeak")


def write_invented(folder: Path, seed: int = 5) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for shift, (name, file) in enumerate(HOSPITALS.items()):
        rows = []
        for _ in range(ROWS[name]):
            age, pain = int(rng.normal(53 + shift, 9)), int(rng.integers(1, 5))
            sick = rng.random() < 1 / (1 + np.exp(-(0.05 * (age - 54) + 0.9 * (pain - 2.5) + 0.3 * shift)))
            row = [
                age, int(rng.integers(2)), pain, int(rng.normal(132, 18)), int(rng.normal(240, 50)), int(rng.integers(2)),
                int(rng.integers(3)), int(rng.normal(140, 25)), int(rng.integers(2)), round(float(rng.exponential(1)), 1),
                1, 0, 3, int(sick) * int(rng.integers(1, 5)),
            ]  # fmt: skip
            text = [str(float(v)) if name == "cleveland" and i < 13 else str(v) for i, v in enumerate(row)]
            for gap in (3, 5, 6, 7, 8, 9):
                if name != "cleveland" and rng.random() < 0.1:
                    text[gap] = "?"
            rows.append(",".join(text))
        (folder / f"processed.{file}.data").write_text("\n".join(rows) + "\n")


def oracle(data: Path, left_out: str) -> tuple[float, float]:
    """AUC and O/E of the left-out hospital by scikit-learn on the files' rows, sharing no code with the project."""
    frames = {}
    for name, file in HOSPITALS.items():
        path = next(data.rglob(f"processed.{file}.data"))
        rows = [row for row in csv.reader(path.open()) if row]
        frames[name] = {
            c: np.array([np.nan if r[i] in ("?", "") else float(r[i]) for r in rows]) for i, c in enumerate(COLUMNS)
        }
        pressure = frames[name]["trestbps"]
        pressure[pressure == 0] = np.nan  # nobody's blood pressure is 0: the study's range makes it missing
    train = {c: np.concatenate([frames[n][c] for n in HOSPITALS if n != left_out]) for c in COLUMNS}

    def features(frame: dict[str, np.ndarray]) -> np.ndarray:
        columns = []
        for c in NUMBERS:
            scaled = (frame[c] - np.nanmean(train[c])) / np.nanstd(train[c])
            columns.append(np.where(np.isnan(scaled), 0.0, scaled))
        for c, levels in CODED.items():
            columns += [frame[c] == level for level in range(c == "cp", levels + (c == "cp"))]
            columns.append(np.isnan(frame[c]))
        return np.column_stack(columns).astype(float)

    model = LogisticRegression(C=1 / 5, solver="newton-cholesky", tol=1e-12, max_iter=200)
    model.fit(features(train), train["num"] > 0)
    risk = model.predict_proba(features(frames[left_out]))[:, 1]
    outcome = frames[left_out]["num"] > 0
    return float(roc_auc_score(outcome, risk)), float(outcome.sum() / risk.sum())


def test_both_studies_name_methods_and_settings_that_exist() -> None:
    for name in ("study", "flamby"):
        study = read_study(name)
        for variant in (None, *study.variants):
            find_method(study, variant)
        for site in study.sites.invited:
            folder = STUDIES / "sites" / site
            assert set(study.variables) <= set(load_site(folder).declared.mapping)
            assert load_policy(folder / "policy.yaml").minimum_cell == 1


def test_the_hospitals_alone_train_by_the_recipe_of_all() -> None:
    study = read_study("flamby")
    recipes = [study.settings_of(name) for name in study.variants if name.startswith("only-")]
    assert len(recipes) == 3
    assert all({k: v for k, v in recipe.items() if k != "hospital"} == study.settings_of() for recipe in recipes)
    assert study.settings_of() in [study.settings_of(name) for name in study.variants if name.startswith("candidate-")]
    assert len(study.evaluation.variants) + 1 <= study.test_models


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heart") / "data"
    write_invented(folder)
    return folder


def test_a_missing_or_foreign_file_is_refused_before_anything_is_written(invented: Path, tmp_path: Path) -> None:
    with pytest.raises(MedfedError, match=r"does not hold processed.cleveland.data"):
        prepare(tmp_path, tmp_path / "out")
    for file in invented.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    short = tmp_path / "processed.va.data"
    short.write_text(short.read_text().partition("\n")[2])
    with pytest.raises(MedfedError, match="should have 200 rows of 14 values"):
        prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_that_names_other_patients_is_refused(invented: Path, tmp_path: Path) -> None:
    for file in invented.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    header = "center,hospital,row_in_file,age,thalach,num,flamby_fold"
    (tmp_path / "flamby_740_with_split.csv").write_text(f"{header}\n3,va,0,1,1,0,train\n")
    with pytest.raises(MedfedError, match="row 0 of long-beach-va is another patient"):
        prepare(tmp_path, tmp_path / "out")


def test_the_split_study_says_what_is_missing_without_the_split(invented: Path, tmp_path: Path) -> None:
    with pytest.raises(MedfedError, match=r"FLamby's split can't be used: .*none of 303 rows is left"):
        flamby(invented, tmp_path / "out", seeds=(1,))


def test_four_hospitals_are_set_up_for_the_command_line(invented: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medfed.applications.heart", str(invented), str(tmp_path / "four")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("medfed run") == 1, "without the split only the first study can be run"
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "exists already" in again.stderr
    study = read_study()
    assert find_sites(tmp_path / "four").keys() == set(study.sites.invited)
    assert sum(open_table(site, study).rows for site in find_sites(tmp_path / "four").values()) == 920


def test_a_model_of_three_hospitals_equals_scikit_learn_on_their_rows(invented: Path, tmp_path: Path) -> None:
    found = leave_one_out(invented, tmp_path / "out")
    assert found["patients"] == 920
    assert found["difference_from_pooled"] < 1e-9
    for site, one in found["hospitals"].items():
        auc, ratio = oracle(invented, site)
        assert one["auc"] == pytest.approx(auc, abs=1e-9)
        assert one["oe"] == pytest.approx(ratio, abs=1e-6)
        assert one["auc_low"] < one["auc"] < one["auc_high"]
        assert one["update"]["low"] < one["update"]["oe"] < one["update"]["high"]


def test_the_intercept_update_is_the_recalibration_method_on_the_same_patients(invented: Path, tmp_path: Path) -> None:
    study = read_study()
    tables = {name: build_and_approve(site, study) for name, site in prepare(invented, tmp_path / "out").items()}
    fitted = pooled_leave_one_out(tables, study, "cleveland")
    drawn = np.random.default_rng(3).integers(tables["cleveland"].rows, size=50)
    fifty = StudyTable.from_columns(study, {name: tables["cleveland"].columns[name][drawn] for name in study.variables})
    method = Recalibration(*(fitted[key] for key in ("coefficients", "centre", "scale")), prior_sd=1.5)
    line = fit(method, Here(fifty.on, study))
    predictor, outcome = predictor_at(fifty, study, fitted)
    assert line["intercept"] == pytest.approx(updated_intercept(predictor, outcome, prior_sd=1.5), abs=1e-9)


@needs_data
def test_published_data_leave_one_hospital_out(tmp_path: Path) -> None:
    assert DATA is not None
    found = leave_one_out(DATA, tmp_path / "out")
    expected = {"cleveland": 0.863, "hungary": 0.885, "switzerland": 0.733, "long-beach-va": 0.760}
    ratios = {"cleveland": 0.93, "hungary": 0.79, "switzerland": 1.44, "long-beach-va": 1.00}
    assert {site: one["n"] for site, one in found["hospitals"].items()} == ROWS
    assert found["difference_from_pooled"] < 1e-9
    for site, one in found["hospitals"].items():
        auc, ratio = oracle(DATA, site)
        assert one["auc"] == pytest.approx(auc, abs=1e-9)
        assert one["oe"] == pytest.approx(ratio, abs=1e-6)
        assert one["auc"] == pytest.approx(expected[site], abs=0.005)
        assert one["oe"] == pytest.approx(ratios[site], abs=0.006)
        assert 0.95 <= one["update"]["oe"] <= 1.05
        assert one["needed"]["low"] <= one["needed"]["patients"] <= one["needed"]["high"]


@needs_data
def test_published_data_under_the_default_policy_stay_where_they_are(tmp_path: Path) -> None:
    assert DATA is not None
    study = read_study()
    tables = {name: build_and_approve(site, study) for name, site in prepare(DATA, tmp_path / "sites").items()}
    reasons = held_back(study, tables, Policy())
    for site in ("cleveland", "hungary"):
        assert "under the minimum cell" in reasons[site]["medfed:medfed.methods.newton.logistic_terms"]
    for site in ("switzerland", "long-beach-va"):
        assert "more values for each patient" in reasons[site]["medfed:medfed.methods.newton.logistic_terms"]
    assert not any(
        held_back(study, {site: table}, load_policy(STUDIES / "sites" / site / "policy.yaml"))[site]
        for site, table in tables.items()
    )
    engine, keys = what_if(tmp_path / "store", tables, study, [StudyRun(study)])
    runner = Runner(tmp_path / "coordinator", engine, study, durability="process", public_keys=keys)
    with pytest.raises(FederationError, match="0 of 4 sites answered 'moments'"):
        runner.execute(StudyRun(study))
    runner.close()


@needs_data
def test_a_mirror_with_inverted_labels_is_set_apart(tmp_path: Path) -> None:
    assert DATA is not None
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for file in HOSPITALS.values():
        path = next(DATA.rglob(f"processed.{file}.data"))
        rows = [row for row in csv.reader(path.open()) if row]
        if file == "cleveland":
            rows = [[*row[:-1], "0" if int(row[-1]) > 0 else "1"] for row in rows]
        (mirror / path.name).write_text("\n".join(",".join(row) for row in rows) + "\n")
    found = leave_one_out(mirror, tmp_path / "out")
    assert found["hospitals"]["cleveland"]["auc"] < 0.2
    assert "cleveland" in found["alarms"]
    assert "worse than chance" in found["alarms"]["cleveland"]


@needs_data
@pytest.mark.slow
def test_published_data_fedavg_on_flambys_split(tmp_path: Path) -> None:
    assert DATA is not None
    found = flamby(DATA, tmp_path / "out")
    tables = {site: load_site(tmp_path / "out" / "sites" / site) for site in HOSPITALS}
    parts = {"cleveland": (199, 104), "hungary": (172, 89), "switzerland": (30, 16), "long-beach-va": (85, 45)}
    for site, folder in tables.items():
        text = (folder.folder / "data" / "export.csv").read_text()
        assert (text.count(",train\n"), text.count(",test\n")) == parts[site]
    assert found["choice"]["is_the_studys"]
    test = found["test"]
    assert {one["n"] for one in test.values()} == {254}
    assert test["fedavg"]["accuracy"] >= 0.785
    assert test["fedavg"]["accuracy"] > max(one["accuracy"] for name, one in test.items() if name.startswith("only-"))
    assert test["fedavg"]["accuracy"] > test["scaled-at-home-everything"]["accuracy"]
    assert test["candidate-flamby"]["accuracy"] == pytest.approx(found["published"]["fedavg"], abs=0.02)
