"""Small synthetic consortia for tests: ragged sites, a logistic truth, keys that are the same at every start."""

import hashlib
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.data.table import StudyTable
from medfed.study import Study, study_from_dict

GENEROUS = {"sum": 100.0, "count": 100.0, "reply": 100.0}


def synthetic_study(names: list[str], features: int = 4, **changes: object) -> Study:
    variables: dict[str, object] = {
        "event": {
            "meaning": "Outcome",
            "type": "code",
            "role": "outcome",
            "codes": {"no": "No", "yes": "Yes"},
            "event": "yes",
        }
    }
    for index in range(features):
        variables[f"x{index}"] = {
            "meaning": f"Measurement {index}", "type": "number", "role": "covariate", "unit": "1", "range": [-20, 20], "missing": "mean",
        }  # fmt: skip
    declared: dict[str, object] = {
        "medfed": 1,
        "name": "synthetic",
        "title": "Synthetic consortium",
        "question": "Who has the event?",
        "unit": "patient",
        "protects": "patient",
        "variables": variables,
        "task": {"kind": "risk_prediction", "coding": "reference"},
        "method": {"use": "medfed:medfed.methods.newton.Newton", "settings": {}},
        "parts": {"kind": "all"},
        "privacy": {"sums": "strongest", "minimum_cell": 10},
        "evaluation": {"design": "none"},
        "seed": 7,
        "sites": {"invited": names, "minimum": 1},
        "limits": {"rows_per_site": 100000},
    }
    return study_from_dict(declared | changes)


def synthetic_columns(rows: int, features: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features)) + 0.3 * rng.normal(size=features)
    beta = np.linspace(1.0, -1.0, features)
    event = rng.random(rows) < 1 / (1 + np.exp(-(x @ beta - 0.3)))
    return {"event": np.where(event, "yes", "no"), **{f"x{i}": x[:, i] for i in range(features)}}


def synthetic_tables(study: Study, rows: list[int], features: int = 4, seed: int = 0) -> dict[str, StudyTable]:
    tables = {}
    for index, (site, count) in enumerate(zip(study.sites.invited, rows, strict=True)):
        columns = synthetic_columns(count, features, seed + index)
        pseudonyms = np.arange(count, dtype=np.uint64) + np.uint64(1_000_000 * (index + 1))
        tables[site] = StudyTable.from_columns(study, columns, pseudonyms=pseudonyms)
    return tables


def fixed_keys(sites: list[str]) -> dict[str, Ed25519PrivateKey]:
    return {site: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(site.encode()).digest()) for site in sites}


def folder_facts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))
