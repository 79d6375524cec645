"""From a mapping to one Ibis expression: missing codes, casts, units, codes, dates, derived columns.

Beside its value, a variable has a reading for each source column that it is made from: the text that stood there and
whether it could be read, so that what doesn't fit is counted before anything is built on it. DuckDB runs the
expression today; another backend can run the same one.
"""

import difflib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from medfed.data.mapping import Derive, VariableMapping
from medfed.data.site_folder import SiteFolder
from medfed.data.units import conversion
from medfed.errors import MappingError
from medfed.study import Study, Variable

ROW, PATIENT = "row", "patient"
MOST_PROBLEMS = 10
# DuckDB alone also takes nan, inf and 1_000 for numbers.
_NUMBER = {
    mark: rf"^[+-]?([0-9]+{escaped}?[0-9]*|{escaped}[0-9]+)([eE][+-]?[0-9]+)?$"
    for mark, escaped in ((".", r"\."), (",", ","))
}
# %Y alone reads "03" as the year 3.
_EARLIEST_YEAR = 1800


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def try_strptime(text: str, pattern: str) -> ibis.expr.datatypes.timestamp:
    """DuckDB's parser of dates that gives null where the text does not fit."""


@dataclass(frozen=True)
class Reading:
    """One source column of a variable. kind: what it is read as; formats: of a date."""

    column: str
    kind: Literal["number", "code", "date"]
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mapped:
    """One variable ready to run: its name, number in the expression, declaration and mapping."""

    name: str
    number: int
    variable: Variable
    mapping: VariableMapping
    readings: tuple[Reading, ...]

    @property
    def value(self) -> str:
        """The expression's column of values. By number: a backend may not tell "Age" from "age"."""
        return f"v{self.number}"

    def text(self, reading: int) -> str:
        """The expression's column of a reading's text; null where it is missing."""
        return f"v{self.number}_text{reading}"

    def fits(self, reading: int) -> str:
        """The expression's column that says whether a reading's text could be read."""
        return f"v{self.number}_fits{reading}"


def mapped_variables(
    site: SiteFolder, study: Study, columns: Sequence[str], only: Set[str] | None = None
) -> list[Mapped]:
    """The study's variables (or ``only`` some) with their mappings.

    MappingError that tells, for up to ten variables, which has no mapping, a column that does not exist, a mapping
    that does not suit its type, or a code that the study does not have.
    """
    found, problems = [], []
    for number, (name, variable) in enumerate(study.variables.items()):
        if only is not None and name not in only:
            continue
        mapping = site.declared.mapping.get(name)
        if mapping is None:
            close = difflib.get_close_matches(name, site.declared.mapping, 1)
            hint = f" (there is one for {close[0]!r})" if close else ""
            problems.append(
                f"site {site.name!r}: the study's variable {name!r} has no mapping{hint}; "
                f"add it under `mapping` in {site.where('mapping')}"
            )
            continue
        try:
            for column in mapping.columns:
                check_column(site, column, columns, site.where("mapping", name), f"variable {name!r}")
            _check_suits(site, name, variable, mapping)
            found.append(Mapped(name, number, variable, mapping, _readings(variable, mapping)))
        except MappingError as problem:
            problems.append(str(problem))
    if problems:
        raise MappingError("\n".join(problems[:MOST_PROBLEMS]))
    return found


def check_column(site: SiteFolder, column: str, columns: Sequence[str], where: str, what: str) -> None:
    """MappingError, with near names, where the source has no such column."""
    if column in columns:
        return
    near = {name.lower(): name for name in reversed(columns)}
    close = [near[name] for name in difflib.get_close_matches(column.lower(), near, 3, 0.5)]
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"it has: {', '.join(columns[:12])}."
    if not close and not "".join((column, *columns)).isascii():
        hint += " If these names look garbled, the source's `encoding` is another one."
    raise MappingError(f"site {site.name!r}, {what}: the source has no column {column!r}; {hint} Correct {where}")


