"""Real data dealt to sites that differ, a study that declares it, and a run through door and gate; for oracle tests."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.study import Study, study_from_dict

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
from consortium import GENEROUS, fixed_keys

M = "medfed:medfed.methods."
# Totals alone are seen under secure sums; a what-if sums in plain, so the sites' own cells are opened here.
OPEN = Policy(values_per_patient=GENEROUS, minimum_cell=1, minimum_patients=1, steepest=1e4)


def number(low: float, high: float, role: str = "covariate", **more: Any) -> dict[str, Any]:
    return {"meaning": "m", "type": "number", "role": role, "unit": "1", "range": [low, high], **more}


def code(*levels: str, role: str = "covariate", **more: Any) -> dict[str, Any]:
    return {"meaning": "m", "type": "code", "role": role, "codes": dict.fromkeys(levels, "c"), **more}


def spread(values: pd.Series, role: str = "covariate", **more: Any) -> dict[str, Any]:
    """A number whose declared range is a little wider than the data."""
    low, high = float(values.min()), float(values.max())
    return number(low - 0.1 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9, role, **more)


def study_of(
    variables: dict[str, Any], method: str, settings: dict[str, Any], invited: list[str], **changes: Any
) -> Study:
    declared = {
        "medfed": 1, "name": "oracle", "title": "t", "question": "q", "variables": variables,
        "task": {"kind": "association"}, "method": {"use": M + method, "settings": settings},
        "privacy": {"minimum_cell": 1}, "sites": {"invited": invited, "minimum": len(invited)},
    }  # fmt: skip
    return study_from_dict(declared | changes)


def dealt(frame: pd.DataFrame, site: "pd.Series[Any] | None" = None, *, sites: int = 4) -> dict[str, pd.DataFrame]:
    """Rows by site: by a column, or in ragged shares whose outcome and covariates differ a little."""
    if site is not None:
        return {str(name): part.reset_index(drop=True) for name, part in frame.groupby(site, sort=True)}
    order = np.random.default_rng(3).permutation(len(frame))
    shares = np.array([0.5, 0.25, 0.15, 0.1][:sites])
    cuts = np.split(order, (np.cumsum(shares / shares.sum())[:-1] * len(frame)).astype(int))
    return {chr(ord("a") + index): frame.iloc[rows].reset_index(drop=True) for index, rows in enumerate(cuts)}


def run(
    folder: Path, study: Study, parts: dict[str, pd.DataFrame], policy: Policy = OPEN, **options: Any
) -> dict[str, Any]:
    tables = {
        site: StudyTable.from_columns(study, {name: part[name].to_numpy() for name in study.variables})
        for site, part in parts.items()
    }
    method = find_method(study)
    engine, public = what_if(
        folder / "sites", tables, study, [method], policy=policy, keys=fixed_keys(list(tables)), **options
    )
    runner = Runner(folder / "coordinator", engine, study, durability="process", public_keys=public)
    try:
        return dict(runner.execute(method))
    finally:
        runner.close()
