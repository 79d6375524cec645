"""Table 1: every variable of a study by arm (or by outcome, in a study without arms), with standardised differences.

Counts, means and deviations are exact; medians, where wanted, come with the bin that holds them (see ``describe``). The
standardised mean difference is Cohen's d of numbers, and its extension to several codes (Yang and Dalton 2012); between
each group and the first. No P values: the table describes, it does not test (``compare`` does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfed.errors import StudyError
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Step, Sum, step
from medfed.language import number, percent, translator
from medfed.methods.quantiles import LEAVES, Search, borders_at_once, search, told_at
from medfed.methods.summaries import (
    LEAST_SCALE,
    group_names,
    group_variable,
    known_counts,
    level_counts,
    mean_and_variance,
    power_sums,
    refuse_other_sites,
    second_look,
    suppressed,
    variance_told,
)
from medfed.methods.tables import Shown, text_of
from medfed.study import Study

FloatArray = NDArray[np.float64]

QUARTILES = (0.25, 0.5, 0.75)


@step(
    reads="train",
    releases={
        "patients": Count(""),
        "levels": Count("groups,levels", zero_is_small=False),
        "known": Count("2,groups,numbers", zero_is_small=False),
    },
)
def group_counts(site: Site) -> Out:
    """Patients of each group with each code, and whose number is known or missing."""
    groups = site.sizes["groups"]
    return Out(
        {
            "patients": float(site.table.rows),
            "levels": level_counts(site, groups, grouped=True),
            "known": known_counts(site, groups, grouped=True),
        }
    )


@step(
    reads="train",
    takes={"about": Input("groups,numbers", limit=1.0), "scale": Input("numbers", limit=1.0)},
    releases={"powers": Sum("2,groups,numbers", limit_per_row=LEAST_SCALE**-2)},
)
def group_powers(site: Site, *, about: FloatArray, scale: FloatArray) -> Out:
    """Sums of each number and of its square in each group, about a value, on the declared range."""
    return Out({"powers": power_sums(site, about, scale, grouped=True)})


@step(
    reads="train",
    takes={"borders": Input("cells,2", limit=LEAVES)},
    releases={"told": Sum("cells,groups,2", limit_per_row=1)},
)
def group_borders(site: Site, *, borders: FloatArray) -> Out:
    """Patients of each group below borders within declared ranges, as near as the site may tell without a small count."""
    return Out({"told": told_at(site, site.sizes["groups"], borders, grouped=True)})


def declared(study: Study) -> dict[str, Any]:
    """What a table needs of the study: groups, numbers and their ranges, levels, minimum cell."""
    groups = group_names(study)
    if not groups:
        raise StudyError(
            f"study {study.name!r}: there are no groups to compare; give a variable `role: arm`, or an outcome of type code"
        )
    return {
        "groups": groups,
        "by": group_variable(study),
        "numbers": list(study.numbers),
        "ranges": np.array([study.variables[name].range or (0.0, 1.0) for name in study.numbers]).reshape(-1, 2),
        "levels": [[name, code] for name, code, _ in study.levels],
        "minimum": study.privacy.minimum_cell,
    }


def summed(federation: Federation, study: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, means and variances by group over the sites that answer; who they are, and who is held back."""
    total = federation.sum(group_counts)
    held = {site: {"kind": f.kind, "reason": f.reason} for site, f in total.failures.items()}
    sites, known = list(total.sites), total["known"]
    shape = (len(study["groups"]), len(study["numbers"]))
    mean, variance = np.zeros(shape), np.zeros(shape)
    if study["numbers"]:
        asked = federation.roster(sites)
        about, scale = np.full(shape, 0.5), np.ones(shape[1])
        first = asked.sum(group_powers, about=about, scale=scale)
        about, scale = second_look(*mean_and_variance(known[0], first["powers"], about, scale))
        second = asked.sum(group_powers, about=about, scale=scale)
        mean, variance = mean_and_variance(known[0], second["powers"], about, scale)
        variance = variance_told(variance, known[0], len(sites))
        for other in (first, second):
            refuse_other_sites(sites, list(other.sites))
    low, width = study["ranges"][:, 0], study["ranges"][:, 1] - study["ranges"][:, 0]
    return {
        "levels": total["levels"],
        "known": known[0],
        "missing": known[1],
        "mean": low + mean * width,
        "variance": variance * width**2,
        "patients": float(total["patients"]),
        "sites": sites,
        "held_back": held,
    }


