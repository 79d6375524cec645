"""Unit conversion: a factor and an offset that pint's own conversion agrees with, or one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfed.data.units import conversion
from medfed.errors import MappingError
from medfed.study.variables import unit_registry

PAIRS = [
    ("kg", "g"),
    ("inch", "cm"),
    ("mmHg", "kPa"),
    ("degF", "degC"),
    ("K", "degC"),
    ("month", "year"),
    ("percent", "1"),
]


@pytest.mark.parametrize("here, there", PAIRS)
@given(value=st.floats(-1e4, 1e4))
def test_there_and_back_is_the_same_value(here, there, value):
    factor, offset = conversion(here, there)
    back, back_offset = conversion(there, here)
    assert (value * factor + offset) * back + back_offset == pytest.approx(value, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("here, there, value, expected", [
    ("degF", "degC", 98.6, 37.0), ("inch", "cm", 70, 177.8), ("mmHg", "kPa", 120, 15.99868), ("g/l", "mg/dl", 1, 100),
])  # fmt: skip
def test_known_values(here, there, value, expected):
    factor, offset = conversion(here, there)
    assert value * factor + offset == pytest.approx(expected, rel=1e-6)


def test_agrees_with_pint_for_a_unit_with_an_offset():
    factor, offset = conversion("degF", "degC")
    registry = unit_registry()
    for value in (-40.0, 0.0, 104.0):
        assert value * factor + offset == pytest.approx(registry.Quantity(value, "degF").to("degC").magnitude, abs=1e-9)


def test_the_same_unit_changes_no_bit():
    assert conversion("mmol/l", "mmol/l") == (1.0, 0.0)


def test_a_month_is_a_twelfth_of_a_year():
    assert conversion("month", "year") == (1 / 12, 0.0)


@pytest.mark.parametrize("here, there, words", [
    ("kgg", "kg", "there is no unit 'kgg'"),
    ("kg", "cm", "can't be converted to the study's 'cm'"),
    ("mg/dl", "mmol/l", "molar mass"),
    ("mmol/l", "mg/dl", "molar mass"),
])  # fmt: skip
def test_what_can_not_be_converted_is_told(here, there, words):
    with pytest.raises(MappingError, match=words):
        conversion(here, there)
