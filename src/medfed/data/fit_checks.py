"""Values that do not fit their declaration, told with counts, examples and the line to change. They stay at the site."""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

import ibis
import ibis.expr.types as ir

from medfed.data.expressions import MOST_PROBLEMS, Mapped, Reading
from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError

_FORMATS = (
    "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%d-%m-%Y", "%Y%m%d",
    "%Y年%m月%d日", "%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d-%b-%y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S",
    "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M",
)  # fmt: skip
NO_DATE = "no known date"
# What a column mixes, in the sentence below, for the catalogue.
MIXED = ("{count} like {kind}", "{count} like no known date")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+")


def check_fits(site: SiteFolder, table: ir.Table, variables: list[Mapped], rows: int) -> None:
    """MappingError that lists, for up to ten columns, the values of ``table`` that can't be read as declared."""
    places = [(mapped, index) for mapped in variables for index in range(len(mapped.readings))]
    if not places or not rows:
        return
    counts = table.aggregate(
        **{mapped.fits(index): (~table[mapped.fits(index)]).sum() for mapped, index in places}
    ).to_pyarrow()
    problems = []
    for mapped, index in places:
        unfit = counts.column(mapped.fits(index))[0].as_py()
        if not unfit:
            continue
        reading = mapped.readings[index]
        bad = _counted(table.filter(~table[mapped.fits(index)]), mapped.text(index))
        if reading.kind == "number":
            problems.append(_not_numbers(site, mapped, reading, bad, rows))
        elif reading.kind == "code":
            problems.append(_not_codes(site, mapped, reading, bad))
        else:
            problems.append(_not_dates(site, mapped, reading, bad, _counted(table, mapped.text(index)), rows))
    if problems:
        raise MappingError("\n".join(problems[:MOST_PROBLEMS]))


def _counted(table: ir.Table, column: str) -> dict[str, int]:
    """How often each text stands in a column, the most frequent first."""
    text = table[column]
    found = (
        table.filter(text.notnull())
        .group_by(text=text)
        .aggregate(times=lambda group: group.count())
        .order_by([ibis.desc("times"), "text"])
        .to_pyarrow()
    )
    return dict(zip(found.column("text").to_pylist(), found.column("times").to_pylist(), strict=True))


def _examples(values: list[str], most: int = 4) -> str:
    shown = [f'"{value}"' for value in values]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def _of(mapped: Mapped, reading: Reading) -> str:
    """Which column, where a variable is made from several."""
    return f" in {reading.column!r}" if len(mapped.readings) > 1 else ""


def _not_numbers(site: SiteFolder, mapped: Mapped, reading: Reading, bad: Mapping[str, int], rows: int) -> str:
    head = (
        f"site {site.name!r}, variable {mapped.name!r}: {sum(bad.values())} of {rows} values{_of(mapped, reading)} are not "
        f"numbers ({_examples(list(bad))}).\n"
    )
    source = site.declared.patient.source
    if site.declared.sources[source].decimal == "." and all(_DECIMAL_COMMA.fullmatch(text) for text in bad):
        return f'{head}  They have a decimal comma: write `decimal: ","` in {site.where("sources", source)}.'
    return f"{head}  Add them to missing_codes in {site.where('mapping', mapped.name)}, or fix the export."


def _not_codes(site: SiteFolder, mapped: Mapped, reading: Reading, bad: Mapping[str, int]) -> str:
    counts = ", ".join(f'"{code}" ({count})' for code, count in list(bad.items())[:6]) + (
        ", ..." if len(bad) > 6 else ""
    )
    garbled = "" if "".join(bad).isascii() else " If they look garbled, the source's `encoding` is another one."
    return (
        f"site {site.name!r}, variable {mapped.name!r}: codes without a map{_of(mapped, reading)}: {counts}.\n"
        f"  Map them to one of {', '.join(mapped.variable.codes or ())}, or add them to missing_codes, in "
        f"{site.where('mapping', mapped.name, 'codes')}.{garbled}"
    )


def _not_dates(
    site: SiteFolder, mapped: Mapped, reading: Reading, bad: Mapping[str, int], every: Mapping[str, int], rows: int
) -> str:
    declared = " or ".join(reading.formats) or "dates"
    where = site.where("mapping", mapped.name)
    head = f"site {site.name!r}, variable {mapped.name!r}: {sum(bad.values())} of {rows} dates in {reading.column!r}"
    twice = [text for text in bad if any(_fits(text, pattern) for pattern in reading.formats)]
    if twice:
        return (
            f"{head} are different days by {declared} ({_examples(twice, 3)}).\n"
            f"  Export one format and declare it in {where}."
        )
    seen = date_formats_of(every, reading.formats)
    kinds = ", ".join(f"{count} like {kind}" for kind, count in seen.most_common(4))
    if len(seen) > 1:
        mixed = f"the column mixes formats ({kinds})"
    else:
        mixed = "they look like no known date" if NO_DATE in seen else f"they look like {next(iter(seen))}"
    return (
        f"{head} are not {declared} ({_examples(list(bad), 3)}); {mixed}.\n"
        f'  Export one format and declare it as date_format in {where} (a list, ["%Y-%m-%d", "%d.%m.%Y"], where no text '
        "can be read two ways); medfed does not guess which of day and month comes first."
    )


def date_formats_of(texts: Mapping[str, int], declared: tuple[str, ...] = ()) -> Counter[str]:
    """How many of the texts (with how often each stands) have which date format, for a message.

    A text that several formats read goes to the one that reads most of the column, and names all where that is a tie.
    """
    by_text = {
        text: [pattern for pattern in dict.fromkeys((*declared, *_FORMATS)) if _fits(text, pattern)] for text in texts
    }
    reads: Counter[str] = Counter()
    for text, patterns in by_text.items():
        reads.update(dict.fromkeys(patterns, texts[text]))
    seen: Counter[str] = Counter()
    for text, patterns in by_text.items():
        of_declared = [pattern for pattern in patterns if pattern in declared]
        most = max((reads[pattern] for pattern in patterns), default=0)
        best = of_declared[:1] or [pattern for pattern in patterns if reads[pattern] == most]
        seen[" or ".join(best) or NO_DATE] += texts[text]
    return seen


def _fits(text: str, pattern: str) -> bool:
    try:
        return datetime.strptime(text, pattern).year >= 1
    except ValueError:
        return False
