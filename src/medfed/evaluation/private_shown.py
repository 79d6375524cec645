"""Results of private methods where charts are asked for: they have none yet, and say so."""

from collections.abc import Sequence

from medfed.evaluation.figure import Figure
from medfed.evaluation.statistics_shown import Drawn
from medfed.methods.private_result import PrivateDescription, PrivateFit


class NoisyModel(Drawn, PrivateFit):
    """A model of noisy sums."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return []


class NoisyDescription(Drawn, PrivateDescription):
    """Counts, means and histograms with noise."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return []
