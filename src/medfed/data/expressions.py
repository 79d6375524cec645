"""From a mapping to one Ibis expression: missing codes, casts, units, codes, dates, derived columns.

The expression gives two columns a variable: the value, and the text it was made from (for counting what did not fit).
DuckDB runs it today; another backend can run the same one.
"""

import difflib
from collections.abc import Set
from dataclasses import dataclass
from functools import reduce
from typing import Any

import ibis
import ibis.expr.types as ir
import pint

from medfed.data.site_folder import SiteFolder, VariableMapping
from medfed.errors import MappingError
from medfed.study import Study, Variable
from medfed.study.variables import unit_problem, unit_registry

RAW = "raw "
LATER = "later "


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def try_strptime(text: str, pattern: str) -> ibis.expr.datatypes.timestamp:
    """DuckDB's parser of dates that gives null where the text does not fit."""


@dataclass(frozen=True)
class Mapped:
    """One variable ready to run: its name, declaration and mapping."""

    name: str
    variable: Variable
    mapping: VariableMapping


def mapped_variables(site: SiteFolder, study: Study, columns: list[str], only: Set[str] | None = None) -> list[Mapped]:
    """The study's variables (or ``only`` some) with their mappings.

    MappingError for one without a mapping, or with a column that does not exist.
    """
    found = []
    for name, variable in study.variables.items():
        if only is not None and name not in only:
            continue
        mapping = site.declared.mapping.get(name)
        if mapping is None:
            close = difflib.get_close_matches(name, site.declared.mapping, 1)
            hint = f" (there is one for {close[0]!r})" if close else ""
            raise MappingError(
                f"site {site.name!r}: the study's variable {name!r} has no mapping{hint}; add it under `mapping` in site.yaml"
            )
        wanted = (
            [mapping.column] if mapping.column else [w for w in (mapping.derive.operation[1] if mapping.derive else ())]
        )
        if mapping.years_until is not None:
            wanted.append(mapping.years_until.column)
        for column in wanted:
            if isinstance(column, str):
                check_column(site, column, columns, site.where("mapping", name), f"variable {name!r}")
        found.append(Mapped(name, variable, mapping))
    return found


