"""Is the model still among patients like those it learned from, and are its risks still true? At one site, from sums.

Two monitors: each input's distribution, in bins, against a reference; events observed over expected. Both know n: under
the number at which a stated drift would be seen with 80 % power they say "too few to judge" instead of "no drift", and
without drift they cry in about 5 % of looks. Who looks every month for a year passes false_alarms = 0.05 / 12.
The reference of the inputs is best the site's own training table: against the whole consortium a site that always
had other patients would seem to drift.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medfed.evaluation.calibration import RiskSums

FloatArray = NDArray[np.float64]
Verdict = Literal["too few", "no drift", "drift"]

INPUT_TOO_FEW = "{variable}: too few to judge ({rows} patients; {rows_needed} would show a large drift)."
INPUT_REFERENCE_TOO_SMALL = "{variable}: too few to judge (the reference has only {reference_rows} patients)."
INPUT_NO_DRIFT = "{variable}: no drift seen in {rows} patients (shift {shift:.3f}, limit {limit:.3f})."
INPUT_DRIFT = "{variable}: drift in {rows} patients (shift {shift:.3f}, limit {limit:.3f})."
RISK_TOO_FEW = "Risks: too few to judge ({rows} patients; {rows_needed} would show a large drift)."
RISK_REFERENCE_TOO_SMALL = "Risks: too few to judge (the reference has only {reference_rows} patients)."
RISK_NOTHING = "Risks: nothing to judge ({rows} patients, and no events to expect or to compare with)."
RISK_NO_DRIFT = (
    "Risks: no drift seen in {rows} patients (observed/expected {ratio:.2f}, limits {low:.2f} to {high:.2f})."
)
RISK_DRIFT = "Risks: drift in {rows} patients (observed/expected {ratio:.2f}, limits {low:.2f} to {high:.2f})."
SENTENCES = (
    INPUT_TOO_FEW, INPUT_REFERENCE_TOO_SMALL, INPUT_NO_DRIFT, INPUT_DRIFT,
    RISK_TOO_FEW, RISK_REFERENCE_TOO_SMALL, RISK_NOTHING, RISK_NO_DRIFT, RISK_DRIFT,
)  # fmt: skip

LARGE_SHIFT = 0.25
LARGE_RATIO = 1.5
POWER = 0.8
_FEWEST_EXPECTED = 5


def input_counts(values: ArrayLike, edges: ArrayLike) -> FloatArray:
    """Patients by bin of one input, (bins + 1,): values (n,), edges (bins - 1,) increasing; the last entry counts the
    missing (NaN), since data that stop arriving are a drift too."""
    value, grid = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    missing = np.isnan(value)
    index = np.where(missing, len(grid) + 1, np.searchsorted(grid, value, side="right"))
    return np.bincount(index, minlength=len(grid) + 2).astype(np.float64)


@dataclass(frozen=True)
class InputDrift:
    """shift: sum over bins of (p - q)^2 / mean, to first order the population stability index (0.1 some, 0.25 large);
    limit: the shift that chance passes with the agreed probability at these numbers (None without patients). power: of
    seeing a large shift; rows_needed: patients for 80 %, None where the reference is too small for any number."""

    variable: str
    rows: int
    reference_rows: int
    shift: float
    limit: float | None
    p_value: float
    power: float
    rows_needed: int | None
    verdict: Verdict

    def text(self, translate: Callable[[str], str] = str) -> str:
        """The finding as a sentence; ``translate`` maps its English text to another language."""
        few = INPUT_REFERENCE_TOO_SMALL if self.rows_needed is None else INPUT_TOO_FEW
        sentence = {"too few": few, "no drift": INPUT_NO_DRIFT, "drift": INPUT_DRIFT}[self.verdict]
        return translate(sentence).format(**vars(self))


def input_drift(
    reference: Mapping[str, ArrayLike],
    current: Mapping[str, ArrayLike],
    *,
    false_alarms: float = 0.05,
    power: float = POWER,
    large_shift: float = LARGE_SHIFT,
) -> list[InputDrift]:
    """Each input's counts (bins,) now against the reference's on the same bins; ``false_alarms`` is for all together.

    Two-sample chi-square (Pearson 1911), neighbours merged until each expects 5 in the smaller sample; its shift and
    the stability index share the law (1/n + 1/n_reference) chi-square (Yurdakul & Naranjo 2020).
    """
    if reference.keys() != current.keys():
        raise ValueError("reference and current counts need the same inputs")
    level = false_alarms / max(len(reference), 1)
    return [
        _drift_of(name, *_same_bins(name, reference[name], current[name]), level, power, large_shift)
        for name in reference
    ]


def _drift_of(name: str, before: FloatArray, now: FloatArray, level: float, power: float, large: float) -> InputDrift:
    n_before, n_now = float(before.sum()), float(now.sum())
    rows, reference_rows = round(n_now), round(n_before)
    freedom = max(int(np.count_nonzero(before + now)) - 1, 1)
    needed = _rows_for_shift(freedom, level, power, large, n_before)
    if min(n_before, n_now) == 0:
        return InputDrift(name, rows, reference_rows, 0.0, None, 1.0, 0.0, needed, "too few")
    per_row = 1 / n_before + 1 / n_now
    seen = _power(freedom, level, large / per_row)
    before, now = _merged(before, now)
    groups = len(before)
    shift = float((((before / n_before - now / n_now) ** 2) / ((before + now) / (n_before + n_now))).sum())
    limit = float(special.chdtri(max(groups - 1, 1), level)) * per_row
    p_value = float(special.chdtrc(groups - 1, shift / per_row)) if groups > 1 else 1.0
    verdict: Verdict = "too few" if needed is None or rows < needed else "drift" if shift > limit else "no drift"
    return InputDrift(name, rows, reference_rows, shift, limit, p_value, seen, needed, verdict)


def _merged(before: FloatArray, now: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Neighbours merged, by both samples together, until each expects 5 patients in the smaller one."""
    smaller = min(before.sum(), now.sum()) / (before.sum() + now.sum())
    groups: list[list[float]] = [[0.0, 0.0]]
    for pair in zip(before, now, strict=True):
        if smaller * sum(groups[-1]) >= _FEWEST_EXPECTED:
            groups.append([0.0, 0.0])
        groups[-1][0] += pair[0]
        groups[-1][1] += pair[1]
    if len(groups) > 1 and smaller * sum(groups[-1]) < _FEWEST_EXPECTED:
        rest = groups.pop()
        groups[-1] = [groups[-1][0] + rest[0], groups[-1][1] + rest[1]]
    table = np.array(groups)
    return table[:, 0], table[:, 1]


