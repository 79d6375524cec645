"""Survival beside statsmodels and lifelines on pooled rows: the largest differences, rounds and what a grid changes.

    python benchmarks/survival.py

67 dialysis centres (SurvSet, GPL: a tool of tests and benchmarks only) and the NCCTG lung cancer trial (lifelines). Each is
skipped with a reason where its package is not installed.
"""

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / "methods")]

COMMAND = "python benchmarks/survival.py"
# claim, target, measured, n, whether it holds (None: skipped)
Row = tuple[str, str, str, str, bool | None]


def rows() -> Iterator[Row]:
    """Every comparison as a row."""
    missing = [name for name in ("SurvSet", "lifelines", "statsmodels") if importlib.util.find_spec(name) is None]
    if missing:
        yield ("survival beside pooled libraries", "", f"skipped: {', '.join(missing)} not installed", "", None)
        return
    import survival_data as data

    dialysis, lung = data.dialysis_frame(), data.lung_frame()
    yield from _stratified(data, dialysis, data.DIALYSIS, "dialysis, 67 centres")
    yield from _stratified(data, lung, data.LUNG, "lung, 18 institutions")
    yield from _lost(data, dialysis, sorted(dialysis["site"].unique())[::3][:20], {})
    yield from _under_masks(data, dialysis, lung)
    for cells in ("events", "covariates"):
        for ties in ("breslow", "efron") if cells == "events" else ("breslow",):
            yield from _on_the_grid(data, dialysis, ties, cells)
    yield from _hazards(data, dialysis)
    yield from _curves(data, dialysis)