@dataclass(frozen=True)
class TableOneState:
    """table: what ``summed`` found; search: where quartiles lie (see ``Search``); none where none are wanted."""

    rounds: int
    table: dict[str, Any]
    search: dict[str, Any]
    study: dict[str, Any]


@dataclass(frozen=True)
class TableOne:
    """Settings: medians (whether quartiles are wanted, which takes a round for every halving of the declared ranges)."""

    medians: bool = False

    steps: ClassVar[tuple[Step, ...]] = (group_counts, group_powers, group_borders)

    def start(self, study: Study) -> TableOneState:
        return TableOneState(0, {}, {}, declared(study))

    def advance(self, federation: Federation, state: TableOneState) -> TableOneState:
        if state.rounds == 0:
            table = summed(federation, state.study)
            shares = QUARTILES if self.medians else ()
            return replace(state, rounds=1, table=table, search=vars(search(table["known"], shares)))
        quantiles, sites = Search(**state.search), state.table["sites"]
        most = borders_at_once(state.table["patients"], len(sites), len(state.study["groups"])) // 2
        which = np.flatnonzero(quantiles.open)[:most]
        total = federation.roster(sites).sum(group_borders, borders=quantiles.asked(which))
        refuse_other_sites(sites, list(total.sites))
        quantiles = quantiles.answered(which, total["told"], int(state.study["minimum"]))
        return replace(state, rounds=state.rounds + 1, search=vars(quantiles))

    def done(self, state: TableOneState) -> bool:
        return state.rounds > 0 and not Search(**state.search).open.any()

    def result(self, state: TableOneState) -> Mapping[str, Any]:
        table, study = state.table, state.study
        minimum = int(study["minimum"])
        names = np.array([name for name, _ in study["levels"]])
        shown, differences = table["levels"].copy(), {}
        for name in dict.fromkeys(names.tolist()):
            counts = table["levels"][:, names == name]
            shown[:, names == name] = suppressed(counts, minimum)
            if name != study["by"]:
                hidden = np.isnan(shown[:, names == name]).any()
                differences[name] = [float("nan") if hidden else d for d in code_differences(counts[:, :-1])]
        for index, name in enumerate(study["numbers"]):
            if name != study["by"]:
                differences[name] = number_differences(table["mean"][:, index], table["variance"][:, index])
        quartiles = {}
        if self.medians and study["numbers"]:
            shape = (len(study["numbers"]), len(study["groups"]), len(QUARTILES))
            low, high = Search(**state.search).edges(np.asarray(study["ranges"])).T
            quartiles = {"low": low.reshape(shape), "high": high.reshape(shape)}
        by = names == study["by"]
        patients = table["levels"][:, by].sum(1) if by.any() else table["known"].max(1, initial=0.0)
        missing = np.zeros((len(study["numbers"]), len(study["groups"])))
        for index in range(len(missing)):
            of_number = np.stack([table["known"][:, index], table["missing"][:, index]])
            missing[index] = suppressed(of_number, minimum)[1]
        return {
            "by": study["by"],
            "groups": list(study["groups"]),
            "patients": patients,
            "numbers": list(study["numbers"]),
            "known": table["known"],
            "missing": missing.T,
            "mean": table["mean"],
            "deviation": np.sqrt(table["variance"]),
            "quartiles": quartiles,
            "levels": [list(level) for level in study["levels"]],
            "level_counts": shown,
            "differences": differences,
            "minimum_cell": minimum,
            "sites": list(table["sites"]),
            "held_back": dict(table["held_back"]),
            "rounds": state.rounds,
        }


def number_differences(mean: FloatArray, variance: FloatArray) -> list[float]:
    """(mean of a group - mean of the first) / root of the mean of their variances, for every group but the first."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return [float(d) for d in (mean[1:] - mean[0]) / np.sqrt((variance[1:] + variance[0]) / 2)]


def code_differences(counts: FloatArray) -> list[float]:
    """Standardised difference in the shares of codes between every group and the first; at least 0 with several codes.

    counts: (groups, codes) without the missing. Two codes: of the share of the second, signed. Yang and Dalton 2012.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / counts.sum(1, keepdims=True)
    used = (counts.sum(0) > 0) & (np.arange(counts.shape[1]) > 0)
    found = []
    for share in shares[1:]:
        difference = (share - shares[0])[used]
        spread = sum((np.diag(p[used]) - np.outer(p[used], p[used]) for p in (share, shares[0])), np.zeros((1, 1))) / 2
        if not np.isfinite(share).all() or not np.isfinite(shares[0]).all():
            found.append(float("nan"))
        elif not used.any():
            found.append(0.0)
        elif counts.shape[1] == 2:
            found.append(float(difference[0] / np.sqrt(spread[0, 0])) if spread[0, 0] > 0 else float("nan"))
        else:
            found.append(float(np.sqrt(max(difference @ np.linalg.pinv(spread) @ difference, 0.0))))
    return found


