"""A model at a hospital: predictions written locally, outcomes fed back, drift watched. Nothing of it leaves the site."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import write_atomically
from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError
from medfed.evaluation.calibration import RiskSums, observed_to_expected, risk_sums
from medfed.evaluation.drift import InputDrift, RiskDrift, input_counts, input_drift, risk_drift
from medfed.models.linear import LinearModel
from medfed.study import Study

FloatArray = NDArray[np.float64]

OUTSIDE = "outside what the model has learned from"
INCOMPLETE = "a value that the model needs is missing"


@dataclass(frozen=True)
class Applied:
    """What applying a model gave: where it stands, patients predicted, and those it abstained for, by reason."""

    path: Path
    model: str
    predicted: int
    abstained: Mapping[str, int]


def predictions_path(site: SiteFolder, model: LinearModel) -> Path:
    """The site's file of predictions by this model."""
    return site.folder / "predictions" / f"{model.hash[:16]}.csv"


def _given_path(site: SiteFolder, model: LinearModel) -> Path:
    """Every risk that this model has given here, the latest of each patient."""
    return predictions_path(site, model).with_suffix(".given.json")


def _stored(path: Path) -> dict[str, Any]:
    """A file of ours at the site, or nothing where there is none. MappingError where it is damaged."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise MappingError(f"{path} is damaged; restore it from a backup, or delete it and run `medfed site apply` again")


def apply_model(site: SiteFolder, study: Study, model: LinearModel) -> Applied:
    """Predict for every row of the site's source and write a CSV for its clinicians.

    Columns: patient (the site's own identifier), risk, low, high (95 % interval of the mean risk), model (hash),
    note. Where a value is missing or outside what the model learned from, it abstains and says so.
    """
    if model.names != study.design.names or model.study != study.hash:
        raise MappingError(
            f"the model belongs to another study than {study.name!r} as it stands; use the study it came with"
        )

    found = read_for_prediction(site, study)
    patients, raw, complete = found.patients, found.features, found.complete
    outside = found.outside | model.outside(raw)
    risk = model.predict(raw)
    low, high = model.interval(raw)
    rows: list[list[str]] = []
    abstained: dict[str, int] = {}
    given = _stored(_given_path(site, model))
    predicted = 0
    for index, patient in enumerate(patients):
        note = OUTSIDE if outside[index] else INCOMPLETE if not complete[index] else ""
        if note:
            abstained[note] = abstained.get(note, 0) + 1
            rows.append([patient, "", "", "", model.hash, note])
        else:
            predicted += 1
            given[patient] = float(f"{risk[index]:.6f}")
            interval = [f"{low[index]:.6f}", f"{high[index]:.6f}"] if model.has_interval else ["", ""]
            rows.append([patient, f"{risk[index]:.6f}", *interval, model.hash, ""])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["patient", "risk", "low", "high", "model", "note"])
    writer.writerows(rows)
    path = predictions_path(site, model)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, text.getvalue().encode("utf-8-sig"), mode=0o600)
    # Outcomes come later than the next export: every risk that was given is kept for them.
    write_atomically(_given_path(site, model), json.dumps(given).encode(), mode=0o600)
    reference = path.with_suffix(".inputs.json")
    if not reference.exists():
        write_atomically(reference, json.dumps(_input_table(study, model, raw[complete])).encode(), mode=0o600)
    return Applied(path, model.hash, predicted, abstained)


def _input_table(study: Study, model: LinearModel, raw: FloatArray) -> dict[str, list[float]]:
    """Counts of each feature in bins around the training mean, (bins + 1,) each; the last counts the missing."""
    table = {}
    for index, column in enumerate(study.design.columns):
        if column.kind == "number":
            edges = model.centre[index] + model.scale[index] * np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
            table[column.name] = input_counts(raw[:, index], edges).tolist()
        elif column.kind == "indicator":
            table[column.name] = input_counts(raw[:, index], [0.5]).tolist()
    return table


@dataclass(frozen=True)
class FedBack:
    """Outcomes joined to predictions: how many, and what they say of the model's calibration here."""

    joined: int
    unmatched: int
    observed: float
    expected: float
    ratio: float
    low: float
    high: float
    risk: RiskDrift

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_predictions(site: SiteFolder, model: LinearModel) -> dict[str, float]:
    """Patient -> the latest risk that this model gave here."""
    given = _stored(_given_path(site, model))
    if not given:
        raise MappingError(f"site {site.name!r} has no predictions by this model; run `medfed site apply` first")
    return given


def feed_back(site: SiteFolder, study: Study, model: LinearModel, outcomes: Path) -> FedBack:
    """Join outcomes to the model's predictions, store them at the site, and judge calibration with a limit that knows n.

    Outcomes fed back earlier are kept; a later one for the same patient replaces them.
    """
    if model.kind != "logistic":
        raise MappingError("outcomes are compared with risks, and this model predicts a number, not a risk")
    predictions = read_predictions(site, model)

    fresh = read_outcomes(site, study, outcomes)
    path = site.folder / "feedback" / f"{model.hash[:16]}.json"
    stored: dict[str, float] = _stored(path)
    unmatched = sum(patient not in predictions for patient in fresh)
    stored |= {patient: outcome for patient, outcome in fresh.items() if patient in predictions}
    if not stored:
        raise MappingError(
            f"{outcomes}: none of its {len(fresh)} patients was predicted by this model; check the identifier's column"
        )
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(path, json.dumps(stored).encode(), mode=0o600)
    sums = _sums(predictions, stored)
    ratio = observed_to_expected(sums.events, sums.expected, sums.rows)
    return FedBack(
        len(stored), unmatched, sums.events, sums.expected, ratio.value, ratio.low, ratio.high, risk_drift(sums)
    )


def _sums(predictions: Mapping[str, float], outcomes: Mapping[str, float]) -> RiskSums:
    risk = np.array([predictions[patient] for patient in outcomes])
    return risk_sums(risk, np.array(list(outcomes.values())))


def watch_inputs(site: SiteFolder, study: Study, model: LinearModel) -> list[InputDrift]:
    """Inputs of the site's present source against those at the model's first application here."""
    reference = _stored(predictions_path(site, model).with_suffix(".inputs.json"))
    if not reference:
        raise MappingError(f"site {site.name!r} has not applied this model yet; run `medfed site apply` first")

    found = read_for_prediction(site, study)
    return input_drift(reference, _input_table(study, model, found.features[found.complete]))
