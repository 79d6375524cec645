"""What a site learns of its own data before anything runs: rows kept and dropped, missing, out of range, unmapped."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class VariableQuality:
    """One variable over the rows that were read. levels: patients by code (kept rows); mean, deviation: of kept numbers."""

    known: int
    missing: int
    out_of_range: int = 0
    levels: Mapping[str, int] = field(default_factory=dict)
    mean: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Quality:
    """The quality page's content. It stays at the site."""

    site: str
    study: str
    rows_read: int
    rows_kept: int
    duplicates: int
    dropped: Mapping[str, int]
    variables: Mapping[str, VariableQuality]
    warnings: tuple[str, ...]
    lineage: Mapping[str, Any]
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