@dataclass(frozen=True)
class Table1:
    """What a run of ``TableOne`` found. values: its result."""

    values: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a number or code. For each group: "n (group)" patients (NaN where not shown), and "mean (group)", "sd
        (group)" or "share (group)"; "smd (group)" for every group but the first.
        """
        values, groups = self.values, list(self.values["groups"])
        rows = []
        for index, name in enumerate(values["numbers"]):
            if name == values["by"]:
                continue
            row: dict[str, Any] = {"variable": name, "level": ""}
            for g, group in enumerate(groups):
                row |= {
                    f"n ({group})": values["known"][g, index],
                    f"mean ({group})": values["mean"][g, index],
                    f"sd ({group})": values["deviation"][g, index],
                    f"missing ({group})": values["missing"][g, index],
                }
                if values["quartiles"]:
                    low, high = (values["quartiles"][end][index, g] for end in ("low", "high"))
                    row |= {f"median from ({group})": low[1], f"median to ({group})": high[1]}
                    row |= {f"quartiles from ({group})": low[0], f"quartiles to ({group})": high[2]}
            rows.append(row | self._smd(name))
        names = np.array([name for name, _ in values["levels"]])
        for place, (name, code) in enumerate(values["levels"]):
            if name == values["by"]:
                continue
            of_variable = values["level_counts"][:, (names == name) & np.array([c != "" for _, c in values["levels"]])]
            row = {"variable": name, "level": code or "missing"}
            for g, group in enumerate(groups):
                counted = values["level_counts"][g, place]
                row |= {f"n ({group})": counted, f"share ({group})": counted / of_variable[g].sum() if code else np.nan}
            if code or np.nansum(values["level_counts"][:, place]) > 0:
                rows.append(row | self._smd(name))
        return pd.DataFrame(rows)

    def _smd(self, name: str) -> dict[str, float]:
        found: Sequence[float] = self.values["differences"].get(name, [])
        return {f"smd ({group})": d for group, d in zip(self.values["groups"][1:], found, strict=True)}

    def summary(self, lang: str = "en") -> str:
        """The table as text: mean (SD), or patients (share)."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        values, groups = self.values, list(self.values["groups"])
        facts = [(_("Sites"), ", ".join(values["sites"]))]
        facts += [(_("Not counted"), f"{site}: {_(why['reason'])}") for site, why in values["held_back"].items()]
        header = ["", *(f"{group} (n={number(n, 0)})" for group, n in zip(groups, values["patients"], strict=True))]
        header += [_("standardised difference")] if len(groups) == 2 else [f"SMD {group}" for group in groups[1:]]
        rows, before = [], ""
        for _index, row in self.to_frame().iterrows():
            smd = [number(row[f"smd ({group})"], 3) for group in groups[1:]]
            if row["level"] == "":
                cells = [self._number(row, group, _) for group in groups]
                rows.append([str(row["variable"]), *cells, *smd])
                continue
            if row["variable"] != before:
                before = row["variable"]
                rows.append([str(before), *[""] * len(groups), *smd])
            level = _("missing") if row["level"] == "missing" else str(row["level"])
            rows.append([f"  {level}", *(self._count(row, group) for group in groups), *[""] * len(smd)])
        return [Shown(facts, header, rows)]

    def _number(self, row: "pd.Series[Any]", group: str, _: Any) -> str:
        text = f"{number(row[f'mean ({group})'], 2)} ({number(row[f'sd ({group})'], 2)})"
        if f"median from ({group})" not in row:
            return text
        low, high = number(row[f"median from ({group})"], 1), number(row[f"median to ({group})"], 1)
        return str(_("{mean}, median {low} to {high}").format(mean=text, low=low, high=high))

    def _count(self, row: "pd.Series[Any]", group: str) -> str:
        counted, share = row[f"n ({group})"], row[f"share ({group})"]
        if np.isnan(counted):
            return "–"
        return number(counted, 0) + ("" if np.isnan(share) else f" ({percent(share)})")
