"""From a site's sources to its study table: read, map, check, pseudonymise, keep or drop, and write, all or nothing."""

import hashlib
import hmac
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from medfed.data.expressions import LATER, RAW, Mapped, check_column, harmonised, mapped_variables
from medfed.data.fit_checks import check_codes, check_dates, check_numbers
from medfed.data.quality import Quality, VariableQuality
from medfed.data.site_folder import SiteFolder
from medfed.data.sources import read_source
from medfed.data.table import StudyTable, feature_column
from medfed.errors import MappingError
from medfed.study import Study


def pseudonym(site: str, patient: str, key: bytes) -> int:
    """A patient's pseudonym at one site: the first 64 bits of HMAC-SHA256. Another site's key gives another."""
    return int.from_bytes(hmac.new(key, f"{site}|{patient}".encode(), hashlib.sha256).digest()[:8], "big")


def check(site: SiteFolder, study: Study) -> Quality:
    """What building the table would do, without writing anything. MappingError for what has to be mended first."""
    return _build(site, study)[1]


def build_table(site: SiteFolder, study: Study) -> tuple[StudyTable, Quality]:
    """Build the study table and write it into the site's folder; the table there is replaced whole or not at all."""
    table, quality = _build(site, study)
    _write(site, study, table, quality)
    return table, quality


def open_table(site: SiteFolder, study: Study) -> StudyTable:
    """The table that was built. MappingError where there is none, or it is not what was built."""
    folder = site.table_folder(study.hash)
    described = folder / "table.json"
    if not described.exists():
        raise MappingError(f"site {site.name!r} has no table for study {study.name!r}; run `medfed site build` first")
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        stored = pa_parquet.read_table(folder / "table.parquet")
        columns = {
            name: stored.column(f"v_{name}").to_numpy(zero_copy_only=False).astype(_dtype(study, name))
            for name in study.variables
        }
        table = StudyTable(
            study,
            columns,
            stored.column("pseudonym").to_numpy(zero_copy_only=False).astype(np.uint64),
            stored.column("part").to_numpy(zero_copy_only=False).astype(np.int64),
            lineage=content["lineage"],
        )
        intact = table.version == content["version"]
    except (OSError, ValueError, KeyError, pa.ArrowException):
        intact = False
    if not intact:
        raise MappingError(
            f"site {site.name!r}: the table in {folder} is damaged or was changed; run `medfed site build`, then check and approve again"
        )
    return table


def _dtype(study: Study, name: str) -> Any:
    return {"number": np.float64, "code": np.int64}.get(study.variables[name].type, np.str_)


def _build(site: SiteFolder, study: Study) -> tuple[StudyTable, Quality]:
    declared = site.declared
    key = site.pseudonym_key()
    source = read_source(site, declared.patient.source)
    names = list(source.column_names)
    check_column(site, declared.patient.column, names, site.where("patient", "column"), "the patient's identifier")
    variables = mapped_variables(site, study, names)
    mapped = _run(site, source, variables)
    rows_read = len(mapped["patient"])
    if rows_read == 0:
        raise MappingError(f"site {site.name!r}: source {declared.patient.source!r} has no rows; export it again")

    keep = np.ones(rows_read, dtype=bool)
    dropped: dict[str, int] = {}

    def drop(mask: NDArray[np.bool_], reason: str) -> None:
        count = int((mask & keep).sum())
        if count:
            dropped[reason] = dropped.get(reason, 0) + count
            keep[mask] = False

    drop(np.array([patient is None for patient in mapped["patient"]]), "no patient identifier")
    duplicates = _duplicates(site, mapped["patient"])
    drop(duplicates, "another row of the same patient")
    columns, out_of_range = {}, {}
    for variable in variables:
        columns[variable.name], outside = _column(variable, mapped[variable.name])
        out_of_range[variable.name] = int((outside & keep).sum())
    before_rules = keep.copy()
    for variable in variables:
        if variable.variable.missing == "drop":
            drop(_is_missing(columns[variable.name]), f"{variable.name} is missing")
    for rule in study.cohort.include:
        drop(~_holds(study, rule, columns[rule.variable]), f"outside the cohort: {rule.variable}")
    if not keep.any():
        reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise MappingError(
            f"site {site.name!r}: none of {rows_read} rows is left for study {study.name!r} ({reasons}); check the mapping"
        )

    kept = {name: column[keep] for name, column in columns.items()}
    lineage = _lineage(site, study, rows_read, int(keep.sum()), dropped)
    pseudonyms = np.array(
        [pseudonym(site.name, str(mapped["patient"][i]), key) for i in np.flatnonzero(keep)], dtype=np.uint64
    )
    table = StudyTable.from_columns(study, kept, pseudonyms=pseudonyms, lineage=lineage)
    quality = Quality(
        site=site.name,
        study=study.name,
        rows_read=rows_read,
        rows_kept=int(keep.sum()),
        duplicates=int(duplicates.sum()),
        dropped=dropped,
        variables={
            v.name: _variable_quality(v, columns[v.name], kept[v.name], before_rules, out_of_range[v.name])
            for v in variables
        },
        warnings=tuple(_warnings(study, kept)),
        lineage=lineage,
        version=table.version,
    )
    return table, quality