def _power(freedom: int, level: float, noncentrality: float) -> float:
    return float(1 - special.chndtr(special.chdtri(freedom, level), freedom, noncentrality))


@lru_cache(maxsize=256)
def _noncentrality(freedom: int, level: float, power: float) -> float:
    from scipy import optimize

    return float(optimize.brentq(lambda value: _power(freedom, level, value) - power, 1e-3, 1e4))


def _rows_for_shift(freedom: int, level: float, power: float, shift: float, reference_rows: float) -> int | None:
    """Patients at which chi-square has this power for this shift, given the size of the reference."""
    left = shift / _noncentrality(freedom, level, power) - (1 / reference_rows if reference_rows > 0 else math.inf)
    return math.ceil(1 / left) if left > 0 else None


def _same_bins(name: str, before: ArrayLike, now: ArrayLike) -> tuple[FloatArray, FloatArray]:
    first, second = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not (np.all(first >= 0) and np.all(second >= 0)):
        raise ValueError(f"input '{name}': reference and current counts need the same bins and no negative number")
    return first, second


@dataclass(frozen=True)
class RiskDrift:
    """ratio: observed over expected events; expected_ratio: 1, or the reference's; low, high: what chance reaches.
    The three are None where the risks leave nothing to expect. power: of seeing risks wrong by a large factor (1.5), in
    the harder direction; rows_needed as for the inputs."""

    rows: int
    reference_rows: int | None
    ratio: float | None
    expected_ratio: float
    low: float | None
    high: float | None
    p_value: float
    power: float
    rows_needed: int | None
    verdict: Verdict

    def text(self, translate: Callable[[str], str] = str) -> str:
        """The finding as a sentence; ``translate`` maps its English text to another language."""
        few = RISK_REFERENCE_TOO_SMALL if self.rows_needed is None else RISK_TOO_FEW
        if self.ratio is None:
            few = RISK_NOTHING
        sentence = {"too few": few, "no drift": RISK_NO_DRIFT, "drift": RISK_DRIFT}[self.verdict]
        return translate(sentence).format(**vars(self))


