"""Factor and offset from a site's unit to the study's, worked out once by pint; and what to say where there is none."""

from typing import Any

import pint

from medfed.errors import MappingError
from medfed.study.variables import unit_problem, unit_registry


def conversion(unit: str, wanted: str) -> tuple[float, float]:
    """(factor, offset): value in ``wanted`` = value in ``unit`` x factor + offset.

    A month is a twelfth of a year, exactly: ages in months are counted by the calendar. MappingError where a unit is
    unknown, the two measure different things, or the conversion is not a straight line.
    """
    for name in (unit, wanted):
        if problem := unit_problem(name):
            raise MappingError(problem)
    if unit == wanted:
        return 1.0, 0.0
    registry = unit_registry()
    source, target = (registry.Unit("" if name == "1" else name) for name in (unit, wanted))
    try:
        if source == registry.Unit("month") and target.is_compatible_with("year"):
            return float(registry.Quantity(1.0, "year").to(target).magnitude) / 12.0, 0.0
        zero, one, two = (float(registry.Quantity(value, source).to(target).magnitude) for value in (0.0, 1.0, 2.0))
    except pint.DimensionalityError:
        raise MappingError(f"{unit!r} can't be converted to the study's {wanted!r}{_hint(source, target)}") from None
    except pint.PintError:
        raise MappingError(
            f"{unit!r} can't be converted to the study's {wanted!r}; have the export use {wanted!r}"
        ) from None
    if abs((two - one) - (one - zero)) > 1e-9 * max(abs(two), abs(one), abs(zero)):
        raise MappingError(f"{unit!r} is not proportional to the study's {wanted!r}; have the export use {wanted!r}")
    if zero == 0.0:
        return one, 0.0
    return one - zero, zero


def _hint(source: Any, target: Any) -> str:
    """Mass and amount of substance differ by the molar mass, which is the analyte's and no unit's."""
    if dict((source / target).dimensionality) in ({"[mass]": 1, "[substance]": -1}, {"[mass]": -1, "[substance]": 1}):
        return (
            ", since that takes the substance's molar mass; multiply: "
            "`derive: {product: [COLUMN, FACTOR]}` with `unit` as the study has it"
        )
    return ""