def check_column(site: SiteFolder, column: str, columns: list[str], where: str, what: str) -> None:
    """MappingError, with near names, where the source has no such column."""
    if column in columns:
        return
    close = difflib.get_close_matches(column, columns, 3, 0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"it has: {', '.join(columns[:12])}"
    raise MappingError(f"site {site.name!r}, {what}: the source has no column {column!r}; {hint} Correct {where}")


def harmonised(site: SiteFolder, table: ir.Table, variables: list[Mapped], decimal: str) -> ir.Table:
    """Select for every variable its value, "raw NAME" and, for dates, "later NAME"; and the patient as "raw patient"."""
    columns = {RAW + "patient": _text(site, table[site.declared.patient.column], ())}
    for mapped in variables:
        mapping, name = mapped.mapping, mapped.name
        if mapping.derive is not None:
            value, raw = _derived(site, table, mapping, decimal)
        else:
            raw = _text(site, table[mapping.column], mapping.missing_codes)
            value = raw
        if mapping.years_until is not None:
            later = _text(site, table[mapping.years_until.column], mapping.missing_codes)
            columns[LATER + name] = later
            value = _completed_years(
                try_strptime(raw, mapping.date_format), try_strptime(later, mapping.years_until.date_format)
            )
            value = _converted(site, mapped, value, "year")
        elif mapped.variable.type == "number":
            number = value if mapping.derive is not None else _number(value, decimal)
            value = _converted(site, mapped, number, mapping.unit or mapped.variable.unit or "1")
        elif mapped.variable.type == "code":
            value = _coded(raw, mapping.codes or {code: code for code in mapped.variable.codes or {}})
        columns[name] = value
        columns[RAW + name] = raw
    return table.select(**columns)


def _text(site: SiteFolder, column: ir.Column, missing: tuple[str, ...]) -> ir.StringColumn:
    """A column as trimmed text, with null for what stands for "not known"."""
    text = column.cast("string").strip()
    codes = [code.strip() for code in (*site.declared.missing_codes, *missing, "")]
    return text.isin(codes).ifelse(ibis.null("string"), text)


def _number(text: ir.StringColumn, decimal: str) -> ir.NumericColumn:
    return (text.replace(",", ".") if decimal == "," else text).try_cast("float64")


def _coded(raw: ir.StringColumn, codes: dict[str, str]) -> ir.StringColumn:
    return ibis.cases(*[(raw == here, there) for here, there in codes.items()], else_=ibis.null("string"))


def _derived(site: SiteFolder, table: ir.Table, mapping: VariableMapping, decimal: str) -> tuple[Any, Any]:
    assert mapping.derive is not None
    name, operands = mapping.derive.operation
    texts = [_text(site, table[o], mapping.missing_codes) if isinstance(o, str) else None for o in operands]
    values = [
        _number(text, decimal) if text is not None else ibis.literal(float(operand))
        for text, operand in zip(texts, operands, strict=True)
    ]
    columns = [text for text in texts if text is not None]
    if name == "ratio":
        value = (values[1] == 0).ifelse(ibis.null("float64"), values[0] / values[1])
    elif name == "difference":
        value = values[0] - values[1]
    else:
        value = reduce(lambda a, b: a * b if name == "product" else a + b, values)
    # The text of a derived value is that of its first column: missing where any column is.
    known = reduce(lambda a, b: a & b, [text.notnull() for text in columns])
    return value, known.ifelse(columns[0], ibis.null("string"))


def _completed_years(earlier: Any, later: Any) -> Any:
    birthday_is_ahead = (later.month() < earlier.month()) | (
        (later.month() == earlier.month()) & (later.day() < earlier.day())
    )
    return (later.year() - earlier.year() - birthday_is_ahead.cast("int64")).cast("float64")


def _converted(site: SiteFolder, mapped: Mapped, value: Any, unit: str) -> Any:
    factor, offset = conversion(site, mapped, unit)
    if (factor, offset) != (1.0, 0.0):
        value = value * factor + offset
    if mapped.mapping.round == "down":
        # Rounded first, since 312 months come out as 25.99999999 years in floating point.
        value = value.round(9).floor().cast("float64")
    return value


def conversion(site: SiteFolder, mapped: Mapped, unit: str) -> tuple[float, float]:
    """Factor and offset from the site's unit to the study's. MappingError where they measure different things."""
    wanted = mapped.variable.unit or "1"
    where = site.where("mapping", mapped.name, "unit")
    if problem := unit_problem(unit):
        raise MappingError(f"site {site.name!r}, variable {mapped.name!r}: {problem}. Correct {where}")
    if unit == wanted:
        return 1.0, 0.0
    registry = unit_registry()
    source, target = registry.Unit("" if unit == "1" else unit), registry.Unit("" if wanted == "1" else wanted)
    try:
        at_zero = registry.Quantity(0.0, source).to(target).magnitude
        at_one = registry.Quantity(1.0, source).to(target).magnitude
        if source.dimensionality == registry.Unit("year").dimensionality and unit in ("month", "months"):
            return _months(target, registry)
    except pint.DimensionalityError:
        raise MappingError(
            f"site {site.name!r}, variable {mapped.name!r}: {unit!r} can't be converted to the study's {wanted!r}; correct {where}"
        ) from None
    return float(at_one - at_zero), float(at_zero)


def _months(target: Any, registry: Any) -> tuple[float, float]:
    """A month is a twelfth of a year, exactly: ages in months are counted by the calendar."""
    years = registry.Quantity(1.0, "year").to(target).magnitude
    return float(years) / 12.0, 0.0
