"""A site's files as Arrow tables, every CSV cell as text: nothing is guessed before the mapping says what it is."""

import codecs
import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from medfed.data.mapping import Source
from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


@dataclass(frozen=True)
class SourceContent:
    """A source as it was read. sha256: of the very bytes that the table was made from."""

    table: pa.Table
    sha256: str


def read_source(site: SiteFolder, name: str) -> SourceContent:
    """Read a source. MappingError: missing file, wrong delimiter, wrong encoding, damaged file, a column named twice."""
    source = site.declared.sources[name]
    path = site.folder / source.path
    where = site.where("sources", name)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise MappingError(
            f"site {site.name!r}: {path} does not exist; correct `path` of source {name!r} in {where}"
        ) from None
    except OSError as problem:
        raise MappingError(
            f"site {site.name!r}: {path} can't be read ({problem.strerror}); mend its permissions"
        ) from None
    table = (
        _read_parquet(site, source, data, where) if source.format == "parquet" else _read_csv(site, source, data, where)
    )
    return SourceContent(table, hashlib.sha256(data).hexdigest())


def _read_parquet(site: SiteFolder, source: Source, data: bytes, where: str) -> pa.Table:
    try:
        table = pa_parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        raise MappingError(
            f"site {site.name!r}: {source.path} is not a Parquet file, or is damaged; correct `format` in {where}, or export again"
        ) from None
    _no_column_twice(site, source, table.column_names)
    return table


def _read_csv(site: SiteFolder, source: Source, data: bytes, where: str) -> pa.Table:
    text = _decoded(site, source, data, where)
    if not text.strip():
        raise MappingError(f"site {site.name!r}: {source.path} is empty; export it again")
    try:
        # Blank lines above the header are skipped, as Arrow does; "\r" alone ends a line too.
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=source.delimiter)
        first_line = next(line for line in lines if line)
    except csv.Error as problem:
        raise MappingError(
            f"site {site.name!r}: the first line of {source.path} can't be read ({problem}); export it again"
        ) from None
    _split_at_delimiter(site, source, first_line, where)
    _no_column_twice(site, source, source.header or first_line)
    try:
        # Bytes of Arrow's own: one of its threads may let go of them after Python has ended, where a Python object aborts.
        with pa.BufferOutputStream() as own:
            own.write(text.encode())
        return pa_csv.read_csv(
            pa.BufferReader(own.getvalue()),
            read_options=pa_csv.ReadOptions(column_names=list(source.header) if source.header else None),
            parse_options=pa_csv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(source.header or first_line, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException as problem:
        raise MappingError(
            f"site {site.name!r}: {source.path} can't be read as rows ({_row_problem(text, source, problem)}); "
            f"check `delimiter` in {where}, or export again"
        ) from None


def _decoded(site: SiteFolder, source: Source, data: bytes, where: str) -> str:
    encoding = source.encoding
    try:
        name = codecs.lookup(encoding).name
        # A byte-order mark is Excel's way to say UTF-8; it is not part of the first column's name.
        text = data.decode("utf-8-sig" if name == "utf-8" else name)
    except LookupError:
        raise MappingError(
            f"site {site.name!r}: there is no encoding {encoding!r}; write utf-8, gbk or latin-1 in {where}"
        ) from None
    except UnicodeError as problem:
        position = f" (byte {problem.start})" if isinstance(problem, UnicodeDecodeError) else ""
        raise MappingError(
            f"site {site.name!r}: {source.path} is not {encoding}{position}; it reads as "
            f"{_likely_encoding(data)}: write that as `encoding` in {where}"
        ) from None
    # Latin-1 reads any bytes, GBK most. What is not ASCII and can be read as UTF-8 is UTF-8.
    likely = _likely_encoding(data)
    if likely in ("utf-8", "utf-16") and not name.startswith(likely) and not data.isascii():
        raise MappingError(
            f"site {site.name!r}: {source.path} is declared as {encoding} but is {likely}; write `encoding: {likely}` in {where}"
        )
    return text


def _likely_encoding(data: bytes) -> str:
    """A guess for a sentence, never used to read: Chinese comes in pairs of high bytes, European accents alone."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8", "gbk"):
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "utf-8" or not _accents_stand_alone(data):
            return encoding
    return "latin-1"


def _accents_stand_alone(data: bytes) -> bool:
    alone = re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", data)
    return len(alone) * 2 > sum(byte > 127 for byte in data)


def _split_at_delimiter(site: SiteFolder, source: Source, first_line: Sequence[str], where: str) -> None:
    if len(first_line) > 1:
        return
    found = Counter(first_line[0] if first_line else "")
    other = max((mark for mark in _DELIMITERS if mark != source.delimiter), key=lambda mark: found[mark])
    if found[other]:
        written = '"\\t"' if other == "\t" else f'"{other}"'
        raise MappingError(
            f"site {site.name!r}: {source.path} has a single column when split at {source.delimiter!r}; it looks split at "
            f"{_DELIMITERS[other]}: write `delimiter: {written}` in {where}"
        )


def _no_column_twice(site: SiteFolder, source: Source, columns: Sequence[str]) -> None:
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise MappingError(
            f"site {site.name!r}: {source.path} has the column {repeated[0]!r} twice; rename one in the export"
        )


def _row_problem(text: str, source: Source, problem: pa.ArrowException) -> str:
    """What is wrong with the rows, in counts: a row's content belongs to a patient and stays out of messages."""
    found = re.search(r"Expected (\d+) columns, got (\d+)", str(problem))
    if found is None:
        return "its quotes or rows do not match up"
    expected, got = int(found[1]), int(found[2])
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=source.delimiter)
    try:
        line = next((rows.line_num for row in rows if row and len(row) != expected), None)
    except csv.Error:
        line = None
    place = f"line {line} has" if line else "a row has"
    return f"{place} {got} columns where the first line has {expected}"
