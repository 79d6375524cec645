"""What a coordinator may tell people about each site of a run, beside the figures: for the report. No data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from medfed.data.table import StudyTable
from medfed.federation.call import Engine
from medfed.federation.ledger import Released, SignedHead

Heads = Mapping[str, tuple[SignedHead, str]]


@dataclass(frozen=True)
class SiteFacts:
    """One site. closed: why it did not open at all; patients: where this process may know it (never over a network).

    approval: until, hash, table_version. ledger: rows, head, verified, epsilon. usual_minimum: whether its minimum cell is at
    least the usual one.
    """

    title: Mapping[str, str]
    closed: str | None = None
    releases: tuple[Released, ...] = ()
    patients: int | None = None
    approval: Mapping[str, Any] | None = None
    ledger: Mapping[str, Any] | None = None
    minimum_cell: int | None = None
    usual_minimum: bool = True


class ConsortiumEngine(Engine, Protocol):
    """An engine over real sites. ``tables``: those in this process, for a pooled comparison; none over a network."""

    @property
    def public_keys(self) -> Mapping[str, str]: ...
    @property
    def tables(self) -> Mapping[str, StudyTable]: ...
    def facts(self, run: str, heads: Heads) -> Mapping[str, SiteFacts]: ...
    def close(self) -> None: ...
