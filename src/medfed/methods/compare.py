"""Tests between arms (or outcomes): t and Welch, chi-square and Fisher, Mann-Whitney and Kruskal-Wallis by histogram.

t, Welch, analysis of variance and chi-square are exact. Rank tests rest on a histogram whose bins are halved where both
halves hold enough: within a bin patients are tied, and it is stated by how much the statistic can differ from that of the
values themselves. Fisher's test is given for two by two counts that may all be shown.
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
from medfed.methods.summaries import DEPTH, cells_at_once, refuse_other_sites
from medfed.methods.table_one import declared, group_counts, group_halves, group_powers, summed
from medfed.methods.tables import p_value, text_table
from medfed.study import Study

FloatArray = NDArray[np.float64]

MOST_BINS = 64


@dataclass(frozen=True)
class CompareState:
    """table: what ``summed`` found. bins: of every number, (bins, 3) number, level, position; counts (bins, groups): patients
    told in each and not in a smaller bin; open: which may still be halved.
    """

    rounds: int
    table: dict[str, Any]
    bins: FloatArray
    counts: FloatArray
    open: NDArray[np.bool_]
    study: dict[str, Any]


@dataclass(frozen=True)
class Compare:
    """Settings: ranks (whether rank tests are wanted, which takes a round for every halving of the declared ranges)."""

    ranks: bool = True

    steps: ClassVar[tuple[Step, ...]] = (group_counts, group_powers, group_halves)

    def start(self, study: Study) -> CompareState:
        shape = len(study.numbers) if self.ranks else 0
        groups = study.sizes["groups"]
        assert isinstance(groups, int)
        return CompareState(
            0, {}, np.zeros((shape, 3)), np.zeros((shape, groups)), np.zeros(shape, dtype=bool), declared(study)
        )

    def advance(self, federation: Federation, state: CompareState) -> CompareState:
        if state.rounds == 0:
            table = summed(federation, state.study)
            bins = np.zeros_like(state.bins)
            bins[:, 0] = np.arange(len(bins))
            counts = table["known"].T[: len(bins)]
            return replace(state, rounds=1, table=table, bins=bins, counts=counts, open=counts.sum(1) > 0)
        sites = state.table["sites"]
        most = cells_at_once(state.table["patients"], len(sites), len(state.study["groups"]))
        asked = np.flatnonzero(state.open)[:most]
        total = federation.roster(sites).sum(group_halves, cells=state.bins[asked])
        refuse_other_sites(sites, list(total.sites))
        return self._divided(state, asked, total["halves"])

    def _divided(self, state: CompareState, asked: NDArray[np.intp], halves: FloatArray) -> CompareState:
        """The bins with those halved whose halves hold nobody of a group or the minimum at least, the fullest first."""
        minimum = max(int(state.study["minimum"]), 1)
        bins, counts, opened = [state.bins], [state.counts.copy()], [state.open.copy()]
        for index, each in zip(asked, halves, strict=True):
            opened[0][index] = False
            parts = each[:, :2].T  # (2, groups)
            if not ((parts == 0) | (parts >= minimum)).all() or not parts.any():
                continue
            counts[0][index] = each[:, 2]
            number, level, position = state.bins[index]
            bins.append(np.array([[number, level + 1, 2 * position + side] for side in (0, 1)]))
            counts.append(parts)
            opened.append((parts.sum(1) >= 2 * minimum) & (level + 1 < DEPTH))
        table, inside, again = np.concatenate(bins), np.concatenate(counts), np.concatenate(opened)
        kept = inside.any(1) | again
        table, inside, again = table[kept], inside[kept], again[kept]
        for number in np.unique(table[:, 0]):
            mine = np.flatnonzero(table[:, 0] == number)
            room = max(MOST_BINS - len(mine), 0)
            fullest = mine[np.argsort(-inside[mine].sum(1) * again[mine], kind="stable")]
            again[fullest[room:]] = False
        return replace(state, rounds=state.rounds + 1, bins=table, counts=inside, open=again)

    def done(self, state: CompareState) -> bool:
        return state.rounds > 0 and not state.open.any()

    def result(self, state: CompareState) -> Mapping[str, Any]:
        study, table = state.study, state.table
        groups, minimum = list(study["groups"]), int(study["minimum"])
        rows: list[dict[str, Any]] = []
        for index, name in enumerate(study["numbers"]):
            if name == study["by"]:
                continue
            known, mean, variance = (table[key][:, index] for key in ("known", "mean", "variance"))
            rows += [{"variable": name, **row} for row in mean_tests(known, mean, variance)]
            mine = state.bins[:, 0] == index
            if self.ranks and mine.any():
                rows += [{"variable": name, **row} for row in rank_tests(state.bins[mine], state.counts[mine])]
        names = np.array([name for name, _ in study["levels"]])
        for name in dict.fromkeys(names.tolist()):
            if name != study["by"]:
                counts = table["levels"][:, names == name][:, :-1]
                rows += [{"variable": name, **row} for row in count_tests(counts, minimum)]
        return {
            "by": study["by"],
            "groups": groups,
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


def rank_tests(bins: FloatArray, counts: FloatArray) -> list[dict[str, Any]]:
    """Mann-Whitney's U of the second group (normal approximation, ties, continuity) or Kruskal and Wallis' H, by histogram.

    bins (bins, 3): number, level, position; counts (bins, groups). estimate: of two groups, how often a patient of the
    second has the larger value, ties half; uncertain: how much that share can differ from that of the values themselves.
    """
    width = 2.0 ** (DEPTH - bins[:, 1])
    low, high = bins[:, 2] * width, (bins[:, 2] + 1) * width
    leaf = np.array(
        [not ((low >= a) & (high <= b) & (high - low < b - a)).any() for a, b in zip(low, high, strict=True)]
    )
    overlap = (low[:, None] < high[None]) & (low[None] < high[:, None])
    sizes = counts.sum(0)
    spread = counts[leaf].copy()
    for index in np.flatnonzero(~leaf):  # those whose site did not divide: as the others inside are spread
        inside = (low[leaf] >= low[index]) & (high[leaf] <= high[index])
        share = spread[inside].sum(1)
        share = share / share.sum() if share.sum() > 0 else np.full(len(share), 1 / max(len(share), 1))
        spread[inside] += share[:, None] * counts[index]
    spread = spread[np.argsort(low[leaf])]
    tied, total = spread.sum(1), float(sizes.sum())
    if (sizes < 1).any() or total < 3:
        return []
    middle = np.cumsum(tied) - tied / 2 + 0.5  # midranks
    ranks = middle @ spread
    ties = 1.0 - float((tied**3 - tied).sum()) / (total**3 - total)
    bin_count = float(len(spread))
    if not ties > 0:
        return []
    if counts.shape[1] > 2:
        h = (12.0 / (total * (total + 1)) * float((ranks**2 / sizes).sum()) - 3 * (total + 1)) / ties
        freedom = counts.shape[1] - 1.0
        p = float(stats.chi2.sf(h, freedom))
        return [{"test": "kruskal_wallis", "statistic": h, "freedom": freedom, "p": p, "bins": bin_count}]
    u = float(ranks[1] - sizes[1] * (sizes[1] + 1) / 2)
    pairs = float(sizes[0] * sizes[1])
    deviation = np.sqrt(pairs * (total + 1) / 12.0 * ties)
    z = (max(u, pairs - u) - pairs / 2 - 0.5) / deviation
    uncertain = 0.5 * float(counts[:, 0] @ overlap @ counts[:, 1]) / pairs
    return [
        {
            "test": "mann_whitney", "statistic": u, "p": float(min(2 * stats.norm.sf(z), 1.0)), "estimate": u / pairs,
            "uncertain": uncertain, "bins": bin_count,
        }
    ]  # fmt: skip


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
        return text_table(facts, ["", _("test"), _("statistic"), _("df"), "P", _("estimate")], rows)
