"""Does one site stand apart from the others, as a site does whose labels were inverted or whose codes were mixed up?

Three looks: event rate, sign of coefficients, ranking worse than chance. Each is a test against what the *other* sites
say, corrected for how often it is made, so that sites that differ only by chance raise an alarm in at most about one
study of twenty. An alarm asks a person to look; it proves nothing, and where fewer than three sites are seen, rates
and signs can't tell which of them is apart, so nothing is said.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from medfed.evaluation.discrimination import Auc

FloatArray = NDArray[np.float64]

PREVALENCE = (
    "{site}: {events} of {patients} patients have the event ({percent:.0f} %), the other sites together "
    "{others_percent:.0f} %. That is further apart than hospitals usually are: check how the outcome is coded."
)
SIGN = (
    "{site}: {covariates} point the other way than at the other sites. Check how the outcome and these variables "
    "are coded."
)
AUC = (
    "{site}: the model ranks patients worse than chance (AUC {auc:.2f}, interval {low:.2f} to {high:.2f}). "
    "Check whether the outcome is inverted."
)
AUC_ELSEWHERE = (
    "{site}: the model ranks patients worse than chance (AUC {auc:.2f}, interval {low:.2f} to {high:.2f}). "
    "The reason may lie at {suspects}, from which the model learned."
)
SENTENCES = (PREVALENCE, SIGN, AUC, AUC_ELSEWHERE)

FEWEST_SITES = 3
USUAL_SPREAD = 0.5


@dataclass(frozen=True)
class SiteFigures:
    """What is visible of one site. coefficients: by covariate, (estimate, standard error), all sites on one scale;
    auc: of a model that the site did not shape alone. What may not be shown is left out."""

    site: str
    patients: int
    events: int
    coefficients: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    auc: Auc | None = None


@dataclass(frozen=True)
class Alarm:
    """kind, site, and a sentence: its English text is the key of a translation, ``parameters`` fill it."""

    kind: Literal["prevalence", "sign", "auc"]
    site: str
    sentence: str
    parameters: Mapping[str, str | int | float]

    def text(self, translate: Callable[[str], str] = str) -> str:
        """The sentence for people, in the language of ``translate``."""
        return translate(self.sentence).format(**self.parameters)


def alarms(sites: Sequence[SiteFigures], *, false_alarms: float = 0.05) -> list[Alarm]:
    """Alarms of all sites, in the order of ``sites``.

    false_alarms: at most the share of studies with any alarm when sites differ by chance only; shared equally by the
    three kinds, and within a kind by all its tests (Bonferroni).
    """
    share = false_alarms / 3
    signs = _signs(sites, share)
    rankings = _rankings(sites, share, suspects=[alarm.site for alarm in signs])
    found = [*_prevalences(sites, share), *signs, *rankings]
    order = {figures.site: place for place, figures in enumerate(sites)}
    return sorted(found, key=lambda alarm: order[alarm.site])


def _prevalences(sites: Sequence[SiteFigures], share: float) -> list[Alarm]:
    """A site's log odds of the event against the prediction interval of the others' (Higgins et al. 2009), with at
    least the spread that hospitals usually have: 95 % within a factor 2.7 of the mean odds."""
    seen = [figures for figures in sites if figures.patients > 0]
    if len(seen) < FEWEST_SITES:
        return []
    events = np.array([float(figures.events) for figures in seen])
    patients = np.array([float(figures.patients) for figures in seen])
    log_odds = np.log((events + 0.5) / (patients - events + 0.5))
    variance = 1 / (events + 0.5) + 1 / (patients - events + 0.5)
    found = []
    for index, figures in enumerate(seen):
        others = np.arange(len(seen)) != index
        mean, error, spread = random_effects(log_odds[others], variance[others], least_spread=USUAL_SPREAD)
        distance = (log_odds[index] - mean) / math.sqrt(variance[index] + spread**2 + error**2)
        if 2 * special.ndtr(-abs(distance)) < share / len(seen):
            parameters: dict[str, str | int | float] = {
                "site": figures.site,
                "events": figures.events,
                "patients": figures.patients,
                "percent": 100.0 * figures.events / figures.patients,
                "others_percent": float(100 * events[others].sum() / patients[others].sum()),
            }
            found.append(Alarm("prevalence", figures.site, PREVALENCE, parameters))
    return found


def _signs(sites: Sequence[SiteFigures], share: float) -> list[Alarm]:
    """Coefficients significantly on one side at the site and on the other at the rest taken together; the intercept
    has no sign to compare."""
    estimates: dict[str, dict[str, tuple[float, float]]] = {}
    for figures in sites:
        for name, (coefficient, error) in figures.coefficients.items():
            if name != "intercept" and math.isfinite(coefficient) and 0 < error < math.inf:
                estimates.setdefault(name, {})[figures.site] = (coefficient, error)
    estimates = {name: by_site for name, by_site in estimates.items() if len(by_site) >= FEWEST_SITES}
    tests = sum(len(by_site) for by_site in estimates.values())
    apart: dict[str, list[str]] = {}
    for name, by_site in estimates.items():
        for site, (coefficient, error) in by_site.items():
            rest = np.array([value for other, value in by_site.items() if other != site])
            mean, mean_error, _ = random_effects(rest[:, 0], rest[:, 1] ** 2)
            opposite = coefficient * mean < 0
            here = special.ndtr(-abs(coefficient) / error) < share / tests
            elsewhere = special.ndtr(-abs(mean) / mean_error) < 0.025
            if opposite and here and elsewhere:
                apart.setdefault(site, []).append(name)
    return [
        Alarm("sign", site, SIGN, {"site": site, "covariates": ", ".join(sorted(names))})
        for site, names in apart.items()
    ]


def _rankings(sites: Sequence[SiteFigures], share: float, suspects: Sequence[str]) -> list[Alarm]:
    """AUC under 0.5 by the larger of DeLong's error and that of Mann & Whitney under chance, (m + n + 1) / 12mn.

    A large inverted site teaches a model that fails at honest sites: where signs point at others (``suspects``) and
    not at this site, the sentence says so.
    """
    seen = [(figures.site, figures.auc) for figures in sites if figures.auc is not None]
    found = []
    for site, auc in seen:
        m, n = auc.events, auc.nonevents
        error = max(auc.standard_error, math.sqrt((m + n + 1) / (12 * m * n)))
        if special.ndtr((auc.value - 0.5) / error) < share / len(seen):
            parameters: dict[str, str | int | float] = {
                "site": site,
                "auc": auc.value,
                "low": auc.low,
                "high": auc.high,
            }
            elsewhere = bool(suspects) and site not in suspects
            if elsewhere:
                parameters["suspects"] = ", ".join(suspects)
            found.append(Alarm("auc", site, AUC_ELSEWHERE if elsewhere else AUC, parameters))
    return found


def random_effects(
    estimates: FloatArray, variances: FloatArray, *, least_spread: float = 0.0
) -> tuple[float, float, float]:
    """Mean, its standard error and the spread between sites of estimates (k,) with variances (k,).

    DerSimonian & Laird 1986, the spread held to ``least_spread`` or more.
    """
    weight = 1 / variances
    fixed = weight @ estimates / weight.sum()
    excess = weight @ (estimates - fixed) ** 2 - (len(estimates) - 1)
    scale = weight.sum() - weight @ weight / weight.sum()
    between = max(excess / scale if scale > 0 else 0.0, least_spread**2)
    weight = 1 / (variances + between)
    return float(weight @ estimates / weight.sum()), float(1 / math.sqrt(weight.sum())), math.sqrt(between)
