"""Values that do not fit their declaration, told with counts, examples and the line to change. They stay at the site."""

from collections import Counter
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medfed.data.expressions import Mapped
from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError

_FORMATS = (
    "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%d-%m-%Y", "%Y%m%d",
    "%Y年%m月%d日", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S",
)  # fmt: skip


def _examples(values: list[str], most: int = 4) -> str:
    shown = [f'"{value}"' for value in dict.fromkeys(values)]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def _unfit(raw: NDArray[Any], values: pa.ChunkedArray) -> NDArray[np.bool_]:
    known = np.array([value is not None for value in raw])
    return np.asarray(known & np.asarray(values.is_null().to_numpy(zero_copy_only=False)))


def check_numbers(site: SiteFolder, mapped: Mapped, raw: NDArray[Any], values: pa.ChunkedArray) -> None:
    """MappingError where texts of a number are not numbers."""
    bad = _unfit(raw, values)
    if bad.any():
        where = site.where("mapping", mapped.name)
        raise MappingError(
            f"site {site.name!r}, variable {mapped.name!r}: {int(bad.sum())} of {len(raw)} values are not numbers "
            f"({_examples([str(v) for v in raw[bad]])}).\n  Add them to missing_codes in {where}, or fix the export."
        )


def check_codes(site: SiteFolder, mapped: Mapped, raw: NDArray[Any], values: pa.ChunkedArray) -> None:
    """MappingError where a code has no counterpart, or maps to a code that the study does not have."""
    where = site.where("mapping", mapped.name, "codes")
    known = set(mapped.variable.codes or ())
    for here, there in (mapped.mapping.codes or {}).items():
        if there not in known:
            raise MappingError(
                f"site {site.name!r}, variable {mapped.name!r}: {here!r} is mapped to {there!r}, which is no code of the study "
                f"({', '.join(known)}). Correct {where}"
            )
    bad = _unfit(raw, values)
    if bad.any():
        counts = ", ".join(f'"{code}" ({count})' for code, count in Counter(str(v) for v in raw[bad]).most_common(6))
        raise MappingError(
            f"site {site.name!r}, variable {mapped.name!r}: codes without a map: {counts}.\n"
            f"  Map them to one of {', '.join(sorted(known))}, or add them to missing_codes, in {where}."
        )


def check_dates(
    site: SiteFolder, mapped: Mapped, raw: NDArray[Any], later: NDArray[Any], values: pa.ChunkedArray
) -> None:
    """MappingError where dates do not follow the declared format; says which formats it sees instead."""
    both = np.array([a is not None and b is not None for a, b in zip(raw, later, strict=True)])
    bad = both & np.asarray(values.is_null().to_numpy(zero_copy_only=False))
    if not bad.any():
        return
    assert mapped.mapping.years_until is not None
    for column, texts, declared in (
        (mapped.mapping.column, raw, mapped.mapping.date_format or ""),
        (mapped.mapping.years_until.column, later, mapped.mapping.years_until.date_format),
    ):
        wrong = [str(text) for text in texts[bad] if not _fits(str(text), declared)]
        if not wrong:
            continue
        seen = Counter(_format_of(str(text), declared) for text in texts if text is not None)
        kinds = ", ".join(f"{count} like {kind}" for kind, count in seen.most_common(4))
        mixed = f"; the column mixes formats ({kinds})" if len(seen) > 1 else f"; they look like {next(iter(seen))}"
        raise MappingError(
            f"site {site.name!r}, variable {mapped.name!r}: {len(wrong)} of {len(raw)} dates in {column!r} are not {declared} "
            f"({_examples(wrong, 3)}){mixed}.\n  Export one format and declare it in {site.where('mapping', mapped.name)}; "
            "medfed does not guess which of day and month comes first."
        )


def _fits(text: str, pattern: str) -> bool:
    try:
        datetime.strptime(text, pattern)
        return True
    except ValueError:
        return False


def _format_of(text: str, declared: str) -> str:
    if _fits(text, declared):
        return declared
    return next((pattern for pattern in _FORMATS if _fits(text, pattern)), "no known date")