def risk_drift(
    current: RiskSums,
    reference: RiskSums | None = None,
    *,
    false_alarms: float = 0.05,
    power: float = POWER,
    large_ratio: float = LARGE_RATIO,
) -> RiskDrift:
    """Observed over expected events now, against 1 (a model recalibrated here) or against an earlier period's ratio.

    Normal test of the number of events, whose variance is the sum of r (1 - r) if the risks are true; moved to the
    reference's ratio, and the reference adds its own. Never judged while that sum is under 5.
    """
    rows = round(current.rows)
    reference_rows = None if reference is None else round(reference.rows)
    before = 1.0
    if reference is not None and reference.expected > 0:
        before = reference.events / reference.expected
    usable = all(sums.variance > 0 for sums in (current, reference) if sums is not None)
    if not (usable and before > 0):
        return RiskDrift(rows, reference_rows, None, before, None, None, 1.0, 0.0, None, "too few")

    z = float(-special.ndtri(false_alarms / 2))
    noise_before = 0.0 if reference is None else _ratio_variance(reference, before, reference.rows)

    def error(patients: float, ratio: float) -> float:
        return math.sqrt(_ratio_variance(current, ratio, patients) + noise_before)

    def seen(patients: float) -> float:
        """Power with the current mean risk, in the direction that is harder to see; a rate over 1 can't come."""
        moved = (before / large_ratio, before * large_ratio)
        reachable = [ratio for ratio in moved if ratio * current.expected < current.rows]
        far = [(abs(ratio - before) - z * error(patients, before)) / error(patients, ratio) for ratio in reachable]
        return float(special.ndtr(min(far))) if far else 0.0

    fewest = math.ceil(_FEWEST_EXPECTED * current.rows / current.variance)
    needed = _rows_for_power(seen, power, fewest)
    ratio, chance = current.events / current.expected, error(current.rows, before)
    outside = abs(ratio - before) > z * chance
    verdict: Verdict = "too few" if needed is None or rows < needed else "drift" if outside else "no drift"
    return RiskDrift(
        rows, reference_rows, ratio, before, max(before - z * chance, 0.0), before + z * chance,
        float(2 * special.ndtr(-abs(ratio - before) / chance)), seen(current.rows), needed, verdict,
    )  # fmt: skip


def _rows_for_power(seen: Callable[[float], float], power: float, fewest: int, most: int = 10**9) -> int | None:
    """Fewest patients, from ``fewest`` on, with this power; None if ``most`` don't have it."""
    if seen(most) < power:
        return None
    low, high = fewest - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) >= power else (middle, high)
    return high


def _ratio_variance(sums: RiskSums, ratio: float, rows: float) -> float:
    """Variance of observed over expected among ``rows`` patients like these, where the true ratio is ``ratio``.

    At ratio 1 it is sum r (1 - r) / (sum r)^2. Elsewhere the same share of the largest variance that the mean risk
    allows: within a few per cent of what a change of the intercept does, and exact for rare events.
    """
    mean = sums.expected / sums.rows
    share = sums.variance / (sums.expected * (1 - mean))
    moved = min(ratio * mean, 0.999)
    return share * moved * (1 - moved) / (rows * mean**2)