def _run(data: Any, consortium: Any, lost: Any = (), **options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = data.run(Path(folder), consortium, lost, **options)
        return found


def _pooled(times: Any, consortium: Any, ties: str, rows: Any = slice(None), strata: Any = None) -> Any:
    from statsmodels.duration.hazard_regression import PHReg

    chosen = None if strata is None else strata[rows]
    model = PHReg(times[rows], consortium.x[rows], status=consortium.event[rows], ties=ties, strata=chosen)
    return model.fit(disp=0, tol=1e-14)


def _differences(result: dict[str, Any], oracle: Any) -> tuple[str, bool]:
    errors = np.sqrt(np.diag(result["covariance"]))
    found = np.abs(result["coefficients"] - oracle.params).max(), np.abs(errors - oracle.bse).max()
    return f"{found[0]:.1e}, {found[1]:.1e}", max(found) < 1e-9


def _strata(consortium: Any) -> Any:
    return np.unique(consortium.site, return_inverse=True)[1]


def _stratified(data: Any, frame: Any, variables: Any, name: str) -> Iterator[Row]:
    for ties in ("efron", "breslow"):
        consortium = data.consortium(frame, variables, "cox.Cox", {"ties": ties})
        result = _run(data, consortium)
        shown, holds = _differences(result, _pooled(consortium.time, consortium, ties, strata=_strata(consortium)))
        n = f"{result['patients']:g} patients, {result['events']:g} events, {result['rounds']} rounds"
        yield (
            f"{name}, stratified Cox, {ties}: coefficients, errors",
            "1e-9",
            shown,
            n,
            holds and result["rounds"] <= 7,
        )


def _lost(data: Any, frame: Any, lost: list[str], options: dict[str, Any], how: str = "") -> Iterator[Row]:
    consortium = data.consortium(frame, data.DIALYSIS, "cox.Cox", **_privacy(options))
    result = _run(data, consortium, lost, **options)
    rows = np.flatnonzero(~np.isin(consortium.site, lost))
    shown, holds = _differences(result, _pooled(consortium.time, consortium, "efron", rows, _strata(consortium)))
    n = f"{len(result['sites'])} centres, {result['rounds']} rounds"
    yield (f"20 centres lost in the first call{how}: the survivors' pooled fit", "1e-9", shown, n, holds)


def _privacy(options: dict[str, Any]) -> dict[str, Any]:
    return {"privacy": {"minimum_cell": 10, "sums": "strongest"}} if options else {}


def _under_masks(data: Any, dialysis: Any, lung: Any) -> Iterator[Row]:
    """Secure sums, policies as they come: minimum cell 10, and the smallest hospitals take part."""
    from medfed.federation.policy import Policy

    options = {"policy": Policy()}
    for frame, variables, name in ((dialysis, data.DIALYSIS, "dialysis"), (lung, data.LUNG, "lung")):
        consortium = data.consortium(frame, variables, "cox.Cox", **_privacy(options))
        result = _run(data, consortium, **options)
        shown, holds = _differences(result, _pooled(consortium.time, consortium, "efron", strata=_strata(consortium)))
        smallest = frame["site"].value_counts().min()
        n = f"{len(result['sites'])} sites, the smallest of {smallest} patients, {result['rounds']} rounds"
        yield (
            f"{name} under masks, stratified Cox, efron",
            "1e-9, 7 rounds",
            shown,
            n,
            holds and result["rounds"] <= 7,
        )
    yield from _lost(data, dialysis, sorted(dialysis["site"].unique())[:20], options, " under masks")
    for frame, variables, name in ((dialysis, data.DIALYSIS, "dialysis"), (lung, data.LUNG, "lung")):
        yield from _curve_under_masks(data, frame, variables, name, options)


def _curve_under_masks(data: Any, frame: Any, variables: Any, name: str, options: dict[str, Any]) -> Iterator[Row]:
    import lifelines

    from medfed.methods.kaplan_meier_fit import KaplanMeierFit

    consortium = data.consortium(frame, variables, "kaplan_meier.KaplanMeier", **_privacy(options))
    result = _run(data, consortium, **options)
    curve = KaplanMeierFit(consortium.study, result).curve()
    moved = curve.time[np.searchsorted(curve.time, consortium.time - 1e-9)]
    found = lifelines.KaplanMeierFitter().fit(moved, consortium.event).survival_function_at_times(curve.time)
    ungrouped = lifelines.KaplanMeierFitter().fit(consortium.time, consortium.event)
    difference = np.abs(found.to_numpy() - curve.survival).max()
    true = np.abs(ungrouped.survival_function_at_times(curve.time).to_numpy() - curve.survival).max()
    least = f"{curve.events.min():g} events at least in each of {len(curve.time)} cells"
    yield (f"{name} under masks, Kaplan-Meier on merged cells", "1e-12", f"{difference:.1e}", least, difference < 1e-12)
    told = result["curves"]["0"]["grid_changes"][0]
    shown = f"{true:.4f}, told: at most {told:.4f}"
    yield (f"{name} under masks: difference from ungrouped at ends of cells", "within", shown, "", true <= told)


def _on_the_grid(data: Any, frame: Any, ties: str, cells: str) -> Iterator[Row]:
    use = "unstratified_cox.UnstratifiedCox"
    consortium = data.consortium(frame, data.DIALYSIS, use, {"ties": ties, "cells": cells})
    result = _run(data, consortium)
    ends = result["cells"]["time"]
    moved = ends[np.searchsorted(ends, consortium.time - 1e-9)]
    shown, holds = _differences(result, _pooled(moved, consortium, ties))
    name = f"unstratified Cox, {ties}, cells by {cells}"
    yield (f"{name}: coefficients, errors", "1e-9", shown, f"{len(ends)} cells, {result['rounds']} rounds", holds)
    ungrouped = _pooled(consortium.time, consortium, ties)
    difference = result["coefficients"] - ungrouped.params
    true = f"{np.abs(difference).max():.1e}, {np.abs(difference / ungrouped.bse).max():.2f} standard errors"
    reported = f"reported: {np.nanmax(np.abs(result['grid_difference'] / ungrouped.bse)):.2f}"
    yield (f"{name}: difference from ungrouped", "told", true, reported, True)
    from lifelines.utils import concordance_index

    exact = concordance_index(consortium.time, -(consortium.x @ result["coefficients"]), consortium.event)
    across = result["concordance_across"]
    shown = f"{across['value']:.4f} against {exact:.4f}"
    n = f"{across['groups']} groups, {across['cells']} cells, standard error {across['standard_error']:.4f}"
    yield (f"{name}: C-index over all pairs", ".005", shown, n, abs(across["value"] - exact) < 0.005)


def _hazards(data: Any, frame: Any) -> Iterator[Row]:
    import statsmodels.api as sm

    consortium = data.consortium(frame, data.DIALYSIS, "discrete_hazards.DiscreteHazards")
    result = _run(data, consortium)
    cuts = result["cells"]["cuts"]
    cell = np.searchsorted(cuts, consortium.time - 1e-9)
    rows = np.repeat(np.arange(len(cell)), cell + 1)
    at = np.concatenate([np.arange(last + 1) for last in cell])
    happened = ((consortium.event[rows] > 0) & (at == cell[rows])).astype(float)
    x = np.concatenate([np.eye(len(cuts))[at], consortium.x[rows]], axis=1)
    oracle = sm.Logit(happened, x).fit(method="newton", tol=1e-14, disp=0)
    found = np.abs(result["coefficients"] - oracle.params[len(cuts) :]).max()
    errors = np.abs(np.sqrt(np.diag(result["covariance"])) - oracle.bse[len(cuts) :]).max()
    n = f"{len(cuts)} cells, {result['rounds']} rounds, {len(rows)} person-periods"
    yield ("discrete hazards: coefficients, errors", "1e-9", f"{found:.1e}, {errors:.1e}", n, max(found, errors) < 1e-9)


def _curves(data: Any, frame: Any) -> Iterator[Row]:
    import lifelines
    from lifelines.statistics import multivariate_logrank_test

    from medfed.methods.kaplan_meier_fit import KaplanMeierFit
    from medfed.methods.survival_curves import pointwise

    consortium = data.consortium(frame, data.DIALYSIS, "kaplan_meier.KaplanMeier")
    result = _run(data, consortium)
    curve = KaplanMeierFit(consortium.study, result).curve()
    moved = curve.time[np.searchsorted(curve.time, consortium.time - 1e-9)]
    oracle = lifelines.KaplanMeierFitter().fit(moved, consortium.event)
    survival = np.abs(oracle.survival_function_at_times(curve.time).to_numpy() - curve.survival).max()
    limits = np.abs(oracle.confidence_interval_survival_function_.loc[curve.time] - np.stack(pointwise(curve), 1))
    shown = f"{survival:.1e}, {limits.to_numpy().max():.1e}"
    yield ("Kaplan-Meier: curve, limits", "1e-12, 1e-10", shown, f"{len(curve.time)} cells", survival < 1e-12)
    ends, anywhere, mean = result["curves"]["0"]["grid_changes"]
    told = f"{ends:.4f}; {anywhere:.4f} between, mean {mean:+.2f} months"
    yield ("Kaplan-Meier: difference from ungrouped at ends of cells", ".0139", told, "", round(ends, 4) == 0.0139)
    by = data.consortium(frame, data.DIALYSIS, "kaplan_meier.KaplanMeier", {"by": "fac_disease"})
    test = multivariate_logrank_test(by.time, by.frame["fac_disease"], by.event).test_statistic
    found = abs(_run(data, by)["log_rank"]["chi2"] / test - 1)
    yield ("log-rank, 5 groups: chi-square, relative", "1e-9", f"{found:.1e}", f"chi2 {test:.2f}", found < 1e-9)


def main() -> int:
    warnings.simplefilter("ignore")
    missed = 0
    for claim, target, measured, n, holds in rows():
        missed += holds is False
        mark = {True: "ok  ", False: "MISS", None: "skip"}[holds]
        print(f"{mark} {claim:70} {target:14} {measured:38} {n}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
