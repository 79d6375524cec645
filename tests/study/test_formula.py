"""Formulas: the design that patsy builds from the same declared levels, and one sentence for what can't be understood."""

from typing import Any

import numpy as np
import pandas as pd
import patsy
import pytest

from medfed.errors import StudyError
from medfed.study import Study, study_from_dict
from medfed.study.formula import Formula, parse_formula

VARIABLES: dict[str, Any] = {
    "event": {"meaning": "e", "type": "code", "role": "outcome", "codes": {"no": "n", "yes": "y"}, "event": "yes"},
    "arm": {"meaning": "a", "type": "code", "role": "arm", "codes": {"old": "o", "new": "n"}, "reference": "old"},
    "stage": {"meaning": "s", "type": "code", "role": "covariate", "codes": {"i": "1", "ii": "2", "iii": "3"}},
    "sex": {"meaning": "x", "type": "code", "role": "covariate", "codes": {"f": "f", "m": "m"}, "missing": "unknown"},
    "age": {"meaning": "a", "type": "number", "role": "covariate", "unit": "year", "range": [18, 110]},
    "change": {"meaning": "c", "type": "number", "role": "covariate", "unit": "1", "range": [-2, 3]},
    "years": {"meaning": "y", "type": "number", "role": "offset", "unit": "year", "range": [0.1, 30]},
}


def study(**changes: Any) -> Study:
    return study_from_dict(
        {
            "medfed": 1, "name": "formulas", "title": "t", "question": "q", "variables": VARIABLES,
            "task": {"kind": "association"}, "method": {"use": "medfed:medfed.methods.newton.Newton"},
            "sites": {"invited": ["a", "b"]},
        }
        | changes
    )  # fmt: skip


def parsed(text: str) -> Formula:
    return parse_formula(text, study().variables, "event")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    n = 300
    return pd.DataFrame(
        {
            "arm": pd.Categorical(rng.choice(["old", "new"], n), ["old", "new"]),
            "stage": pd.Categorical(rng.choice(["i", "ii"], n), ["i", "ii", "iii"]),  # nobody has iii here
            "sex": pd.Categorical(rng.choice(["f", "m", "unknown"], n), ["f", "m", "unknown"]),
            "age": rng.uniform(18, 110, n),
            "change": rng.uniform(-2, 3, n),
        }
    )


def columns_of(formula: Formula, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    found = {}
    for column in formula.columns:
        values = np.ones(len(frame))
        for factor, level in column.parts:
            raw = frame[factor.variable]
            if level is not None:
                values = values * (raw == next(code for code, index in factor.levels if index == level)).to_numpy()
            else:
                change = {"": lambda v: v, "log": np.log, "sqrt": np.sqrt, "power": lambda v, k=factor.exponent: v**k}
                values = values * change[factor.change](raw.to_numpy())
        found[column.name] = values
    return found


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("event ~ arm + age", None),
        ("~ arm * age", None),
        ("~ arm + age + arm:age - age", "~ arm + arm:age"),
        ("~ stage:arm", None),
        ("~ stage:arm:sex + stage", None),
        ("~ stage:sex + arm:stage + arm:sex:age", None),
        ("~ stage + stage:age", None),
        ("~ age:stage", None),
        ("~ (arm + stage + age)**2", None),
        ("~ arm*stage*sex", None),
        ("~ C(stage) + log(age) + sqrt(age) + I(change**2)", "~ stage + np.log(age) + np.sqrt(age) + I(change**2)"),
        ("~ C(stage, Treatment('ii')):arm + arm", "~ C(stage, Treatment('ii')):arm + arm"),
        ("~ (arm + age)^2 + change", "~ (arm + age)**2 + change"),
    ],
)
def test_columns_span_what_patsy_builds(text: str, same: str | None, frame: pd.DataFrame) -> None:
    ours = columns_of(parsed(text), frame)
    theirs = patsy.dmatrix(same or text.partition("~")[2], frame)
    x, y = np.column_stack(list(ours.values())), np.asarray(theirs)
    assert x.shape == y.shape
    assert {tuple(np.round(column, 9)) for column in x.T} == {tuple(np.round(column, 9)) for column in y.T}


def test_every_value_lies_in_the_range_that_a_column_declares(frame: pd.DataFrame) -> None:
    formula = parsed("~ (arm + stage + age + change)**3 + I(change**2):age + log(age):change")
    for column, values in zip(formula.columns, columns_of(formula, frame).values(), strict=True):
        assert column.low - 1e-9 <= values.min(), column.name
        assert values.max() <= column.high + 1e-9, column.name


def test_levels_are_the_declared_ones_and_the_reference_comes_from_study_or_formula() -> None:
    assert parsed("~ stage + sex").names == ("intercept", "stage=ii", "stage=iii", "sex=m", "sex=unknown")
    assert parsed("~ C(stage, Treatment('iii'))").names == ("intercept", "stage=i", "stage=ii")
    assert parsed("~ arm:age + age").names == ("intercept", "age", "arm=new:age")
    assert parsed("~ arm + age + offset(log(years))").variables == ("arm", "age", "years")


def test_the_formula_that_stands_where_none_is_given_has_the_width_that_sizes_say() -> None:
    assert study().sizes["terms"] == (len(study().formula().columns),) == (8,)
    many = {f"x{i}": {**VARIABLES["age"], "meaning": "m"} for i in range(600)}
    assert study(variables={"event": VARIABLES["event"], **many}).sizes["terms"] == (601,)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("event ~ agee", "there is no variable 'agee'; did you mean 'age'"),
        ("death ~ age", "'death' stands before ~; the study's outcome is 'event'"),
        ("~ age - 1", "without an intercept"),
        ("~ 0 + age", "without an intercept"),
        ("~ event", "has the role 'outcome'"),
        ("~ years", "has the role 'offset'"),
        ("~ offset(age)", "offset() takes a variable with `role: offset`"),
        ("~ C(age)", "levels would have to be read from data"),
        ("~ log(change)", "the declared range of change begins at -2; it must be above 0"),
        ("~ log(stage)", "is of type code; a number is needed"),
        ("~ spline(age)", "there is no function 'spline'"),
        ("~ age +", "a term is missing"),
        ("~ (age", "')' is expected at the end"),
        ("~ age $ arm", "'$ arm' can't be read"),
        ("~ C(stage, 'iv')", "'iv' is not a code of 'stage'"),
        ("~ I(age**9)", "'9' is no power here"),
        ("~ offset(years) + offset(log(years))", "two offsets"),
        ("~ (stage + sex + arm + age + change + log(age) + sqrt(age) + I(age**2))**6", "more than 500"),
    ],
)  # fmt: skip
def test_what_can_not_be_understood_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(StudyError) as told:
        parsed(text)
    assert sentence in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_wrong_formula_is_told_at_its_key_in_the_study() -> None:
    use = {"use": "medfed:medfed.methods.newton.Newton", "settings": {"formula": "event ~ agee"}}
    with pytest.raises(StudyError, match="method.settings.formula: formula 'event ~ agee'"):
        study(method=use)


def test_a_weight_that_can_be_zero_is_refused_in_the_study() -> None:
    weight = {"meaning": "w", "type": "number", "role": "weight", "unit": "1", "range": [0, 5]}
    with pytest.raises(StudyError, match="a weight is above 0"):
        study(variables={**VARIABLES, "w": weight})
