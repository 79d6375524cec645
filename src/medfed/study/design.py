"""The feature columns that a study's variables become: the same at every site, known before any data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One feature. kind: intercept | number | indicator; level: the code an indicator stands for; low, high: its range."""

    name: str
    variable: str
    kind: Literal["intercept", "number", "indicator"]
    level: str | None
    low: float
    high: float


@dataclass(frozen=True)
class Design:
    """All features in order, the intercept first."""

    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)
