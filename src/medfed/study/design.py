"""The columns that a study's variables become, as features or by a formula: the same at every site, known before any data."""

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


@dataclass(frozen=True)
class Factor:
    """One variable in a term. change: "" | log | sqrt | power; reference: the code without a column of its own.

    levels: (code, index as stored) of a code variable, the reference first; -1 is "unknown".
    """

    name: str
    variable: str
    change: Literal["", "log", "sqrt", "power"] = ""
    exponent: int = 1
    levels: tuple[tuple[str, int], ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def is_code(self) -> bool:
        return bool(self.levels)


@dataclass(frozen=True)
class FormulaColumn:
    """One column of the design: the product of its parts, each a factor and, of a code, the stored level it marks.

    term: the term it belongs to ("arm:age"). low, high: its range, from the declared ranges.
    """

    name: str
    term: str
    parts: tuple[tuple[Factor, int | None], ...]
    low: float
    high: float

    @property
    def is_indicator(self) -> bool:
        """Whether it is 0 or 1 for everybody: a count of patients when summed."""
        return bool(self.parts) and all(level is not None for _, level in self.parts)

    @property
    def is_intercept(self) -> bool:
        return not self.parts


@dataclass(frozen=True)
class Formula:
    """A formula over a study's variables. columns: the intercept first. offset: added to the linear predictor."""

    text: str
    outcome: str
    columns: tuple[FormulaColumn, ...]
    offset: Factor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def terms(self) -> tuple[str, ...]:
        """Terms in order, without the intercept."""
        return tuple(dict.fromkeys(column.term for column in self.columns if column.parts))

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables that the columns and the offset are made from."""
        factors = [factor for column in self.columns for factor, _ in column.parts]
        if self.offset:
            factors.append(self.offset)
        return tuple(dict.fromkeys(factor.variable for factor in factors))
