"""Run a site's mapping: its source becomes one DuckDB table of checked values, and the study's rules are asked of that.

Everything is an Ibis expression; DuckDB is named here and nowhere else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute
from numpy.typing import NDArray

from medfed.data.expressions import PATIENT, ROW, Mapped, check_column, harmonised
from medfed.data.fit_checks import check_fits
from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError
from medfed.study import Study
from medfed.study.schema import Rule

NO_PATIENT, ANOTHER_ROW = "no patient identifier", "another row of the same patient"
REASON = "reason"


@contextmanager
def mapped_rows(site: SiteFolder, source: pa.Table, variables: list[Mapped]) -> Iterator[ir.Table]:
    """The source's rows as the study's variables: row, patient, and for each variable its value, range not yet applied.

    MappingError where the patient's column is absent, or values can't be read as declared: before anything is built.
    """
    declared = site.declared
    names = list(source.column_names)
    check_column(site, declared.patient.column, names, site.where("patient", "column"), "the patient's identifier")
    wanted = sorted({declared.patient.column, *(column for mapped in variables for column in mapped.mapping.columns)})
    # By number, since a backend may not tell "Age" from "age".
    plain = {f"c{index}": _plain(site, column, source.column(column)) for index, column in enumerate(wanted)}
    renamed = pa.table({**plain, "number": pa.array(np.arange(source.num_rows))})
    connection = ibis.duckdb.connect()
    try:
        connection.raw_sql("set threads=2")
        table = connection.create_table("source", renamed, temp=True)
        columns = {column: table[f"c{index}"] for index, column in enumerate(wanted)}
        decimal = declared.sources[declared.patient.source].decimal
        expression = table.select(**harmonised(site, columns, table["number"].name(ROW), variables, decimal))
        # Kept once, since it is asked several times.
        values = connection.create_table("harmonised", expression, temp=True)
        check_fits(site, values, variables, source.num_rows)
        yield values
    finally:
        connection.disconnect()


def _plain(site: SiteFolder, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column in a type that every backend holds. MappingError for one whose cells are not single values.

    A moment with a time zone becomes the clock's reading there: a birthday in Shanghai begins the day before in UTC.
    """
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_dictionary(kind):
        return _plain(site, name, column.cast(kind.value_type))
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa_compute.local_timestamp(column)
    single = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating,
        pa.types.is_decimal128, pa.types.is_date, pa.types.is_timestamp,
    )  # fmt: skip
    if any(is_kind(kind) for is_kind in single):
        return column
    try:
        # Some writers leave texts unmarked, as bytes.
        return column.cast(pa.string())
    except pa.ArrowException:
        raise MappingError(
            f"site {site.name!r}: the column {name!r} has the type {kind}; export it as text, number or date"
        ) from None


def within_range(table: ir.Table, variables: list[Mapped]) -> ir.Table:
    """Values outside the study's range become missing; "NAME_outside" says which they were."""
    changed: dict[str, ir.Value] = {}
    for mapped in variables:
        value = table[mapped.value]
        if mapped.variable.range is None:
            continue
        low, high = mapped.variable.range
        outside = value.notnull() & ~value.between(low, high)
        changed[mapped.value] = outside.ifelse(ibis.null("float64"), value)
        changed[outside_of(mapped)] = outside
    return table.mutate(**changed)


def outside_of(mapped: Mapped) -> str:
    """The column that says whether a value was outside its range."""
    return f"{mapped.value}_outside"


def outside_any(table: ir.Table, variables: list[Mapped], rules: Sequence[Rule]) -> NDArray[np.bool_]:
    """Which rows (n,) have a value outside its range or the cohort's rules, in the source's order; unknown is neither."""
    by_name = {mapped.name: table[mapped.value] for mapped in variables}
    flags = [table[outside_of(mapped)] for mapped in variables if mapped.variable.range is not None]
    flags += [by_name[rule.variable].notnull() & ~_holds(rule, by_name[rule.variable]) for rule in rules]
    found = reduce(lambda a, b: a | b, flags, ibis.literal(False)).fill_null(False)
    return np.asarray(
        table.order_by(ROW).select(outside=found).to_pyarrow().column("outside").to_numpy(), dtype=np.bool_
    )


def with_reasons(
    site: SiteFolder, study: Study, table: ir.Table, variables: list[Mapped]
) -> tuple[ir.Table, list[str]]:
    """Add the column "reason": the number of the first reason to drop a row, null where it stays. Returns the reasons.

    In order: no patient, another row of the patient, a missing value whose rule is drop, the cohort's rules.
    MappingError where a patient has several rows and the site refuses that.
    """
    by_name = {mapped.name: mapped for mapped in variables}
    table = table.mutate(another=_another_row(site, table))
    rules: list[tuple[str, ir.BooleanValue]] = [
        (NO_PATIENT, table[PATIENT].isnull()),
        (ANOTHER_ROW, table["another"]),
    ]
    rules += [
        (f"{mapped.name} is missing", table[mapped.value].isnull())
        for mapped in variables
        if mapped.variable.missing == "drop" and mapped.variable.type in ("number", "code")
    ]
    rules += [
        (f"outside the cohort: {rule.variable}", ~_holds(rule, table[by_name[rule.variable].value]))
        for rule in study.cohort.include
    ]
    numbered = [(broken, ibis.literal(index, "int64")) for index, (_, broken) in enumerate(rules)]
    return table.mutate(**{REASON: ibis.cases(*numbered, else_=ibis.null("int64"))}), [reason for reason, _ in rules]


