"""How much a site's patients weigh in the models behind an average effect: of the arm, and of the outcome in each arm.

What ``weights`` says of one model, of all that a call brings: a made-up model of the outcome leaves a few patients as well
as one of the arm does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.site import Site
from medfed.methods.design_matrix import smallest_cell
from medfed.methods.weights import WeightSums

FloatArray = NDArray[np.float64]
_NONE = WeightSums()


def ordinary(own: WeightSums, site: Site) -> float:
    """See ``Out``; of a logistic model."""
    return own.ordinary(own.mean * (1 - own.mean), site.table.patients)


def outcome_weight(mean: FloatArray, event: bool) -> FloatArray:
    """How much rows weigh in a model of the outcome: logistic for an event, else linear."""
    return mean * (1 - mean) if event else np.ones_like(mean)


def ordinary_by_arm(weights: Sequence[WeightSums], site: Site, event: bool) -> float:
    """See ``Out``; of the model of the outcome within each arm, the lesser."""
    # An arm of a few patients here may well be predicted without doubt; it hides nobody.
    many = [own for own in weights if event and own.rows >= site.minimum_cell]
    return min((ordinary(own, site) for own in many), default=np.inf)


@dataclass(frozen=True)
class Weighed:
    """How much rows weigh in the model of the arm, and in that of the outcome within each arm. They add up."""

    overlap: WeightSums = _NONE
    outcomes: tuple[WeightSums, WeightSums] = (_NONE, _NONE)

    @classmethod
    def of(cls, overlap: FloatArray, arm: FloatArray, means: FloatArray, outcome: FloatArray, event: bool) -> "Weighed":
        """overlap, arm: (b,); means: as predicted under each arm (2, b); outcome (b,): in its own unit."""
        first, second = (
            WeightSums.of(outcome_weight(means[each, arm == each], event), outcome[arm == each]) for each in (0, 1)
        )
        return cls(WeightSums.of(overlap, arm), (first, second))

    def __add__(self, other: "Weighed") -> "Weighed":
        first, second = (one + more for one, more in zip(self.outcomes, other.outcomes, strict=True))
        return Weighed(self.overlap + other.overlap, (first, second))

    def stated(self, site: Site, event: bool, *more: tuple[float, float]) -> dict[str, Any]:
        """What a step of all these models states (see ``Out``). more: effective patients, and of how many."""
        of_outcomes = [(own.effective, own.rows) for own in self.outcomes]
        groups = [*more, (self.overlap.effective, np.inf), *of_outcomes, (smallest_cell(site), 0.0)]
        return {
            "effective_patients": tuple(effective for effective, _ in groups),
            "effective_of": tuple(of for _, of in groups),
            "ordinary_patients": min(ordinary(self.overlap, site), ordinary_by_arm(self.outcomes, site, event)),
        }
