"""How much a site's patients weigh in a sum: what the gate is told, so that no few of them can stand for all.

A model that is made up for the purpose can take the weight from nearly everybody. ``effective``: from nearly all of one
site's patients. ``ordinary``: from all of them, so that a total over several sites is that of a few patients elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_] | float


def effective_patients(weights: FloatArray, axis: int = -1) -> FloatArray:
    """Kish's effective number behind weighted sums, (sum w)^2 / sum w^2: small when a few patients dominate."""
    total, squares = weights.sum(axis), (weights * weights).sum(axis)
    return np.asarray(np.where(squares > 0, total * total / np.where(squares > 0, squares, 1.0), 0.0))


def ordinary_patients(weights: FloatArray, y: FloatArray, mask: Mask = 1.0) -> FloatArray:
    """To how many patients weights (..., n) of a logistic model add up, of the weight that all have where nothing is known.

    y: outcomes (..., n); mask: whether a row is there. Infinity where all outcomes are the same: such rows have no weight to lose.
    """
    mean = (y * mask).sum(-1) / (np.ones_like(y) * mask).sum(-1)
    alike = mean * (1 - mean)
    return np.asarray(np.where(alike > 0, weights.sum(-1) / np.where(alike > 0, alike, 1.0), np.inf))


@dataclass(frozen=True)
class WeightSums:
    """Of rows that are read in blocks: sums of their weights, of the squares, of outcomes, and of the rows. They add up.

    outcomes and rows: each row times its weight in the study, where it has one.
    """

    weights: float = 0.0
    squares: float = 0.0
    outcomes: float = 0.0
    rows: float = 0.0

    @classmethod
    def of(cls, weights: FloatArray, y: FloatArray, own: FloatArray | float = 1.0) -> "WeightSums":
        """weights: (b,) in the sum; y: outcomes (b,); own: weights of the rows in the study."""
        rows = own.sum() if isinstance(own, np.ndarray) else own * len(y)
        return cls(float(weights.sum()), float(weights @ weights), float((own * y).sum()), float(rows))

    def __add__(self, other: "WeightSums") -> "WeightSums":
        return WeightSums(
            self.weights + other.weights, self.squares + other.squares, self.outcomes + other.outcomes, self.rows + other.rows
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """Of the outcomes; 0 where there are no rows."""
        return self.outcomes / self.rows if self.rows > 0 else 0.0

    @property
    def effective(self) -> float:
        """See ``effective_patients``; infinity where there are no rows, and 0 where there are and none weighs anything."""
        if self.squares > 0:
            return self.weights * self.weights / self.squares
        return 0.0 if self.rows > 0 else np.inf

    def ordinary(self, alike: float, patients: int) -> float:
        """See ``ordinary_patients``. alike: what a row weighs at the mean of the outcomes; patients: for whom the rows stand."""
        return self.weights / alike * patients / self.rows if alike > 0 and self.rows > 0 else np.inf
