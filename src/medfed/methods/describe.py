"""Describes a study's variables over the sites: counts, means, deviations, quantiles, missing values, histograms, cross tables.

Means and deviations are exact. A quantile is found by asking how many patients lie below ever nearer borders, until the bin
that surely holds it has twice the minimum cell; it is given as the middle of that bin, with the bin: its width is what is
not known of it. Counts under the minimum cell are not shown, nor a second one that would give them away.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Step, Sum, step
from medfed.language import number, percent, translator
from medfed.methods.quantiles import LEAVES, Search, borders_at_once, search, told_at
from medfed.methods.summaries import (
    LEAST_SCALE,
    histogram,
    known_counts,
    level_counts,
    level_pairs,
    mean_and_variance,
    merged,
    power_sums,
    refuse_other_sites,
    second_look,
    suppressed,
    unless_small,
    variance_told,
)
from medfed.methods.tables import Shown, text_of
from medfed.study import Study

FloatArray = NDArray[np.float64]

BINS = 32


@step(
    reads="train",
    releases={
        "patients": Count(""),
        "levels": Count("levels", zero_is_small=False),
        "known": Count("2,numbers", zero_is_small=False),
    },
)
def counts(site: Site) -> Out:
    """Patients, patients with each code, and whose number is known or missing."""
    return Out(
        {
            "patients": float(site.table.rows),
            "levels": level_counts(site, 1, grouped=False)[0],
            "known": known_counts(site, 1, grouped=False)[:, 0],
        }
    )


@step(
    reads="train",
    takes={"about": Input("numbers", limit=1.0), "scale": Input("numbers", limit=1.0)},
    releases={"powers": Sum("2,numbers", limit_per_row=LEAST_SCALE**-2)},
)
def powers(site: Site, *, about: FloatArray, scale: FloatArray) -> Out:
    """Sums of each number and of its square, about a value, on the declared range."""
    return Out({"powers": power_sums(site, about[None], scale, grouped=False)[:, 0]})


@step(
    reads="train",
    takes={"home": Input("numbers", limit=BINS - 1)},
    releases={"bins": Count("numbers,32", zero_is_small=False)},
)
def histograms(site: Site, *, home: FloatArray) -> Out:
    """Patients in 32 equal bins of each number's declared range; a bin of a few is counted with its neighbour.

    home (numbers,): the bin of the median, in which a site of a few patients counts them.
    """
    return Out({"bins": histogram(site, 1, BINS, grouped=False, home=home.astype(np.int64))[:, 0]})


@step(
    reads="train",
    takes={"borders": Input("cells,2", limit=LEAVES)},
    releases={"told": Sum("cells,2", limit_per_row=1)},
)
def border_counts(site: Site, *, borders: FloatArray) -> Out:
    """Patients below borders within declared ranges, as near to each border as the site may tell without a small count."""
    return Out({"told": told_at(site, 1, borders, grouped=False)[:, 0]})


@step(reads="train", releases={"pairs": Count("triangle(levels)", zero_is_small=False)})
def cross_counts(site: Site) -> Out:
    """Patients with each pair of codes."""
    return Out({"pairs": level_pairs(site)})


@dataclass(frozen=True)
class DescribeState:
    """patients; levels (levels,); known (2, numbers): known and missing; mean, variance (numbers,) on the range 0 to 1;
    bins (numbers, 32), NaN where they can't be shown; search: where the quantiles lie, as far as is known (see ``Search``).
    """

    rounds: int
    patients: float
    levels: FloatArray
    known: FloatArray
    mean: FloatArray
    variance: FloatArray
    bins: FloatArray
    pairs: FloatArray
    search: dict[str, Any]
    sites: list[str]
    held_back: dict[str, Any]
    study: dict[str, Any]


@dataclass(frozen=True)
class Describe:
    """Settings: quantiles (as text, "0.25, 0.5, 0.75"; "" for none), cross_tables (every pair of coded variables)."""

    quantiles: str = "0.25, 0.5, 0.75"
    cross_tables: bool = False

    steps: ClassVar[tuple[Step, ...]] = (counts, powers, histograms, border_counts, cross_counts)

    def __post_init__(self) -> None:
        self.shares()

    def shares(self) -> list[float]:
        """The quantiles that are asked for. ValueError for one that is not between 0 and 1."""
        try:
            found = [float(word) for word in self.quantiles.split(",") if word.strip()]
        except ValueError:
            raise ValueError(
                f"quantiles are numbers between 0 and 1, as in '0.25, 0.5', not {self.quantiles!r}"
            ) from None
        if not all(0 < share < 1 for share in found):
            raise ValueError(f"quantiles lie between 0 and 1, not {self.quantiles!r}")
        return found

    def start(self, study: Study) -> DescribeState:
        n, k = len(study.numbers), len(study.levels)
        declared = {
            "numbers": list(study.numbers),
            "ranges": np.array([study.variables[name].range or (0.0, 1.0) for name in study.numbers]).reshape(-1, 2),
            "levels": [[name, code] for name, code, _ in study.levels],
            "minimum": study.privacy.minimum_cell,
        }
        return DescribeState(
            0, 0.0, np.zeros(k), np.zeros((2, n)), np.zeros(n), np.zeros(n), np.zeros((n, BINS)), np.zeros(0), {}, [], {},
            declared,
        )  # fmt: skip

    def advance(self, federation: Federation, state: DescribeState) -> DescribeState:
        if state.rounds == 0:
            return self._with_bins(federation, self._begin(federation, state))
        quantiles = Search(**state.search)
        which = np.flatnonzero(quantiles.open)[: borders_at_once(state.patients, len(state.sites), 1) // 2]
        total = federation.roster(state.sites).sum(border_counts, borders=quantiles.asked(which))
        refuse_other_sites(state.sites, list(total.sites))
        quantiles = quantiles.answered(which, total["told"][:, None], int(state.study["minimum"]))
        return self._with_bins(federation, replace(state, rounds=state.rounds + 1, search=vars(quantiles)))

    def _begin(self, federation: Federation, state: DescribeState) -> DescribeState:
        total = federation.sum(counts)
        held = {site: {"kind": f.kind, "reason": f.reason} for site, f in total.failures.items()}
        federation = federation.roster(total.sites)
        sites, known = list(total.sites), total["known"]
        n = len(state.study["numbers"])
        mean = variance = np.zeros(n)
        bins, pairs = state.bins, state.pairs
        if n:
            about, scale = np.full(n, 0.5), np.ones(n)
            first = federation.sum(powers, about=about, scale=scale)
            about, scale = second_look(*mean_and_variance(known[0], first["powers"], about, scale))
            second = federation.sum(powers, about=about, scale=scale)
            mean, variance = mean_and_variance(known[0], second["powers"], about, scale)
            variance = variance_told(variance, known[0], len(sites))
            for other in (first, second):
                refuse_other_sites(sites, list(other.sites))
        if self.cross_tables:
            crossed = federation.sum(cross_counts)
            refuse_other_sites(sites, list(crossed.sites))
            pairs = crossed["pairs"]
        return replace(
            state, rounds=1, patients=float(total["patients"]), levels=total["levels"], known=known, mean=mean,
            variance=variance, bins=bins, pairs=pairs, search=vars(search(known[:1], self.shares())), sites=sites,
            held_back=held,
        )  # fmt: skip

    def _with_bins(self, federation: Federation, state: DescribeState) -> DescribeState:
        """Once it is known where patients are: a tiny site counts its own at the median, or the mean where none is wanted."""
        if not self.done(state) or not len(state.bins):
            return state
        middle, shares = np.nan_to_num(state.mean), np.array(self.shares())
        if len(shares):
            edges = Search(**state.search).edges(np.tile([0.0, 1.0], (len(middle), 1)))
            middle = edges.mean(1).reshape(len(middle), len(shares))[:, int(np.argmin(np.abs(shares - 0.5)))]
        home = np.clip(np.floor(middle * BINS), 0, BINS - 1)
        asked = federation.roster(state.sites)
        return replace(state, bins=unless_small(lambda: asked.sum(histograms, home=home)["bins"], state.bins.shape))

    def done(self, state: DescribeState) -> bool:
        return state.rounds > 0 and not Search(**state.search).open.any()

    def result(self, state: DescribeState) -> Mapping[str, Any]:
        minimum = int(state.study["minimum"])
        ranges = np.asarray(state.study["ranges"])
        low, width = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
        shares = self.shares()
        edges = Search(**state.search).edges(ranges)
        quantiles = {
            "shares": np.array(shares),
            "values": edges.mean(1).reshape(len(ranges), len(shares)),
            "low": edges[:, 0].reshape(len(ranges), len(shares)),
            "high": edges[:, 1].reshape(len(ranges), len(shares)),
        }
        return {
            "patients": state.patients,
            "numbers": list(state.study["numbers"]),
            "known": state.known[0],
            "missing": suppressed(state.known.T, minimum)[:, 1] if len(width) else np.zeros(0),
            "mean": low + state.mean * width,
            "deviation": np.sqrt(np.maximum(state.variance, 0.0)) * width,
            "quantiles": quantiles,
            "ranges": ranges,
            "bins": np.stack([merged(each, minimum) for each in state.bins])
            if np.isfinite(state.bins).all() and len(width)
            else state.bins,
            "levels": [list(level) for level in state.study["levels"]],
            "level_counts": _shown_levels(state.levels, state.study["levels"], minimum),
            "pairs": state.pairs,
            "minimum_cell": minimum,
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
            "rounds": state.rounds,
        }


def _shown_levels(counted: FloatArray, levels: list[list[str]], minimum: int) -> FloatArray:
    """Patients with each code, (levels,), as they may be shown: variable by variable."""
    shown = counted.copy()
    names = np.array([name for name, _ in levels])
    for name in dict.fromkeys(names.tolist()):
        shown[names == name] = suppressed(counted[names == name][None], minimum)[0]
    return shown


@dataclass(frozen=True)
class Description:
    """What a run of ``Describe`` found. values: its result."""

    values: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a number: patients known and missing (NaN where not shown), mean, standard deviation, and each quantile
        with the lower and upper end of its bin.
        """
        values = self.values
        frame = pd.DataFrame(
            {key: np.asarray(values[key]) for key in ("known", "missing", "mean", "deviation")}, index=values["numbers"]
        )
        for index, share in enumerate(values["quantiles"].get("shares", ())):
            name = f"q{100 * share:g}"
            for suffix, key in (("", "values"), ("_low", "low"), ("_high", "high")):
                frame[name + suffix] = np.asarray(values["quantiles"][key])[:, index]
        return frame

    def levels(self) -> pd.DataFrame:
        """One row a code: variable, code ("" is missing), patients (NaN where not shown), share of those known."""
        values = self.values
        frame = pd.DataFrame(values["levels"], columns=["variable", "code"]).assign(patients=values["level_counts"])
        known = frame["patients"].where(frame["code"] != "")
        return frame.assign(share=known / known.groupby(frame["variable"]).transform("sum", min_count=1))

    def histogram(self, name: str) -> pd.DataFrame:
        """Patients in equal bins of a number's declared range: low, high, patients."""
        index = list(self.values["numbers"]).index(name)
        low, high = self.values["ranges"][index]
        edges = np.linspace(float(low), float(high), BINS + 1)
        return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "patients": self.values["bins"][index]})

    def cross_table(self, first: str, second: str) -> pd.DataFrame:
        """Patients by the codes of two variables, NaN where a count is not shown."""
        levels, pairs = self.values["levels"], np.asarray(self.values["pairs"])
        if not len(pairs):
            raise ValueError("this run counted no pairs; set cross_tables in the study")
        table = np.zeros((len(levels), len(levels)))
        table[np.triu_indices(len(levels))] = pairs
        table = np.maximum(table, table.T)
        rows = [index for index, (name, _) in enumerate(levels) if name == first]
        columns = [index for index, (name, _) in enumerate(levels) if name == second]
        cells = table[np.ix_(rows, columns)]
        kept_rows, kept_columns = cells.any(1) | _named(levels, rows), cells.any(0) | _named(levels, columns)
        return pd.DataFrame(
            suppressed(cells, int(self.values["minimum_cell"])),
            index=pd.Index([levels[index][1] for index in rows], name=first),
            columns=pd.Index([levels[index][1] for index in columns], name=second),
        ).loc[kept_rows, kept_columns]

    def summary(self, lang: str = "en") -> str:
        """The description as text tables."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        values = self.values
        fewer = f"<{values['minimum_cell']}"

        def count(value: float) -> str:
            return fewer if np.isnan(value) else number(value, 0)

        facts = [(_("Patients"), number(values["patients"], 0)), (_("Sites"), ", ".join(values["sites"]))]
        facts += [(_("Not counted"), f"{site}: {_(why['reason'])}") for site, why in values["held_back"].items()]
        frame, rows = self.to_frame(), []
        shares = values["quantiles"].get("shares", ())
        for name, row in frame.iterrows():
            cells = [
                str(name),
                count(row["known"]),
                count(row["missing"]),
                number(row["mean"], 3),
                number(row["deviation"], 3),
            ]
            for share in shares:
                key = f"q{100 * share:g}"
                cells.append(f"{number(row[key], 3)} ({number(row[key + '_low'], 2)}, {number(row[key + '_high'], 2)})")
            rows.append(cells)
        header = ["", _("known"), _("missing"), _("mean"), _("SD")]
        header += [_("{percent} quantile (its bin)").format(percent=percent(share, 0)) for share in shares]
        coded = [
            [row["variable"], row["code"] or _("missing"), count(row["patients"]), percent(row["share"])]
            for _index, row in self.levels().iterrows()
            if row["code"] or row["patients"]
        ]
        tables = [(header, rows)] if rows else []
        tables += [([_("Variable"), _("code"), _("Patients"), _("share")], coded)] if coded else []
        tables += self._crossed(count, _("missing"))
        return [Shown([] if index else facts, *table) for index, table in enumerate(tables)]

    def _crossed(self, count: Callable[[float], str], missing: str) -> list[tuple[list[str], list[list[str]]]]:
        """Header and rows of the cross table of every two coded variables, where pairs were counted."""
        if not len(np.asarray(self.values["pairs"])):
            return []
        found = []
        for first, second in combinations(dict.fromkeys(name for name, _ in self.values["levels"]), 2):
            table = self.cross_table(first, second)
            header = [f"{first} × {second}", *(str(code) or missing for code in table.columns)]
            rows = [
                [str(code) or missing, *map(count, row)]
                for code, row in zip(table.index, table.to_numpy(), strict=True)
            ]
            found.append((header, rows))
        return found


def _named(levels: list[list[str]], places: list[int]) -> NDArray[np.bool_]:
    return np.array([levels[index][1] != "" for index in places])
