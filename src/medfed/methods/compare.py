"""Tests between arms (or outcomes): t and Welch, chi-square and Fisher, Mann-Whitney and Kruskal-Wallis by histogram.

t, Welch, analysis of variance and chi-square are exact. Rank tests rest on the distribution of each group at borders that
are chosen where most pairs of patients are tied (see ``quantiles``); it is stated by how much the statistic can differ from
that of the values themselves. Fisher's test is given for two by two counts that may all be shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medfed.federation.federation import Federation
from medfed.federation.step import Step
from medfed.language import number, translator
from medfed.methods.quantiles import LEAVES, borders_at_once
from medfed.methods.summaries import refuse_other_sites
from medfed.methods.table_one import declared, group_borders, group_counts, group_powers, summed
from medfed.methods.tables import Shown, p_value, text_of
from medfed.study import Study

FloatArray = NDArray[np.float64]

MOST_BINS = 128


@dataclass(frozen=True)
class CompareState:
    """table: what ``summed`` found. borders: (borders, 2) number and border; told (borders, groups, 2): patients below, and
    patients who may lie on either side; closed (borders,): whether nothing more is to be learned up to the next border.
    """

    rounds: int
    table: dict[str, Any]
    borders: FloatArray
    told: FloatArray
    closed: NDArray[np.bool_]
    study: dict[str, Any]


@dataclass(frozen=True)
class Compare:
    """Settings: ranks (whether rank tests are wanted, which takes some more rounds)."""

    ranks: bool = True

    steps: ClassVar[tuple[Step, ...]] = (group_counts, group_powers, group_borders)

    def start(self, study: Study) -> CompareState:
        none = np.zeros((0, 2))
        groups = len(declared(study)["groups"])
        return CompareState(0, {}, none, np.zeros((0, groups, 2)), np.zeros(0, dtype=bool), declared(study))

    def advance(self, federation: Federation, state: CompareState) -> CompareState:
        if state.rounds == 0:
            table = summed(federation, state.study)
            known = table["known"].T if self.ranks else np.zeros((0, len(state.study["groups"])))
            numbers = np.repeat(np.arange(len(known)), 2)
            borders = np.stack([numbers, np.tile([0, LEAVES], len(known))], 1).astype(np.float64)
            told = np.zeros((len(borders), len(state.study["groups"]), 2))
            told[1::2, :, 0] = known
            return replace(
                state, rounds=1, table=table, borders=borders, told=told, closed=np.tile([False, True], len(known))
            )
        sites = state.table["sites"]
        most = borders_at_once(state.table["patients"], len(sites), len(state.study["groups"]))
        gaps = self._gaps(state)[:most]
        middle = (state.borders[gaps] + state.borders[gaps + 1]) // 2
        total = federation.roster(sites).sum(group_borders, borders=middle)
        refuse_other_sites(sites, list(total.sites))
        closed = state.closed.copy()
        # Where no site has a cut inside, the middle tells what the ends told.
        left, right = (state.told[at].sum(2) for at in (gaps, gaps + 1))
        nothing = ((total["told"][..., 0] <= state.told[gaps][..., 0]) & (total["told"].sum(2) >= right)).all(1)
        closed[gaps[nothing | (left >= right).all(1)]] = True
        borders = np.concatenate([state.borders, middle[~nothing]])
        told = np.concatenate([state.told, total["told"][~nothing]])
        order = np.lexsort((borders[:, 1], borders[:, 0]))
        added = np.concatenate([closed, np.zeros(int((~nothing).sum()), dtype=bool)])
        return replace(state, rounds=state.rounds + 1, borders=borders[order], told=told[order], closed=added[order])

    def _gaps(self, state: CompareState) -> NDArray[np.intp]:
        """The gaps (by their lower border) that are worth a border more, those with most tied pairs first."""
        if not len(state.borders):
            return np.zeros(0, dtype=np.intp)
        inside = np.diff(state.told[..., 0] + state.told[..., 1] / 2, axis=0, append=state.told[-1:, :, 0])
        # Pairs of two groups first; patients of one group alone matter for the correction for ties.
        tied = (inside**2).sum(1)
        if inside.shape[1] == 2:
            tied = np.prod(np.maximum(inside, 0.0), axis=1) + 1e-6 * tied
        width = np.diff(state.borders[:, 1], append=0)
        worth = ~state.closed & (width > 1) & (tied > 0) & (inside.sum(1) >= 2 * int(state.study["minimum"]))
        for which in np.unique(state.borders[:, 0]):
            mine = np.flatnonzero((state.borders[:, 0] == which) & worth)
            # A border that only narrows where patients lie makes no bin.
            bins = int(((state.borders[:, 0] == which) & (width > 0) & (inside.sum(1) > 0)).sum())
            room = max(MOST_BINS - bins, 0)
            worth[mine[np.argsort(-tied[mine], kind="stable")[room:]]] = False
        chosen = np.flatnonzero(worth)
        return chosen[np.argsort(-tied[chosen], kind="stable")]

    def done(self, state: CompareState) -> bool:
        return state.rounds > 0 and not len(self._gaps(state))

    def result(self, state: CompareState) -> Mapping[str, Any]:
        study, table = state.study, state.table
        groups, minimum = list(study["groups"]), int(study["minimum"])
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(study["numbers"]):
            if name == study["by"]:
                continue
            known, mean, variance = (table[key][:, index] for key in ("known", "mean", "variance"))
            rows += [{"variable": name, **row} for row in mean_tests(known, mean, variance)]
            mine = state.borders[:, 0] == index
            if mine.any():
                rows += [{"variable": name, **row} for row in rank_tests(state.told[mine])]
        names = np.array([name for name, _ in study["levels"]])
        for name in dict.fromkeys(names.tolist()):
            if name != study["by"]:
                counts = table["levels"][:, names == name][:, :-1]
                rows += [{"variable": name, **row} for row in count_tests(counts, minimum)]
        return {
            "by": study["by"],
            "groups": groups,
            "patients": table["patients"],
            "rows": [{**_EMPTY, **row} for row in rows],
            "minimum_cell": minimum,
            "sites": list(table["sites"]),
            "held_back": dict(table["held_back"]),
            "rounds": state.rounds,
        }


# A stored result holds no missing value; NaN stands for what a test does not have.
_NAN = float("nan")
_EMPTY = {
    "variable": "", "test": "", "statistic": _NAN, "freedom": _NAN, "p": _NAN, "estimate": _NAN, "lower": _NAN,
    "upper": _NAN, "uncertain": _NAN, "bins": _NAN,
}  # fmt: skip


def mean_tests(known: FloatArray, mean: FloatArray, variance: FloatArray) -> list[dict[str, Any]]:
    """Student's t and Welch's test between two groups, of the second minus the first; with more, analysis of variance.

    known, mean, variance: (groups,), variance with n - 1. lower, upper: 95 % interval of the difference in means.
    """
    if (known < 2).any() or not (variance > 0).any():
        return []
    if len(known) > 2:
        n = known.sum()
        overall = float(known @ mean) / n
        between, within = float(known @ (mean - overall) ** 2), float((known - 1) @ variance)
        k = len(known)
        statistic = between / (k - 1) / (within / (n - k))
        p = float(stats.f.sf(statistic, k - 1, n - k))
        return [{"test": "anova", "statistic": statistic, "freedom": k - 1.0, "p": p}]
    difference = float(mean[1] - mean[0])
    found = []
    pooled = float((known - 1) @ variance) / (known.sum() - 2)
    each = variance / known
    for test, error, freedom in (
        ("t", float(np.sqrt(pooled * (1 / known).sum())), float(known.sum() - 2)),
        ("welch", float(np.sqrt(each.sum())), float(each.sum() ** 2 / (each**2 / (known - 1)).sum())),
    ):
        half = float(stats.t.ppf(0.975, freedom)) * error
        statistic = difference / error
        found.append(
            {
                "test": test, "statistic": statistic, "freedom": freedom, "p": float(2 * stats.t.sf(abs(statistic), freedom)),
                "estimate": difference, "lower": difference - half, "upper": difference + half,
            }
        )  # fmt: skip
    return found


def rank_tests(told: FloatArray) -> list[dict[str, Any]]:
    """Mann-Whitney's U of the second group (normal approximation, ties, continuity) or Kruskal and Wallis' H, by histogram.

    told (borders, groups, 2): patients below each border, ascending, and those who may lie on either side of it. estimate: of
    two groups, how often a patient of the second has the larger value, ties half; uncertain: how much that share can differ
    from that of the values themselves.
    """
    counts = np.diff(told[..., 0] + told[..., 1] / 2, axis=0)
    sizes = counts.sum(0)
    tied, total = counts.sum(1), float(sizes.sum())
    if (sizes < 1).any() or total < 3:
        return []
    middle = np.cumsum(tied) - tied / 2 + 0.5  # midranks
    ranks = middle @ counts
    several = tied > 1
    ties = 1.0 - float((tied[several] ** 3 - tied[several]).sum()) / (total**3 - total)
    bins = float(len(counts))
    if not ties > 0:
        return []
    if counts.shape[1] > 2:
        h = (12.0 / (total * (total + 1)) * float((ranks**2 / sizes).sum()) - 3 * (total + 1)) / ties
        freedom = counts.shape[1] - 1.0
        p = float(stats.chi2.sf(h, freedom))
        return [{"test": "kruskal_wallis", "statistic": h, "freedom": freedom, "p": p, "bins": bins}]
    u = float(ranks[1] - sizes[1] * (sizes[1] + 1) / 2)
    pairs = float(sizes[0] * sizes[1])
    deviation = np.sqrt(pairs * (total + 1) / 12.0 * ties)
    z = (max(u, pairs - u) - pairs / 2 - 0.5) / deviation
    lowest, highest = share_between(told)
    uncertain = max(highest - u / pairs, u / pairs - lowest)
    return [
        {
            "test": "mann_whitney", "statistic": u, "p": float(min(2 * stats.norm.sf(z), 1.0)), "estimate": u / pairs,
            "uncertain": uncertain, "bins": bins,
        }
    ]  # fmt: skip


def share_between(told: FloatArray) -> tuple[float, float]:
    """The least and the largest share of pairs in which the second group has the larger value, as far as is told.

    The share is the integral of the first group's distribution over the second's: largest where the first has as many
    below each border as may be, all at the start of their bin, and the second as few, all at its end; least the other way.
    told (borders, 2, 2): as in ``rank_tests``.
    """
    low = told[..., 0] / told[-1, :, 0]
    high = told.sum(2) / told[-1, :, 0]
    largest = float(np.diff(low[:, 1]) @ high[1:, 0])
    least = float(np.diff(high[:, 1]) @ low[:-1, 0])
    return least, largest


def count_tests(counts: FloatArray, minimum: int) -> list[dict[str, Any]]:
    """Pearson's chi-square of (groups, codes) without correction; Fisher's exact test and the odds ratio of two by two.

    Empty rows and columns are left out. Fisher's test shows the cells nearly as the table itself would, so it is left out
    where one of them is not to be shown.
    """
    table = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(table.shape) < 2 or ((counts > 0) & (counts < minimum)).any():
        return []
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    freedom = float((table.shape[0] - 1) * (table.shape[1] - 1))
    found = [
        {
            "test": "chi_square",
            "statistic": statistic,
            "freedom": freedom,
            "p": float(stats.chi2.sf(statistic, freedom)),
        }
    ]
    if table.shape == (2, 2):
        ratio, p = stats.fisher_exact(table.astype(np.int64))
        found.append({"test": "fisher", "p": float(p), "estimate": float(ratio)})
    return found


@dataclass(frozen=True)
class Comparison:
    """What a run of ``Compare`` found. values: its result."""

    values: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a variable and test: statistic, freedom, p, estimate, its interval, and for rank tests what is uncertain."""
        return pd.DataFrame(self.values["rows"], columns=list(_EMPTY))

    def summary(self, lang: str = "en") -> str:
        """The tests as a text table."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        values = self.values
        names = {
            "t": _("Student's t"), "welch": _("Welch's t"), "anova": _("analysis of variance"), "chi_square": _("chi-square"),
            "fisher": _("Fisher's exact test"), "mann_whitney": _("Mann-Whitney, by histogram"),
            "kruskal_wallis": _("Kruskal-Wallis, by histogram"),
        }  # fmt: skip
        facts = [(_("Groups"), ", ".join(values["groups"])), (_("Sites"), ", ".join(values["sites"]))]
        facts += [(_("Not counted"), f"{site}: {_(why['reason'])}") for site, why in values["held_back"].items()]
        rows = []
        for row in values["rows"]:
            interval = "" if np.isnan(row["lower"]) else f" ({number(row['lower'], 3)}, {number(row['upper'], 3)})"
            if not np.isnan(row["uncertain"]):
                interval = f" ±{number(row['uncertain'], 4)}"
            estimate = "" if np.isnan(row["estimate"]) else number(row["estimate"], 3) + interval
            freedom = "" if np.isnan(row["freedom"]) else number(row["freedom"], 1)
            statistic = "" if np.isnan(row["statistic"]) else number(row["statistic"], 3)
            rows.append([row["variable"], names[row["test"]], statistic, freedom, p_value(row["p"]), estimate])
        return [Shown(facts, ["", _("test"), _("statistic"), _("df"), "P", _("estimate")], rows)]