def _run(site: SiteFolder, source: pa.Table, variables: list[Mapped]) -> dict[str, NDArray[Any]]:
    """Run the mapping's expression; every value that does not fit is told before anything is built on it."""
    decimal = site.declared.sources[site.declared.patient.source].decimal
    connection = ibis.duckdb.connect()
    try:
        connection.raw_sql("set threads=2")
        table = connection.create_table("source", source, temp=True)
        expression = harmonised(site, table, variables, decimal)
        result = connection.to_pyarrow(expression)
    finally:
        connection.disconnect()
    out: dict[str, NDArray[Any]] = {"patient": np.array(result.column(RAW + "patient").to_pylist(), dtype=object)}
    for variable in variables:
        values = result.column(variable.name)
        raw = np.array(result.column(RAW + variable.name).to_pylist(), dtype=object)
        if variable.mapping.years_until is not None:
            later = np.array(result.column(LATER + variable.name).to_pylist(), dtype=object)
            check_dates(site, variable, raw, later, values)
        elif variable.variable.type == "number":
            check_numbers(site, variable, raw, values)
        elif variable.variable.type == "code":
            check_codes(site, variable, raw, values)
        out[variable.name] = np.array(values.to_pylist(), dtype=object)
    return out


def _duplicates(site: SiteFolder, patients: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows (n,) to leave out because their patient has another row, by the site's rule."""
    rule = site.declared.duplicates
    seen: dict[Any, int] = {}
    mask = np.zeros(len(patients), dtype=bool)
    for index, patient in enumerate(patients):
        if patient is None:
            continue
        if patient in seen:
            mask[seen[patient] if rule == "last" else index] = True
        if rule == "last" or patient not in seen:
            seen[patient] = index
    if mask.any() and rule == "refuse":
        repeated = sum(count > 1 for count in Counter(p for p in patients if p is not None).values())
        raise MappingError(
            f"site {site.name!r}: {repeated} patients have more than one row ({int(mask.sum())} rows too many); "
            f"write `duplicates: first` or `last` in {site.where('duplicates')}, or mend the export"
        )
    return mask


def _column(mapped: Mapped, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values as the study table stores them, and which were outside the declared range (they become missing)."""
    variable = mapped.variable
    none = np.zeros(len(values), dtype=bool)
    if variable.type == "number":
        numbers = np.array([np.nan if value is None else float(value) for value in values])
        low, high = variable.range or (-np.inf, np.inf)
        outside = (numbers < low) | (numbers > high)
        numbers[outside] = np.nan
        return numbers, outside
    if variable.type == "code":
        levels = {level: index for index, level in enumerate(variable.codes or ())}
        return np.array([-1 if value is None else levels[value] for value in values], dtype=np.int64), none
    return np.array(["" if value is None else str(value) for value in values]), none


def _is_missing(column: NDArray[Any]) -> NDArray[np.bool_]:
    if column.dtype.kind == "f":
        return np.asarray(np.isnan(column))
    if column.dtype.kind == "i":
        return np.asarray(column < 0)
    return np.asarray(column == "")


def _holds(study: Study, rule: Any, column: NDArray[Any]) -> NDArray[np.bool_]:
    if rule.is_one_of is not None:
        levels = list(study.variables[rule.variable].codes or ())
        return np.asarray(np.isin(column, [levels.index(code) for code in rule.is_one_of]))
    low = -np.inf if rule.at_least is None else rule.at_least
    high = np.inf if rule.at_most is None else rule.at_most
    return np.asarray((column >= low) & (column <= high))


def _variable_quality(
    mapped: Mapped, whole: NDArray[Any], kept: NDArray[Any], considered: NDArray[np.bool_], out_of_range: int
) -> VariableQuality:
    missing = int((_is_missing(whole) & considered).sum())
    known = int(considered.sum()) - missing
    if mapped.variable.type == "code":
        levels = {level: int((kept == index).sum()) for index, level in enumerate(mapped.variable.codes or ())}
        return VariableQuality(known, missing, levels=levels)
    if mapped.variable.type == "number":
        values = kept[np.isfinite(kept)]
        mean = float(values.mean()) if len(values) else None
        return VariableQuality(
            known, missing, out_of_range, mean=mean, deviation=float(values.std()) if len(values) else None
        )
    return VariableQuality(known, missing)


def _warnings(study: Study, kept: dict[str, NDArray[Any]]) -> list[str]:
    """What does not stop a table but should be looked at."""
    found = []
    for name, column in kept.items():
        known = column[~_is_missing(column)]
        if name == study.outcome and study.variables[name].type == "code" and len(np.unique(known)) < 2:
            found.append(f"every patient has the same outcome ({name}); the site can't take part in most methods")
        elif len(np.unique(known)) < 2:
            found.append(f"{name} has the same value for every patient; check its mapping")
    return found


def _lineage(site: SiteFolder, study: Study, read: int, kept: int, dropped: dict[str, int]) -> dict[str, Any]:
    source = site.declared.sources[site.declared.patient.source]
    path = site.folder / source.path
    return {
        "sources": {source.path: hashlib.sha256(path.read_bytes()).hexdigest()},
        "mapping": site.mapping_hash,
        "study": study.hash,
        "rows_read": read,
        "rows_kept": kept,
        "dropped": dict(dropped),
    }


def _write(site: SiteFolder, study: Study, table: StudyTable, quality: Quality) -> None:
    folder = site.table_folder(study.hash)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    except OSError as problem:
        raise MappingError(
            f"site {site.name!r}: the table can't be written ({problem.strerror}); free space and build again"
        ) from None
    try:
        stored = pa.table(
            {
                "pseudonym": pa.array(table.row_pseudonyms, pa.uint64()),
                "part": pa.array(table.part_index, pa.int64()),
                **{f"v_{name}": pa.array(column) for name, column in table.columns.items()},
            }
        )
        pa_parquet.write_table(stored, temporary / "table.parquet")
        content = {"version": table.version, "lineage": table.lineage, "quality": quality.to_dict()}
        (temporary / "table.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, pa.ArrowException) as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MappingError(
            f"site {site.name!r}: the table can't be written ({getattr(problem, 'strerror', None) or problem}); "
            "nothing was changed. Free space and build again"
        ) from None


def read_for_prediction(site: SiteFolder, study: Study) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    """The site's rows as a model's features, outcomes not needed and nobody dropped for missing ones.

    Returns the site's own patient identifiers, features (n, p) in the study's units with NaN where unknown, and which
    rows (n,) are complete by the study's rules. For the site's own people: nothing here is pseudonymised or leaves.
    """
    source = read_source(site, site.declared.patient.source)
    columns = {column.variable for column in study.design.columns if column.variable}
    names = list(source.column_names)
    variables = mapped_variables(site, study, names, only=columns)
    mapped = _run(site, source, variables)
    coded = {v.name: _column(v, mapped[v.name])[0] for v in variables}
    rows = len(mapped["patient"])
    complete = np.array([patient is not None for patient in mapped["patient"]])
    for variable in variables:
        if variable.variable.missing == "drop":
            complete &= ~_is_missing(coded[variable.name])
    features = np.ones((rows, len(study.design.columns)))
    for index, column in enumerate(study.design.columns):
        if column.kind != "intercept":
            features[:, index] = feature_column(study, column, coded[column.variable])
    return [str(patient) for patient in mapped["patient"]], features, complete


def read_outcomes(site: SiteFolder, study: Study, path: Path) -> dict[str, float]:
    """Outcomes from a file in the site's own dialect: patient identifier -> 1 for the event, 0 without."""
    declared = site.declared
    source = declared.sources[declared.patient.source].model_copy(update={"path": str(path.resolve()), "header": None})
    if path.suffix == ".parquet":
        source = source.model_copy(update={"format": "parquet"})
    elif path.suffix in (".csv", ".txt", ".tsv"):
        source = source.model_copy(update={"format": "csv"})
    feedback = SiteFolder(
        site.folder, declared.model_copy(update={"sources": {declared.patient.source: source}}), site.lines
    )
    content = read_source(feedback, declared.patient.source)
    names = list(content.column_names)
    check_column(site, declared.patient.column, names, str(path), "the feedback file")
    variables = mapped_variables(feedback, study, names, only={study.outcome})
    mapped = _run(feedback, content, variables)
    values = _column(variables[0], mapped[study.outcome])[0]
    variable = study.variables[study.outcome]
    event = list(variable.codes or ()).index(variable.event or "") if variable.type == "code" else None
    found: dict[str, float] = {}
    for patient, value, missing in zip(mapped["patient"], values, _is_missing(values), strict=True):
        if patient is not None and not missing:
            found[str(patient)] = float(value == event) if event is not None else float(value)
    return found
