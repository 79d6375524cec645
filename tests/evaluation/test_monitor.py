"""A model at a hospital: whom it predicts, for whom it abstains, outcomes that come later, inputs that drift."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from clinic import contents, csv_text, make_clinic, rows, study_with

from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError, MedfedError
from medfed.evaluation.monitor import INCOMPLETE, OUTSIDE, apply_model, feed_back, predictions_path, watch_inputs
from medfed.models.linear import LinearModel
from medfed.study import Study

STUDY_OF_RISK = study_with(cohort={"include": [{"variable": "age", "at_most": 95}]})


def model_for(asked: Study = STUDY_OF_RISK, **changes: Any) -> LinearModel:
    """intercept, sex=female, sex=unknown, age, weight"""
    columns = asked.design.columns
    values: dict[str, Any] = {
        "kind": "logistic",
        "names": asked.design.names,
        "centre": np.array([0.0, 0.0, 0.0, 55.0, 75.0]),
        "scale": np.array([1.0, 1.0, 1.0, 20.0, 12.0]),
        "coefficients": np.array([-0.4, 0.3, 0.1, 0.8, 0.2]),
        "covariance": np.diag(np.full(len(columns), 0.01)),
        "low": np.array([column.low for column in columns]),
        "high": np.array([column.high for column in columns]),
        "study": asked.hash,
        "provenance": {"run": "first"},
    }
    return LinearModel(**(values | changes))


def patient(number: int, **changes: str) -> dict[str, str]:
    return {"patient_id": f"P{number}", "SEX": "1", "AGE": "55", "WEIGHT": "75", "EVENT": ""} | changes


def written(site: SiteFolder, model: LinearModel) -> dict[str, dict[str, str]]:
    with predictions_path(site, model).open(encoding="utf-8-sig", newline="") as file:
        return {row["patient"]: row for row in csv.DictReader(file)}


def test_a_prediction_names_patient_risk_interval_and_model(tmp_path: Path) -> None:
    """By hand: at the mean of age and weight a man's risk is that of the intercept, 1 / (1 + e^0.4)."""
    model = model_for()
    site = make_clinic(tmp_path, [patient(1), patient(2, SEX="2", AGE="75", WEIGHT="87")])
    applied = apply_model(site, STUDY_OF_RISK, model)
    found = written(site, model)
    assert (applied.predicted, applied.abstained, list(found)) == (2, {}, ["P1", "P2"])
    assert float(found["P1"]["risk"]) == pytest.approx(1 / (1 + np.exp(0.4)), abs=1e-6)
    assert float(found["P2"]["risk"]) == pytest.approx(1 / (1 + np.exp(0.4 - 0.3 - 0.8 - 0.2)), abs=1e-6)
    for row in found.values():
        assert float(row["low"]) < float(row["risk"]) < float(row["high"])
        assert (row["model"], row["note"]) == (model.hash, "")
    half = 1.959963984540054 * 0.1  # one term of variance 0.01
    assert float(found["P1"]["high"]) == pytest.approx(1 / (1 + np.exp(0.4 - half)), abs=1e-6)


def test_a_model_without_a_covariance_gives_no_interval(tmp_path: Path) -> None:
    model = model_for(covariance=np.zeros((5, 5)))
    site = make_clinic(tmp_path, [patient(1)])
    apply_model(site, STUDY_OF_RISK, model)
    assert written(site, model)["P1"]["low"] == ""


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"AGE": ""}, INCOMPLETE),
        ({"AGE": "17"}, OUTSIDE),
        ({"AGE": "111"}, OUTSIDE),
        ({"AGE": "96"}, OUTSIDE),
        ({"WEIGHT": "999"}, OUTSIDE),
        ({"WEIGHT": "124"}, OUTSIDE),
        ({"WEIGHT": ""}, ""),
        ({"SEX": ""}, ""),
        ({"AGE": "95"}, ""),
        ({"EVENT": "1"}, ""),
    ],
    ids=[
        "what the model needs is missing", "below the range", "above the range", "outside the cohort",
        "a mistyped weight is not the mean weight", "four deviations from the mean", "missing: mean", "missing: unknown",
        "the end of the cohort", "the outcome does not matter",
    ],
)  # fmt: skip
def test_it_abstains_outside_what_it_learned_from_and_says_so(
    tmp_path: Path, changes: dict[str, str], note: str
) -> None:
    model = model_for()
    site = make_clinic(tmp_path, [patient(1, **changes), patient(2)])
    applied = apply_model(site, STUDY_OF_RISK, model)
    row = written(site, model)["P1"]
    assert row["note"] == note
    assert (row["risk"] == "") == bool(note)
    assert applied.abstained == ({note: 1} if note else {})
    assert applied.predicted == 1 + (not note)


