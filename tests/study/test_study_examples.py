"""The example studies: they load, and become the features, sizes and limits that their questions need."""

from pathlib import Path

import pytest

from medfed.study import load_study

STUDIES = Path(__file__).parents[2] / "studies"
EVERY = sorted(path for path in STUDIES.rglob("*.yaml") if path.parent.parent == STUDIES)


def test_there_are_studies_to_try() -> None:
    assert {path.parent.name for path in EVERY} >= {"indomethacin", "ercp-risk", "heart-disease"}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_example_loads_and_speaks_both_languages(path: Path) -> None:
    study = load_study(path)
    texts = [study.title, study.question, *(variable.meaning for variable in study.variables.values())]
    texts += [text for variable in study.variables.values() for text in (variable.codes or {}).values()]
    assert all(study.text(text, "en") and study.text(text, "zh") for text in texts)
    assert study.text(study.title, "zh") != study.text(study.title, "en")


def test_the_treatment_is_a_feature_and_its_reference_is_left_out() -> None:
    study = load_study(STUDIES / "indomethacin")
    assert (study.outcome, study.arm, study.covariates) == ("pancreatitis", "arm", ("age", "risk"))
    assert study.design.names == ("intercept", "arm=indomethacin", "age", "risk")
    arm = study.design.columns[1]
    assert (arm.variable, arm.kind, arm.level, arm.low, arm.high) == ("arm", "indicator", "indomethacin", 0.0, 1.0)
    assert study.sizes == {
        "p": 4, "terms": (4,), "numbers": 2, "levels": 6, "cells": (2048,), "groups": 2, "arms": 2, "outcomes": 2,
        "folds": (1,), "bins": (64,), "described_codes": 4, "described_numbers": 2,
    }  # fmt: skip
    assert (study.sites_at_most, study.rows_at_most) == (4, 100_000)
    assert study.test_models == 1


def test_every_level_and_the_unknown_one_is_a_feature_of_the_heart_study() -> None:
    study = load_study(STUDIES / "heart-disease")
    names = study.design.names
    assert names[0] == "intercept"
    assert [name for name in names if name.startswith("fasting_sugar")] == [
        "fasting_sugar=no",
        "fasting_sugar=yes",
        "fasting_sugar=unknown",
    ]
    assert "sex=female" in names
    assert "sex=unknown" not in names  # sex is never missing there, and declares no such level
    numbers = [column for column in study.design.columns if column.kind == "number"]
    assert all(column.low < column.high for column in numbers)
    assert study.test_models == 2 * len(study.sites.invited)


def test_a_variant_has_its_own_settings() -> None:
    study = load_study(STUDIES / "ercp-risk")
    assert study.settings_of() == {"l2": 0}
    assert study.settings_of("fedavg")["local_epochs"] == 1
    assert study.test_models == 4
    study.settings_of()["l2"] = 5  # a copy: the study stays what it is
    assert study.settings_of() == {"l2": 0}
