"""Survival data that packages carry, as studies and sites: 67 dialysis centres and the NCCTG lung cancer trial."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medfed.data.table import StudyTable
from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.study import Study, study_from_dict

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
from consortium import GENEROUS, fixed_keys

# Every site takes part, however small, as under secure sums: what is judged there on totals is switched off here.
OPEN = Policy(minimum_cell=1, minimum_patients=1, values_per_patient={kind: 1e6 for kind in GENEROUS})
M = "medfed:medfed.methods."


def number(low: float, high: float, unit: str = "year", **more: Any) -> dict[str, Any]:
    return {"meaning": "m", "type": "number", "role": "covariate", "unit": unit, "range": [low, high], **more}


def code(levels: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"meaning": "m", "type": "code", "role": "covariate", "codes": {level: level for level in levels}, **more}


EVENT = code(["no", "yes"]) | {"role": "outcome", "event": "yes"}


def survival_study(
    variables: Mapping[str, Any], sites: Sequence[str], use: str, settings: Mapping[str, Any] | None = None, **more: Any
) -> Study:
    declared = {
        "medfed": 1, "name": "survival", "title": "t", "question": "q", "variables": dict(variables),
        "task": {"kind": "survival"}, "method": {"use": M + use, "settings": dict(settings or {})},
        "privacy": {"minimum_cell": 1, "sums": "plain"}, "sites": {"invited": list(sites), "minimum": 1},
        "limits": {"rows_per_site": 100000},
    }  # fmt: skip
    return study_from_dict(declared | more)


@dataclass(frozen=True)
class Consortium:
    """A study, its sites' tables, and the same rows pooled: frame with time, event, site and x (n, slopes)."""

    study: Study
    tables: dict[str, StudyTable]
    frame: pd.DataFrame
    x: np.ndarray

    @property
    def time(self) -> np.ndarray:
        return self.frame["time"].to_numpy(float)

    @property
    def event(self) -> np.ndarray:
        return self.frame["event"].to_numpy(float)

    @property
    def site(self) -> np.ndarray:
        return self.frame["site"].to_numpy()


def consortium(
    frame: pd.DataFrame, variables: Mapping[str, Any], use: str, settings: Mapping[str, Any] | None = None, **more: Any
) -> Consortium:
    """Sites by the column ``site``; ``event`` is 0 or 1 and the other columns are the variables'."""
    sites = sorted(frame["site"].unique())
    study = survival_study(variables, sites, use, settings, **more)
    tables, features = {}, np.zeros((len(frame), len(study.design.columns)))
    first = np.uint64(1)
    for site in sites:
        rows = np.flatnonzero(frame["site"] == site)
        part = frame.iloc[rows]
        columns = {name: part[name].to_numpy() for name in variables if name != "event"}
        columns["event"] = np.where(part["event"] > 0, "yes", "no")
        who = np.arange(len(part), dtype=np.uint64) + first
        first += np.uint64(len(part))
        tables[site] = StudyTable.from_columns(study, columns, pseudonyms=who)
        back = np.argsort(tables[site].on("all").row_pseudonyms)
        features[rows] = tables[site].on("all").arrays("features")[0][back]
    return Consortium(study, tables, frame.reset_index(drop=True), features[:, 1:])


DIALYSIS = {
    "time": {**number(0, 44, "month"), "role": "time", "interval": 1},
    "event": EVENT,
    "num_age": number(0, 110),
    "num_begin": number(0, 50, "month"),
    "fac_disease": code(["hypert", "congen", "diabetes", "other", "renal"]),
}


def dialysis_frame() -> pd.DataFrame:
    """6,805 patients of 67 Brazilian dialysis centres, 1,603 deaths. SurvSet is GPL: a tool of tests only."""
    survset = pytest.importorskip("SurvSet.data", reason="SurvSet (GPL, for tests only) is not installed")
    frame = survset.SurvLoader().load_dataset("Dialysis")["df"]
    frame["site"] = "centre-" + frame["fac_center"].astype(str)
    frame["fac_disease"] = frame["fac_disease"].astype(str)
    for name in ("time", "num_age", "num_begin"):
        frame[name] = frame[name].astype(float)
    return frame[["time", "event", "num_age", "num_begin", "fac_disease", "site"]]


LUNG = {
    "time": {**number(0, 1050, "day"), "role": "time", "interval": 30},
    "event": EVENT,
    "age": number(18, 100),
    "sex": code(["male", "female"]),
    "ph_ecog": number(0, 4, "1"),
}


def lung_frame() -> pd.DataFrame:
    """NCCTG lung cancer, 228 patients; one has no institution and one no ECOG score, so 226 of 18 institutions."""
    datasets = pytest.importorskip("lifelines.datasets", reason="lifelines is not installed")
    frame = datasets.load_lung().rename(columns={"ph.ecog": "ph_ecog", "status": "event"})
    frame["sex"] = np.where(frame["sex"].astype(float) == 1, "male", "female")
    frame = frame.dropna(subset=["inst", "ph_ecog", "age", "time"])
    frame["site"] = "inst-" + frame["inst"].astype(int).astype(str)
    for name in ("time", "age", "ph_ecog"):
        frame[name] = frame[name].astype(float)
    return frame[["time", "event", "age", "sex", "ph_ecog", "site"]]


class Losing:
    """An engine that never reaches some sites, or no longer from the given call on: a fault between them and us."""

    def __init__(self, engine: Embedded, lost: Sequence[str], after: int = 0) -> None:
        self.engine, self.lost, self.after, self.calls = engine, frozenset(lost), after, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        if call.phase != "head":
            self.calls += 1
        gone = self.lost if self.calls > self.after else frozenset()
        yield from ((site, Failure("unreachable", "no connection")) for site in own if site in gone)
        yield from self.engine.exchange(call, {site: part for site, part in own.items() if site not in gone}, deadline)


def run(
    folder: Path, data: Consortium, lost: Sequence[str] = (), after: int = 0, policy: Policy = OPEN, **options: Any
) -> dict[str, Any]:
    """The study's method over the sites; ``lost`` are out of reach from the call after ``after`` on."""
    method = find_method(data.study)
    engine, public = what_if(
        folder / "sites",
        data.tables,
        data.study,
        [method],
        policy=policy,
        keys=fixed_keys(list(data.tables)),
        **options,
    )
    carried = Losing(engine, lost, after) if lost else engine
    runner = Runner(folder / "coordinator", carried, data.study, durability="process", public_keys=public)
    try:
        return dict(runner.execute(method))
    finally:
        runner.close()