def test_a_patient_is_predicted_once_by_the_sites_rule(tmp_path: Path) -> None:
    model, twice = model_for(), [patient(1, AGE="40"), patient(1, AGE="80"), patient(2), patient(3, patient_id="")]
    with pytest.raises(MappingError, match="1 patients have more than one row"):
        apply_model(make_clinic(tmp_path / "refuse", twice), STUDY_OF_RISK, model)
    site = make_clinic(tmp_path / "last", twice, duplicates="last")
    assert apply_model(site, STUDY_OF_RISK, model).predicted == 2
    older = 1 / (1 + np.exp(0.4 - 0.8 * (80 - 55) / 20))
    assert float(written(site, model)["P1"]["risk"]) == pytest.approx(older, abs=1e-6)


def test_predictions_can_be_read_by_the_site_alone(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path, [patient(1)])
    apply_model(site, STUDY_OF_RISK, model)
    for path in (site.folder / "predictions").iterdir():
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("model", "study", "sentence"),
    [
        (model_for(), study_with(seed=9), "the model belongs to another study than 'example' as it stands"),
        (model_for(study="0" * 64), STUDY_OF_RISK, "the model belongs to another study"),
    ],
)
def test_a_model_of_another_study_is_not_applied(
    tmp_path: Path, model: LinearModel, study: Study, sentence: str
) -> None:
    site = make_clinic(tmp_path, [patient(1)])
    before = contents(tmp_path)
    with pytest.raises(MedfedError, match=sentence):
        apply_model(site, study, model)
    assert contents(tmp_path) == before


def test_an_empty_export_is_said_and_predictions_are_left_alone(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path, [patient(1)])
    apply_model(site, STUDY_OF_RISK, model)
    before = contents(tmp_path / "predictions")
    (tmp_path / "data" / "export.csv").write_text("patient_id,SEX,AGE,WEIGHT,EVENT\n")
    with pytest.raises(MappingError, match="has no rows; export it again"):
        apply_model(site, STUDY_OF_RISK, model)
    assert contents(tmp_path / "predictions") == before


# -- outcomes ------------------------------------------------------------------------------------------------------


def outcomes(folder: Path, results: dict[str, str], name: str = "outcomes.csv") -> Path:
    path = folder / name
    path.write_text("patient_id,EVENT\n" + "".join(f"{who},{what}\n" for who, what in results.items()))
    return path


def test_outcomes_are_joined_in_the_sites_own_codes_and_judged_by_their_number(tmp_path: Path) -> None:
    model = model_for()
    site = make_clinic(tmp_path / "site", [patient(n) for n in range(400)])
    apply_model(site, STUDY_OF_RISK, model)
    risk = 1 / (1 + np.exp(0.4))
    truth = {f"P{n}": "1" if n < round(400 * risk) else "0" for n in range(400)}
    few = feed_back(
        site, STUDY_OF_RISK, model, outcomes(tmp_path, dict(list(truth.items())[:8]) | {"P7": "", "X": "1"})
    )
    assert (few.joined, few.unmatched, few.observed) == (7, 1, 7)
    assert few.risk.verdict == "too few"
    assert few.expected == pytest.approx(7 * risk, abs=1e-4)
    enough = feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, truth))
    assert (enough.joined, enough.unmatched) == (400, 0)
    assert enough.ratio == pytest.approx(1, abs=0.01)
    assert enough.low < 1 < enough.high
    assert enough.risk.verdict == "no drift"
    worse = feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, dict.fromkeys(truth, "1")))
    assert worse.observed == 400
    assert worse.risk.verdict == "drift"


def test_outcomes_are_joined_to_predictions_of_an_earlier_export(tmp_path: Path) -> None:
    """Outcomes come weeks later, when the next export has other patients."""
    model = model_for()
    site = make_clinic(tmp_path, [patient(1), patient(2)])
    apply_model(site, STUDY_OF_RISK, model)
    (tmp_path / "data" / "export.csv").write_text(csv_text([patient(2, AGE="75"), patient(3)]))
    apply_model(site, STUDY_OF_RISK, model)
    assert list(written(site, model)) == ["P2", "P3"]
    found = feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, {"P1": "1", "P2": "0", "P3": "0"}))
    assert (found.joined, found.unmatched) == (3, 0)
    assert found.expected == pytest.approx(2 / (1 + np.exp(0.4)) + 1 / (1 + np.exp(0.4 - 0.8)), abs=1e-4)


