"""From a site's sources to its study table: read, map, check, pseudonymise, keep or drop, and write, all or nothing."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.expressions import Mapped, check_column, mapped_variables
from medfed.data.quality import Quality, VariableQuality
from medfed.data.run_mapping import (
    ANOTHER_ROW,
    REASON,
    Counts,
    columns_of,
    counts_of,
    mapped_rows,
    one_row_each,
    outside_any,
    with_reasons,
    within_range,
)
from medfed.data.site_folder import SiteFolder
from medfed.data.sources import SourceContent, read_source
from medfed.data.stored import open_table, write_table
from medfed.data.table import StudyTable, feature_column, is_missing
from medfed.errors import LISTED, MappingError
from medfed.study import Study

__all__ = ["build_table", "check", "open_table", "pseudonym", "read_for_prediction", "read_outcomes"]


def pseudonym(site: str, patient: str, key: bytes) -> int:
    """A patient's pseudonym at one site: the first 64 bits of HMAC-SHA256. Another site's key gives another."""
    return int.from_bytes(hmac.new(key, f"{site}|{patient}".encode(), hashlib.sha256).digest()[:8], "big")


def check(site: SiteFolder, study: Study) -> Quality:
    """What building the table would do, without writing anything. MappingError for what has to be mended first."""
    return _build(site, study)[1]


def build_table(site: SiteFolder, study: Study) -> tuple[StudyTable, Quality]:
    """Build the study table and write it into the site's folder; the table there is replaced whole or not at all."""
    table, quality = _build(site, study)
    write_table(site, study, table, quality)
    return table, quality


def _build(site: SiteFolder, study: Study) -> tuple[StudyTable, Quality]:
    key = site.pseudonym_key()
    source = _source_with_rows(site)
    variables = mapped_variables(site, study, source.table.column_names)
    with mapped_rows(site, source.table, variables) as rows:
        judged, reasons = with_reasons(site, study, within_range(rows, variables), variables)
        counts = counts_of(judged, reasons, variables)
        _refuse_times_outside(site, study, counts)
        _refuse_none_left(site, study, counts)
        patients, columns = columns_of(judged.filter(judged[REASON].isnull()), variables)
    pseudonyms = np.array([pseudonym(site.name, str(patient), key) for patient in patients], dtype=np.uint64)
    lineage = _lineage(site, study, source, counts)
    table = StudyTable.from_columns(study, columns, pseudonyms=pseudonyms, lineage=lineage)
    quality = Quality(
        site=site.name,
        study=study.name,
        rows_read=counts.read,
        rows_kept=counts.kept,
        duplicates=_duplicates(counts),
        dropped=counts.dropped,
        variables={mapped.name: _variable_quality(mapped, columns[mapped.name], counts) for mapped in variables},
        warnings=tuple(_warnings(study, columns)),
        lineage=lineage,
        version=table.version,
    )
    return table, quality


def _source_with_rows(site: SiteFolder) -> SourceContent:
    name = site.declared.patient.source
    source = read_source(site, name)
    if source.table.num_rows == 0:
        raise MappingError(
            f"site {site.name!r}: source {name!r} has no rows; export it again, or correct `path` in "
            f"{site.where('sources', name)}"
        )
    return source


# The reasons in the sentence below, for the catalogue.
DROPPED = (
    "no patient identifier ({count})",
    "another row of the same patient ({count})",
    "{variable} is missing ({count})",
    "{variable} is outside the study's range ({count})",
    "outside the cohort: {variable} ({count})",
)


def _refuse_none_left(site: SiteFolder, study: Study, counts: Counts) -> None:
    if counts.kept:
        return
    reasons = LISTED.join(
        [f"{reason} ({count})" for reason, count in counts.dropped.items()]
        + [f"{name} is outside the study's range ({count})" for name, count in counts.out_of_range.items() if count]
    )
    raise MappingError(
        f"site {site.name!r}: none of {counts.read} rows is left for study {study.name!r} ({reasons}); check the mapping"
    )


def _refuse_times_outside(site: SiteFolder, study: Study, counts: Counts) -> None:
    """A time outside its range would be dropped like any other value, and with it those who lived longest."""
    outside = counts.out_of_range.get(study.time or "", 0)
    if outside:
        low, high = study.variables[study.time or ""].range or (0.0, 0.0)
        raise MappingError(
            f"site {site.name!r}, variable {study.time!r}: {outside} of {counts.considered} times are negative or off the "
            f"grid, which the study declares from {low:g} to {high:g} {study.variables[study.time or ''].unit}; correct "
            f"the export or {site.where('mapping', study.time or '')}, or have the study's range widened"
        )


def _duplicates(counts: Counts) -> int:
    return counts.dropped.get(ANOTHER_ROW, 0)


