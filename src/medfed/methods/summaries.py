"""What describes a table: counts of codes, sums of numbers, and histograms no cell of which shows a few patients.

Mathematics of ``describe``, ``table_one`` and ``compare``. A number's declared range is halved again and again, the same
at every site (a tree of 2**16 leaves). Where a half would hold a few patients, they are counted in the other half, on
the border: so every node of the tree holds nobody, or the site's minimum at least, whatever is asked of it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.gate import SMALL_COUNT
from medfed.federation.ring import FRACTION_BITS
from medfed.federation.site import Site
from medfed.study import Study

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEAST_SCALE = 1e-3  # of the declared range


def group_names(study: Study) -> list[str]:
    """The groups that are compared: arms, the reference first, or outcomes, no event first."""
    if not study.arm:
        codes = study.variables[study.outcome].codes or {}
        event = study.variables[study.outcome].event or ""
        return [*(code for code in codes if code != event), event] if event else []
    variable = study.variables[study.arm]
    codes = variable.codes or {}
    reference = variable.reference or next(iter(codes))
    return [reference, *(code for code in codes if code != reference)]


def group_variable(study: Study) -> str:
    """The variable that makes the groups."""
    return study.arm or study.outcome


def _pieces(site: Site, variables: Sequence[str], *, grouped: bool) -> Iterator[tuple[IntArray, dict[str, FloatArray]]]:
    """(group of each row, columns by variable) in pieces; codes as stored, numbers in their unit."""
    study = site.study
    roles = {name: ("arm" if name == study.arm else "outcome" if name == study.outcome else name) for name in variables}
    group = "arm" if study.arm else "outcome"
    wanted = list(dict.fromkeys([*roles.values(), group]))
    for piece in site.table.batches(wanted):
        columns = dict(zip(wanted, piece, strict=True))
        index = columns[group].astype(np.int64) if grouped else np.zeros(len(columns[group]), np.int64)
        yield index, {name: _as_stored(study, name, columns[role]) for name, role in roles.items()}


def _as_stored(study: Study, name: str, values: NDArray[Any]) -> FloatArray:
    """Arm and outcome are read by their role, in which the reference or "no event" is 0; back to the declared order."""
    codes = list(study.variables[name].codes or ())
    if name == study.arm:
        first = codes.index(study.variables[name].reference or codes[0])
        order = np.array([first] + [index for index in range(len(codes)) if index != first])
        return np.asarray(order[values.astype(np.int64)], dtype=np.float64)
    if name == study.outcome and codes:
        event = codes.index(study.variables[name].event or "")
        return np.where(values > 0, event, 1 - event).astype(np.float64)
    return np.asarray(values, dtype=np.float64)


def level_counts(site: Site, groups: int, *, grouped: bool) -> FloatArray:
    """Patients of each group with each code, (groups, levels); see ``Study.levels``."""
    levels = site.study.levels
    places = {name: [i for i, (owner, _, _) in enumerate(levels) if owner == name] for name, _, _ in levels}
    found = np.zeros((groups, len(levels)))
    for group, columns in _pieces(site, list(places), grouped=grouped):
        for name, where in places.items():
            # The last place of a variable is that of its missing codes, -1 as stored.
            index = columns[name].astype(np.int64) % len(where)
            cells = np.bincount(group * len(where) + index, minlength=groups * len(where))
            found[:, where] += cells.reshape(groups, len(where))
    return found


def level_pairs(site: Site) -> FloatArray:
    """Patients with each pair of codes, of one variable or two: the upper triangle of (levels, levels)."""
    levels = site.study.levels
    places = {name: [i for i, (owner, _, _) in enumerate(levels) if owner == name] for name, _, _ in levels}
    table = np.zeros((len(levels), len(levels)))
    for _, columns in _pieces(site, list(places), grouped=False):
        index = {name: columns[name].astype(np.int64) % len(where) for name, where in places.items()}
        for first, second in combinations_with_replacement(places, 2):
            size = len(places[second])
            cells = np.bincount(index[first] * size + index[second], minlength=len(places[first]) * size)
            table[np.ix_(places[first], places[second])] += cells.reshape(-1, size)
    return table[np.triu_indices(len(levels))]


def known_counts(site: Site, groups: int, *, grouped: bool) -> FloatArray:
    """Patients of each group whose number is known, and is not, (2, groups, numbers)."""
    numbers = site.study.numbers
    found = np.zeros((2, groups, len(numbers)))
    for group, columns in _pieces(site, numbers, grouped=grouped):
        for index, name in enumerate(numbers):
            known = np.isfinite(columns[name])
            found[0, :, index] += np.bincount(group[known], minlength=groups)
            found[1, :, index] += np.bincount(group[~known], minlength=groups)
    return found


def power_sums(site: Site, about: FloatArray, scale: FloatArray, *, grouped: bool) -> FloatArray:
    """Sums of (x - about) / scale and of its square, x on the declared range from 0 to 1: (2, groups, numbers).

    about: (groups, numbers). scale: (numbers,), LEAST_SCALE at least, so that nobody's value stands out by it.
    """
    numbers, groups = site.study.numbers, len(about)
    found = np.zeros((2, groups, len(numbers)))
    for group, columns in _pieces(site, numbers, grouped=grouped):
        for index, name in enumerate(numbers):
            unit = (_unit(site.study, name, columns[name]) - about[group, index]) / max(scale[index], LEAST_SCALE)
            unit[~np.isfinite(unit)] = 0.0
            found[0, :, index] += np.bincount(group, unit, minlength=groups)
            found[1, :, index] += np.bincount(group, unit * unit, minlength=groups)
    return found


def mean_and_variance(
    known: FloatArray, powers: FloatArray, about: FloatArray, scale: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean, and variance with n - 1, on the range from 0 to 1; NaN where nobody's value is known.

    known, about: (..., numbers); powers: (2, ..., numbers) as ``power_sums`` gives them; scale: (numbers,).
    """
    scale = np.maximum(scale, LEAST_SCALE)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = about + scale * powers[0] / known
        variance = (powers[1] - powers[0] ** 2 / known) / (known - 1) * scale**2
    return mean, np.maximum(variance, 0.0)