def _check_suits(site: SiteFolder, name: str, variable: Variable, mapping: VariableMapping) -> None:
    """MappingError where a mapping has keys that its variable's type can't use."""

    def refuse(problem: str, *key: str) -> None:
        raise MappingError(
            f"site {site.name!r}, variable {name!r}: {problem} Correct {site.where('mapping', name, *key)}"
        )

    kind = variable.type
    any_of = mapping.derive is not None and mapping.derive.any_of is not None
    for key, value, suits in (
        ("unit", mapping.unit, kind == "number"),
        ("round", mapping.round, kind == "number"),
        ("years_until", mapping.years_until, kind == "number"),
        ("codes", mapping.codes, kind == "code"),
        ("derive", mapping.derive, kind == ("code" if any_of else "number")),
        ("date_format", mapping.date_format, kind == "date" or mapping.years_until is not None),
    ):
        if value is not None and not suits:
            refuse(
                f"`{'any_of' if key == 'derive' and any_of else key}` does not go with a variable of type {kind}.", key
            )
    known = list(variable.codes or ())
    for here, there in (mapping.codes or {}).items():
        if there not in known:
            refuse(
                f"{here!r} is mapped to {there!r}, which is no code of the study ({', '.join(known)}).", "codes", here
            )
    if mapping.derive is not None and any_of:
        if len(known) != 2:
            refuse(f"`any_of` is for a variable of two codes; this one has {len(known)}.", "derive")
        if mapping.derive.gives not in known:
            refuse(f"`gives` is one of {', '.join(known)}, not {mapping.derive.gives!r}.", "derive")
    if kind == "number":
        try:
            conversion(_site_unit(variable, mapping), variable.unit or "1")
        except MappingError as problem:
            refuse(f"{str(problem).rstrip('.')}{'' if str(problem).endswith('?') else '.'}", "unit")


def _site_unit(variable: Variable, mapping: VariableMapping) -> str:
    if mapping.years_until is not None:
        return "year"
    return mapping.unit or variable.unit or "1"


def _readings(variable: Variable, mapping: VariableMapping) -> tuple[Reading, ...]:
    if mapping.years_until is not None:
        later = mapping.years_until
        return (
            Reading(mapping.column or "", "date", mapping.date_format or ()),
            Reading(later.column, "date", later.date_format or ()),
        )
    if variable.type == "date":
        return (Reading(mapping.column or "", "date", mapping.date_format or ()),)
    if variable.type == "text":
        return ()
    return tuple(Reading(column, "number" if variable.type == "number" else "code") for column in mapping.columns)


def harmonised(
    site: SiteFolder, columns: dict[str, ir.Column], row: ir.Column, variables: list[Mapped], decimal: str
) -> dict[str, ir.Value]:
    """Named expressions: row, patient, and for each variable its value and its readings.

    columns: the source's, by the names that the mapping uses; row: the row's number in the source. decimal: the mark
    in texts; typed columns have none. MappingError for a date that is text and has no declared format.
    """
    out: dict[str, ir.Value] = {
        ROW: row,
        PATIENT: _text(columns[site.declared.patient.column], {*site.declared.missing_codes, ""}),
    }
    for mapped in variables:
        mapping = mapped.mapping
        missing = {*site.declared.missing_codes, *mapping.missing_codes, ""} - set(mapping.codes or ())
        texts: list[ir.StringColumn] = []
        values: list[Any] = []
        for index, reading in enumerate(mapped.readings):
            column = columns[reading.column]
            text = _text(column, missing)
            if reading.kind == "date":
                value, fits = _date(site, mapped, reading, column, text)
            else:
                value = _coded(mapped, text) if reading.kind == "code" else _number(column, text, decimal)
                fits = value.notnull()
            texts.append(text)
            values.append(value)
            out[mapped.text(index)] = text
            out[mapped.fits(index)] = text.isnull() | fits
        out[mapped.value] = _value(mapped, columns, missing, values)
    return out


def _value(mapped: Mapped, columns: dict[str, ir.Column], missing: Set[str], values: list[Any]) -> Any:
    """A variable's value from the values of its readings."""
    mapping, kind = mapped.mapping, mapped.variable.type
    if kind == "text":
        return _text(columns[mapping.column or ""], missing)
    if kind == "date":
        return values[0].cast("string")
    if kind == "code":
        return values[0] if mapping.derive is None else _any_of(mapped, mapping.derive, values)
    if mapping.years_until is not None:
        value = _completed_years(*values)
    else:
        value = values[0] if mapping.derive is None else _derived(mapping, mapping.derive, values)
    return _converted(mapped, value)