def _variable_quality(mapped: Mapped, kept: NDArray[Any], counts: Counts) -> VariableQuality:
    missing = counts.missing[mapped.name]
    known, outside = counts.considered - missing, counts.out_of_range[mapped.name]
    if mapped.variable.type == "code":
        levels = {level: int((kept == index).sum()) for index, level in enumerate(mapped.variable.codes or ())}
        return VariableQuality(known, missing, levels=levels)
    if mapped.variable.type == "number":
        values = kept[np.isfinite(kept)]
        mean, deviation = (float(values.mean()), float(values.std())) if len(values) else (None, None)
        return VariableQuality(known, missing, outside, mean=mean, deviation=deviation)
    return VariableQuality(known, missing)


def _warnings(study: Study, kept: Mapping[str, NDArray[Any]]) -> list[str]:
    """What does not stop a table but should be looked at."""
    found = []
    for name, column in kept.items():
        known = column[~is_missing(column)]
        if name == study.outcome and study.variables[name].type == "code" and len(np.unique(known)) < 2:
            if study.time:
                found.append(f"every patient has the same outcome ({name}); a stratified Cox model learns nothing here")
            else:
                found.append(
                    f"every patient has the same outcome ({name}); with plain sums the site can't take part in most methods"
                )
        elif len(known) == 0:
            found.append(f"{name} is missing for every patient; check its mapping")
        elif len(np.unique(known)) < 2:
            found.append(f"{name} has the same value for every patient; check its mapping")
    return found


def _lineage(site: SiteFolder, study: Study, source: SourceContent, counts: Counts) -> dict[str, Any]:
    """Which bytes became the table by which mapping, and how many rows were left after each reason to drop."""
    return {
        "sources": {site.declared.sources[site.declared.patient.source].path: source.sha256},
        "mapping": site.mapping_hash,
        "study": study.hash,
        "rows_read": counts.read,
        "rows_kept": counts.kept,
        "dropped": counts.dropped,
    }


@dataclass(frozen=True)
class PredictionRows:
    """A site's patients as a model sees them: for the site's own people, nothing here is pseudonymised or leaves.

    patients: the site's own identifiers, one row each. features: (n, p) in the study's units, NaN where unknown.
    complete: (n,) whether nothing is missing that the study's rules need. outside: (n,) whether a value lay outside
    the study's range (in features it is then NaN) or its cohort.
    """

    patients: list[str]
    features: NDArray[np.float64]
    complete: NDArray[np.bool_]
    outside: NDArray[np.bool_]


def read_for_prediction(site: SiteFolder, study: Study) -> PredictionRows:
    """The site's rows as a model's features, outcomes not needed and nobody dropped for missing ones."""
    source = _source_with_rows(site)
    # What is not known yet when a prediction is wanted keeps nobody out.
    rules = [rule for rule in study.cohort.include if study.variables[rule.variable].role in ("covariate", "cohort")]
    wanted = {column.variable for column in study.design.columns if column.variable}
    wanted |= {rule.variable for rule in rules}
    variables = mapped_variables(site, study, source.table.column_names, only=wanted)
    with mapped_rows(site, source.table, variables) as rows:
        ranged = one_row_each(site, within_range(rows, variables))
        patients, columns = columns_of(ranged, variables)
        outside = outside_any(ranged, variables, rules)
    complete = np.ones(len(patients), dtype=bool)
    for mapped in variables:
        if mapped.variable.missing == "drop" or mapped.name in {rule.variable for rule in rules}:
            complete &= ~is_missing(columns[mapped.name])
    features = np.ones((len(patients), len(study.design.columns)))
    for index, column in enumerate(study.design.columns):
        if column.kind != "intercept":
            features[:, index] = feature_column(study, column, columns[column.variable])
    return PredictionRows([str(patient) for patient in patients], features, complete, outside)


def read_outcomes(site: SiteFolder, study: Study, path: Path) -> dict[str, float]:
    """Outcomes from a file in the site's own dialect: patient identifier -> 1 for the event, 0 without."""
    if not path.is_file():
        raise MappingError(f"{path} does not exist; give the file that holds the outcomes")
    declared = site.declared
    source = declared.sources[declared.patient.source].model_copy(update={"path": str(path.resolve()), "header": None})
    if path.suffix == ".parquet":
        source = source.model_copy(update={"format": "parquet"})
    elif path.suffix in (".csv", ".txt", ".tsv"):
        source = source.model_copy(update={"format": "csv"})
    feedback = SiteFolder(
        site.folder, declared.model_copy(update={"sources": {declared.patient.source: source}}), site.lines
    )
    content = read_source(feedback, declared.patient.source).table
    check_column(site, declared.patient.column, content.column_names, str(path), "the feedback file")
    variables = mapped_variables(feedback, study, content.column_names, only={study.outcome})
    with mapped_rows(feedback, content, variables) as rows:
        patients, columns = columns_of(within_range(rows, variables), variables)
    values = columns[study.outcome]
    variable = study.variables[study.outcome]
    event = list(variable.codes or ()).index(variable.event or "") if variable.type == "code" else None
    found: dict[str, float] = {}
    for patient, value, missing in zip(patients, values, is_missing(values), strict=True):
        if patient is not None and not missing:
            found[patient] = float(value == event) if event is not None else float(value)
    return found