def second_look(mean: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
    """About what and on which scale sums are asked for again: a spread that is small beside the range keeps its digits."""
    about = np.where(np.isfinite(mean), np.clip(mean, 0.0, 1.0), 0.5)
    largest = np.nanmax(np.where(np.isfinite(variance), variance, 0.0).reshape(-1, variance.shape[-1]), axis=0)
    return about, np.clip(2.0 * np.sqrt(largest), LEAST_SCALE, 1.0)


def variance_told(variance: FloatArray, known: FloatArray, sites: int) -> FloatArray:
    """Variances (..., numbers) on the range from 0 to 1; NaN where the rounding of the sites' sums may change one by a millionth.

    The declared range is then so wide beside the values that they look like one.
    """
    rounding = sites * 2.0**-FRACTION_BITS * LEAST_SCALE**2 / np.maximum(known - 1.0, 1.0)
    return np.where(variance > 1e6 * rounding, variance, np.nan)


def _unit(study: Study, name: str, values: FloatArray) -> FloatArray:
    low, high = study.variables[name].range or (0.0, 1.0)
    return (values - low) / (high - low)


def leaf_counts(site: Site, groups: int, leaves: int, *, grouped: bool) -> IntArray:
    """Patients in equal parts of each number's declared range, (numbers, groups, leaves); remembered."""
    numbers = site.study.numbers

    def compute() -> IntArray:
        counts = np.zeros((len(numbers), groups, leaves), dtype=np.int64)
        for group, columns in _pieces(site, numbers, grouped=grouped):
            for index, name in enumerate(numbers):
                unit = _unit(site.study, name, columns[name])
                known = np.isfinite(unit)
                leaf = np.clip((unit[known] * leaves).astype(np.int64), 0, leaves - 1)
                cells = np.bincount(group[known] * leaves + leaf, minlength=groups * leaves)
                counts[index] += cells.reshape(groups, leaves)
        return counts

    return site.memo(f"leaf counts {leaves} {grouped}", {}, compute)


def histogram(site: Site, groups: int, bins: int, *, grouped: bool, home: IntArray) -> FloatArray:
    """Patients in equal bins of each number's declared range, small ones moved: (numbers, groups, bins). home: (numbers,)."""
    counts = leaf_counts(site, groups, bins, grouped=grouped)
    if not len(counts):
        return np.zeros((0, groups, bins))
    return np.stack([in_bins(each, site.minimum_cell, int(h)) for each, h in zip(counts, home, strict=True)])


def in_bins(counts: IntArray, minimum: int, home: int) -> FloatArray:
    """Counts (groups, 2**k) of a site as it may add them to a histogram over all sites.

    A bin has nobody of a group, or a third more than the minimum: enough to pass where sites count in lots (see ``units``).
    A site that has too few altogether counts all of them in the bin ``home``, where others are expected.
    """
    if minimum <= 1:
        return counts.astype(np.float64)
    least, total = minimum + ceil(minimum / 3), counts.sum(1)
    if ((total > 0) & (total < least)).any():
        moved = np.zeros(counts.shape)
        moved[:, min(max(home, 0), counts.shape[1] - 1)] = total
        return moved
    return without_small_cells(counts, least).astype(np.float64)


def without_small_cells(counts: IntArray, minimum: int) -> IntArray:
    """Counts of bins (groups, 2**k), moved so that in every node of their tree every group has nobody or ``minimum``.

    From the root down: where a half has a group of a few, all who are in the smaller half are counted in the other
    half, in the bin next to the border. Totals stay; which patients move depends on the table alone, not on a question.
    """
    counts, leaves = counts.copy(), counts.shape[1]
    if minimum <= 1:
        return counts
    half = leaves // 2
    while half >= 1:
        nodes = counts.reshape(len(counts), -1, 2, half)  # a view: what is moved in it is moved in ``counts``
        halves = nodes.sum(3)
        totals = halves.sum(0)
        few = ((halves > 0) & (halves < minimum)).any((0, 2)) & (totals > 0).all(1)
        for smaller, border in ((0, 0), (1, half - 1)):
            lesser = totals[:, smaller] < totals[:, 1 - smaller]
            chosen = np.flatnonzero(few & (lesser | ((totals[:, 0] == totals[:, 1]) & (smaller == 0))))
            nodes[:, chosen, 1 - smaller, border] += halves[:, chosen, smaller]
            nodes[:, chosen, smaller] = 0
        half //= 2
    return counts


def suppressed(table: FloatArray, minimum: int) -> FloatArray:
    """Counts (rows, columns) as they may be shown: NaN for 1 to ``minimum`` - 1, and for a second cell of a row or column
    that has one such, since the others and their total would give it away.
    """
    shown = np.where((table > 0) & (table < minimum), np.nan, table)
    changed = True
    while changed:
        changed = False
        for lines in (shown, shown.T):
            for line in lines:
                hidden = np.isnan(line)
                if hidden.sum() == 1 and len(line) > 1:
                    line[np.argmin(np.where(hidden, np.inf, line))] = np.nan
                    changed = True
    return shown


def merged(bins: FloatArray, minimum: int) -> FloatArray:
    """Histogram counts (bins,), as a total may show them: bins of a few are counted with their neighbours."""
    return np.asarray(without_small_cells(bins.astype(np.int64)[None], minimum)[0], dtype=np.float64)


def unless_small(ask: Callable[[], FloatArray], shape: tuple[int, ...]) -> FloatArray:
    """The counts that are asked for; NaN where sites refuse since one of them is small, which holds up nothing else."""
    try:
        return ask()
    except FederationError as problem:
        if SMALL_COUNT not in str(problem):
            raise
        return np.full(shape, np.nan)


def refuse_other_sites(before: Sequence[str], now: Sequence[str]) -> None:
    """Figures of one table speak of the same patients. Raises FederationError."""
    if list(before) != list(now):
        raise FederationError(
            f"the counts came from {', '.join(before)}, what was asked after them from {', '.join(now)}; start a new run "
            "when all of them answer"
        )