def test_outcomes_that_come_in_parts_are_kept_and_a_later_one_replaces_an_earlier(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path, [patient(1), patient(2)])
    apply_model(site, STUDY_OF_RISK, model)
    assert feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, {"P1": "1"})).observed == 1
    assert feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, {"P2": "1"})).observed == 2
    corrected = feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, {"P1": "0"}))
    assert (corrected.joined, corrected.observed) == (2, 1)


def test_what_can_not_be_fed_back_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path / "site", [patient(1)])
    good = outcomes(tmp_path, {"P1": "1"})
    with pytest.raises(MappingError, match="has no predictions by this model; run `medfed site apply` first"):
        feed_back(site, STUDY_OF_RISK, model, good)
    apply_model(site, STUDY_OF_RISK, model)
    before = contents(tmp_path / "site")
    wrong = {
        "nowhere.csv does not exist; give the file that holds the outcomes": tmp_path / "nowhere.csv",
        r"codes without a map: \"perhaps\" \(1\)": outcomes(tmp_path, {"P1": "perhaps"}, "a.csv"),
        "none of its 1 patients was predicted by this model; check the identifier's column": outcomes(
            tmp_path, {"X": "1"}, "b.csv"
        ),
    }
    no_column = tmp_path / "c.csv"
    no_column.write_text("id,EVENT\nP1,1\n")
    wrong["the feedback file: the source has no column 'patient_id'"] = no_column
    for sentence, path in wrong.items():
        with pytest.raises(MappingError, match=sentence):
            feed_back(site, STUDY_OF_RISK, model, path)
    assert contents(tmp_path / "site") == before
    (given,) = (tmp_path / "site" / "predictions").glob("*.given.json")
    given.write_text("{")
    with pytest.raises(MappingError, match=r"given.json is damaged; restore it from a backup"):
        feed_back(site, STUDY_OF_RISK, model, good)


def test_a_model_of_numbers_has_no_risks_to_compare(tmp_path: Path) -> None:
    model, site = model_for(kind="gaussian"), make_clinic(tmp_path, [patient(1)])
    apply_model(site, STUDY_OF_RISK, model)
    with pytest.raises(MappingError, match="this model predicts a number, not a risk"):
        feed_back(site, STUDY_OF_RISK, model, outcomes(tmp_path, {"P1": "1"}))


# -- inputs --------------------------------------------------------------------------------------------------------


def verdicts(site: SiteFolder, model: LinearModel) -> dict[str, str]:
    return {found.variable: found.verdict for found in watch_inputs(site, STUDY_OF_RISK, model)}


def test_inputs_are_compared_with_those_at_the_first_application(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path, rows(600))
    with pytest.raises(MappingError, match="has not applied this model yet; run `medfed site apply` first"):
        watch_inputs(site, STUDY_OF_RISK, model)
    apply_model(site, STUDY_OF_RISK, model)
    (tmp_path / "data" / "export.csv").write_text(csv_text(rows(600, seed=8)))
    assert set(verdicts(site, model).values()) == {"no drift"}
    older = [row | {"AGE": str(min(int(row["AGE"]) + 20, 95))} for row in rows(600, seed=8)]
    (tmp_path / "data" / "export.csv").write_text(csv_text(older))
    apply_model(site, STUDY_OF_RISK, model)  # a later application does not move the reference
    assert [name for name, verdict in verdicts(site, model).items() if verdict == "drift"] == ["age"]
    (tmp_path / "data" / "export.csv").write_text(csv_text(older[:5]))
    assert set(verdicts(site, model).values()) == {"too few"}


def test_a_value_that_stops_arriving_is_a_drift(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path, rows(600))
    apply_model(site, STUDY_OF_RISK, model)
    gone = [row | ({"WEIGHT": ""} if index % 3 == 0 else {}) for index, row in enumerate(rows(600, seed=8))]
    (tmp_path / "data" / "export.csv").write_text(csv_text(gone))
    assert verdicts(site, model)["weight"] == "drift"


def test_what_stays_at_the_site_for_drift_is_counts_alone(tmp_path: Path) -> None:
    model, site = model_for(), make_clinic(tmp_path, rows(60))
    apply_model(site, STUDY_OF_RISK, model)
    (kept,) = (tmp_path / "predictions").glob("*.inputs.json")
    counts = json.loads(kept.read_text())
    assert set(counts) == set(model.names) - {"intercept"}
    assert all(sum(bins) == 60 and all(count == int(count) for count in bins) for bins in counts.values())
