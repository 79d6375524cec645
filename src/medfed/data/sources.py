"""A site's files as Arrow tables, every CSV cell as text: nothing is guessed before the mapping says what it is."""

import codecs
import csv
import io
from collections import Counter

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from medfed.data.site_folder import SiteFolder, Source
from medfed.errors import MappingError

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def read_source(site: SiteFolder, name: str) -> pa.Table:
    """Read a source. MappingError: missing file, wrong delimiter, wrong encoding, damaged file."""
    source = site.declared.sources[name]
    path = site.folder / source.path
    where = site.where("sources", name)
    if not path.is_file():
        raise MappingError(f"site {site.name!r}: {path} does not exist; correct `path` of source {name!r} in {where}")
    if source.format == "parquet":
        try:
            return pa_parquet.read_table(path)
        except (pa.ArrowInvalid, OSError):
            raise MappingError(
                f"site {site.name!r}: {path} is not a Parquet file; correct `format` in {where}"
            ) from None
    return _read_csv(site, name, source, path.read_bytes(), where)


def _read_csv(site: SiteFolder, name: str, source: Source, data: bytes, where: str) -> pa.Table:
    encoding = source.encoding
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise MappingError(f"there is no encoding {encoding!r}; write utf-8, gbk or latin-1 in {where}") from None
    try:
        text = data.decode("utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding)
    except UnicodeDecodeError as problem:
        raise MappingError(
            f"site {site.name!r}: {source.path} is not {encoding} (byte {problem.start}); it reads as "
            f"{_likely_encoding(data)}: write that as `encoding` in {where}"
        ) from None
    if not text.strip():
        raise MappingError(f"site {site.name!r}: {source.path} is empty; export it again")
    first_line = next(csv.reader(io.StringIO(text), delimiter=source.delimiter))
    if len(first_line) < 2:
        found = Counter(first_line[0] if first_line else "")
        other = max((d for d in _DELIMITERS if d != source.delimiter), key=lambda d: found[d])
        if found[other]:
            raise MappingError(
                f"site {site.name!r}: {source.path} has a single column when split at {source.delimiter!r}; it looks split at "
                f"{_DELIMITERS[other]}: write `delimiter: {other!r}` for source {name!r} in {where}"
            )
    repeated = [column for column, count in Counter(source.header or first_line).items() if count > 1]
    if repeated:
        raise MappingError(
            f"site {site.name!r}: {source.path} has the column {repeated[0]!r} twice; rename one in the export"
        )
    try:
        return pa_csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=pa_csv.ReadOptions(column_names=list(source.header) if source.header else None),
            parse_options=pa_csv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(source.header or first_line, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as problem:
        what = str(problem).split(". ")[0].split(": ", 1)[-1][:120]
        raise MappingError(
            f"site {site.name!r}: {source.path} can't be read as rows ({what}); check `delimiter` in {where}, or export again"
        ) from None


def _likely_encoding(data: bytes) -> str:
    for encoding in ("utf-8", "gbk"):
        try:
            data.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"