def _text(column: ir.Column, missing: Set[str] | Sequence[str]) -> ir.StringColumn:
    """A column as trimmed text, with null for what stands for "not known". 7.0 in a float column is the text "7"."""
    kind = column.type()
    if kind.is_floating():
        column = column.isnan().ifelse(ibis.null(kind), column)
        whole = column.try_cast("int64")
        text = (column == whole.cast("float64")).ifelse(whole.cast("string"), column.cast("string"))
    else:
        text = column.cast("string").strip()
    if "" not in missing:
        text = text.fill_null("")
    codes = sorted({code.strip() for code in missing})
    return text.isin(codes).ifelse(ibis.null("string"), text) if codes else text


def _number(column: ir.Column, text: ir.StringColumn, decimal: str) -> ir.NumericColumn:
    mark = decimal if column.type().is_string() else "."
    plain = text.replace(",", ".") if mark == "," else text
    return text.re_search(_NUMBER[mark]).ifelse(plain, ibis.null("string")).try_cast("float64")


def _coded(mapped: Mapped, text: ir.StringColumn) -> ir.StringColumn:
    codes = mapped.mapping.codes or {code: code for code in mapped.variable.codes or {}}
    return ibis.cases(*[(text == here.strip(), there) for here, there in codes.items()], else_=ibis.null("string"))


def _date(
    site: SiteFolder, mapped: Mapped, reading: Reading, column: ir.Column, text: ir.StringColumn
) -> tuple[ir.DateColumn, ir.BooleanColumn]:
    """The day, and whether the text is one: in exactly one way, from 1800 on."""
    if column.type().is_date() or column.type().is_timestamp():
        day = text.isnull().ifelse(ibis.null("date"), column.cast("date"))
        return day, day.notnull()
    if not reading.formats:
        raise MappingError(
            f"site {site.name!r}, variable {mapped.name!r}: the dates in {reading.column!r} are text; say how they are "
            f'written, for example `date_format: "%Y-%m-%d"`, in {site.where("mapping", mapped.name)}'
        )
    read = [_day(text, pattern) for pattern in reading.formats]
    day = read[0] if len(read) == 1 else ibis.coalesce(*read)
    agree = reduce(lambda a, b: a & b, [other.isnull() | (other == day) for other in read])
    fits = day.notnull() & agree
    return fits.ifelse(day, ibis.null("date")), fits


def _day(text: ir.StringColumn, pattern: str) -> ir.DateColumn:
    moment = try_strptime(text, pattern)
    return (moment.year() >= _EARLIEST_YEAR).ifelse(moment.date(), ibis.null("date"))


def _derived(mapping: VariableMapping, derive: Derive, values: list[Any]) -> Any:
    name, operands = derive.operation
    by_column = dict(zip(mapping.columns, values, strict=True))
    terms = [by_column[operand] if isinstance(operand, str) else ibis.literal(float(operand)) for operand in operands]
    if name == "ratio":
        return (terms[1] == 0).ifelse(ibis.null("float64"), terms[0] / terms[1])
    if name == "difference":
        return terms[0] - terms[1]
    return reduce(lambda a, b: a * b if name == "product" else a + b, terms)


def _any_of(mapped: Mapped, derive: Derive, values: list[Any]) -> Any:
    other = next(code for code in mapped.variable.codes or () if code != derive.gives)
    found = reduce(lambda a, b: a | b, [value.notnull() & (value == derive.gives) for value in values])
    known = reduce(lambda a, b: a & b, [value.notnull() for value in values])
    return ibis.cases((found, derive.gives), (known, other), else_=ibis.null("string"))


def _completed_years(earlier: Any, later: Any) -> Any:
    birthday_is_ahead = (later.month() < earlier.month()) | (
        (later.month() == earlier.month()) & (later.day() < earlier.day())
    )
    return (later.year() - earlier.year() - birthday_is_ahead.cast("int64")).cast("float64")


def _converted(mapped: Mapped, value: Any) -> Any:
    factor, offset = conversion(_site_unit(mapped.variable, mapped.mapping), mapped.variable.unit or "1")
    if (factor, offset) != (1.0, 0.0):
        value = value * factor + offset
    if mapped.mapping.round == "down":
        # Rounded first, since 312 months come out as 25.99999999 years in floating point.
        value = value.round(9).floor().cast("float64")
    return value
