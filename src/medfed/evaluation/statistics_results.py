"""Which methods are statistics, and what shows their results: ``summary()``, ``to_frame()``, ``tables()``, ``plot(path)``."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from medfed.methods.tables import Shown
from medfed.study import Study

# kind -> method, and the class that shows its result
KINDS: Mapping[str, tuple[str, str]] = {
    "glm": ("medfed.methods.glm.Glm", "medfed.evaluation.statistics_shown.Model"),
    "table1": ("medfed.methods.table_one.TableOne", "medfed.evaluation.statistics_shown.Baseline"),
    "describe": ("medfed.methods.describe.Describe", "medfed.evaluation.statistics_shown.Described"),
    "compare": ("medfed.methods.compare.Compare", "medfed.evaluation.statistics_shown.Compared"),
    "meta": ("medfed.methods.meta_analysis.MetaAnalysis", "medfed.evaluation.statistics_shown.Pooled"),
    "effect": ("medfed.methods.causal.Causal", "medfed.evaluation.statistics_shown.Effect"),
    "cox": ("medfed.methods.cox.Cox", "medfed.evaluation.survival_shown.HazardRatios"),
    "cox_one_hazard": (
        "medfed.methods.unstratified_cox.UnstratifiedCox",
        "medfed.evaluation.survival_shown.HazardRatios",
    ),
    "hazards": (
        "medfed.methods.discrete_hazards.DiscreteHazards",
        "medfed.evaluation.survival_shown.HazardRatios",
    ),
    "km": ("medfed.methods.kaplan_meier.KaplanMeier", "medfed.evaluation.survival_shown.Curves"),
    "private_describe": (
        "medfed.methods.private_describe.PrivateDescribe",
        "medfed.evaluation.private_shown.NoisyDescription",
    ),
    "private_glm": ("medfed.methods.private_glm.PrivateGLM", "medfed.evaluation.private_shown.NoisyModel"),
    "private_fedavg": ("medfed.methods.private_fedavg.PrivateFedAvg", "medfed.evaluation.private_shown.NoisyModel"),
}
SURVIVAL = ("cox", "cox_one_hazard", "hazards", "km")
PRIVATE = ("private_describe", "private_glm", "private_fedavg")


class Result(Protocol):
    """A result as a statistician reads it."""

    @property
    def values(self) -> Mapping[str, Any]: ...
    def to_frame(self) -> pd.DataFrame: ...
    def summary(self, lang: str = "en") -> str: ...
    def tables(self, lang: str = "en") -> list[Shown]: ...
    def plot(self, path: Path | str, lang: str = "en") -> Path: ...


def kind_of(study: Study) -> str | None:
    """Which kind of statistics a study's method is; None where it is another method, or a private one."""
    return next((kind for kind in KINDS if kind not in PRIVATE and _is_of(study, kind)), None)


def private_kind_of(study: Study) -> str | None:
    """Which private method a study has; None where it has another."""
    return next((kind for kind in PRIVATE if _is_of(study, kind)), None)


def _is_of(study: Study, kind: str) -> bool:
    return study.method.use == f"medfed:{KINDS[kind][0]}"


def shown(kind: str, values: Mapping[str, Any], study: Study) -> Result:
    """The result of a run of a study, to be read."""
    module, _, name = KINDS[kind][1].rpartition(".")
    made = getattr(importlib.import_module(module), name)
    found: Result = made(study, values) if kind in (*SURVIVAL, *PRIVATE, "effect") else made(values)
    return found