def one_row_each(site: SiteFolder, table: ir.Table) -> ir.Table:
    """The rows of known patients, one each by the site's rule. MappingError as in ``with_reasons``."""
    table = table.mutate(another=_another_row(site, table))
    return table.filter(table[PATIENT].notnull() & ~table["another"])


def _another_row(site: SiteFolder, table: ir.Table) -> ir.BooleanValue:
    rule = site.declared.duplicates
    patient = table[PATIENT]
    if rule == "refuse":
        counts = table.filter(patient.notnull()).group_by(PATIENT).aggregate(rows=lambda group: group.count())
        found = counts.filter(counts["rows"] > 1).aggregate(
            patients=lambda t: t.count(), rows=lambda t: t["rows"].sum()
        ).to_pyarrow()  # fmt: skip
        patients, rows = found.column("patients")[0].as_py(), found.column("rows")[0].as_py()
        if patients:
            raise MappingError(
                f"site {site.name!r}: {patients} patients have more than one row ({rows - patients} rows too many); "
                f"write `duplicates: first` or `last` in {site.where('duplicates')}, or mend the export"
            )
        return ibis.literal(False)
    order = ibis.desc(table[ROW]) if rule == "last" else ibis.asc(table[ROW])
    rank = ibis.row_number().over(ibis.window(group_by=patient, order_by=order))
    return patient.notnull() & (rank > 0)


def _holds(rule: Rule, value: ir.Value) -> ir.BooleanValue:
    """Whether a rule of the cohort holds; never for a missing value."""
    holds = value.notnull()
    if rule.is_one_of is not None:
        holds &= value.isin(rule.is_one_of)
    if rule.at_least is not None:
        holds &= value >= rule.at_least
    if rule.at_most is not None:
        holds &= value <= rule.at_most
    return holds.fill_null(False)


@dataclass(frozen=True)
class Counts:
    """How many rows were read, dropped by which reason, and how many values were missing or out of range by variable.

    The counts by variable are over the rows of known patients, one each, before any other rule.
    """

    read: int
    kept: int
    dropped: dict[str, int]
    considered: int
    missing: dict[str, int]
    out_of_range: dict[str, int]


def counts_of(table: ir.Table, reasons: list[str], variables: list[Mapped]) -> Counts:
    """Counts of a table that has its reasons."""
    reason = table[REASON]
    # Reasons 0 and 1 are about the row, the others about its values.
    considered = reason.isnull() | (reason > 1)
    asked: dict[str, ir.Value] = {"read": table.count(), "considered": considered.sum()}
    asked |= {f"r{index}": (reason == index).sum() for index in range(len(reasons))}
    for mapped in variables:
        asked[f"{mapped.value}_missing"] = (considered & table[mapped.value].isnull()).sum()
        if mapped.variable.range is not None:
            asked[outside_of(mapped)] = (considered & table[outside_of(mapped)]).sum()
    answer = {name: value or 0 for name, value in table.aggregate(**asked).to_pyarrow().to_pylist()[0].items()}
    dropped: dict[str, int] = {}
    for index, why in enumerate(reasons):
        if answer[f"r{index}"]:
            dropped[why] = dropped.get(why, 0) + answer[f"r{index}"]
    return Counts(
        read=answer["read"],
        kept=answer["read"] - sum(dropped.values()),
        dropped=dropped,
        considered=answer["considered"],
        missing={mapped.name: answer[f"{mapped.value}_missing"] for mapped in variables},
        out_of_range={mapped.name: answer.get(outside_of(mapped), 0) for mapped in variables},
    )


def columns_of(table: ir.Table, variables: list[Mapped]) -> tuple[list[str | None], dict[str, NDArray[Any]]]:
    """Patients (n) and the variables' columns (n,) as a study table stores them, in the source's order."""
    content = table.order_by(ROW).select(PATIENT, *(mapped.value for mapped in variables)).to_pyarrow()
    columns = {mapped.name: _stored(mapped, content.column(mapped.value)) for mapped in variables}
    return content.column(PATIENT).to_pylist(), columns


def _stored(mapped: Mapped, values: pa.ChunkedArray) -> NDArray[Any]:
    if mapped.variable.type == "number":
        return np.asarray(values.cast(pa.float64()).to_numpy(), dtype=np.float64)
    if mapped.variable.type == "code":
        levels = pa.array(list(mapped.variable.codes or ()), pa.string())
        index = pa_compute.index_in(values.cast(pa.string()), value_set=levels)
        return np.asarray(index.fill_null(-1).to_numpy(), dtype=np.int64)
    return np.array(["" if value is None else value for value in values.to_pylist()], dtype=np.str_)
