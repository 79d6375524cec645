"""A researcher's own method, a federated median by bisection: each round asks how many patients lie above a guess."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medfed.federation.step import Input, Out, Sum, step


@step(
    reads="train",
    takes={"guess": Input("p", limit=1e6)},
    releases={"above": Sum("p", limit_per_row=1), "rows": Sum(limit_per_row=1)},
)
def patients_above(site, *, guess):
    """How many patients lie above a guess, feature by feature, (p,)."""
    (features,) = site.table.arrays("features")
    return Out({"above": (features > guess).sum(0).astype(float), "rows": float(len(features))})


@dataclass(frozen=True)
class MedianState:
    low: np.ndarray
    high: np.ndarray
    rounds: int


@dataclass(frozen=True)
class Median:
    """Settings: rounds of bisection."""

    rounds: int = 25

    steps: ClassVar = (patients_above,)

    def start(self, study):
        columns = study.design.columns
        return MedianState(np.array([c.low for c in columns]), np.array([c.high for c in columns]), 0)

    def advance(self, federation, state):
        middle = (state.low + state.high) / 2
        total = federation.sum(patients_above, guess=middle)
        more = total["above"] > total["rows"] / 2
        return MedianState(np.where(more, middle, state.low), np.where(more, state.high, middle), state.rounds + 1)

    def done(self, state):
        return state.rounds >= self.rounds

    def result(self, state):
        return {"median": (state.low + state.high) / 2}
