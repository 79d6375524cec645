"""From a finished run to figures with intervals: what a report shows, a model file holds, and ``--json`` prints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medfed.data.table import StudyTable
from medfed.evaluation.alarms import SiteFigures, alarms
from medfed.evaluation.calibration import observed_to_expected
from medfed.evaluation.discrimination import FEWEST_BINS, Auc, auc_of_scores
from medfed.evaluation.intervals import (
    Estimate,
    normal_quantile,
    odds_ratio,
    risk_difference,
    risk_ratio,
    two_sided_p,
    wald_ratio,
    wilson,
)
from medfed.evaluation.publication import beside
from medfed.evaluation.study_run import pooled_figures, pooled_leave_one_out, predictor_at
from medfed.methods.newton import in_study_units
from medfed.models.linear import LinearModel
from medfed.study import Study

Figures = dict[str, Any]
Z95 = normal_quantile(0.95)


def estimate(found: Estimate, p: float | None = None) -> Figures:
    """An estimate as JSON values."""
    values = {"value": found.value, "low": found.low, "high": found.high}
    return values if p is None else {**values, "p": p}


def effect_figures(study: Study, fitted: Mapping[str, Any]) -> Figures:
    """Risks by arm, risk ratio and difference of the first arm after the reference, adjusted odds ratios by feature."""
    cells = np.asarray(fitted["patients"])
    variable = study.variables[study.arm or ""]
    levels = list(variable.codes or ())
    reference = variable.reference or levels[0]
    ordered = [reference, *[level for level in levels if level != reference]]
    arms = []
    for level, (others, events) in zip(ordered, cells, strict=True):
        risk = wilson(events, events + others)
        arms.append({"name": level, "events": int(events), "patients": int(events + others), **estimate(risk)})
    base, treated = cells[0], cells[1]
    counts = (treated[1], treated.sum(), base[1], base.sum())
    adjusted = []
    coefficients, errors = np.asarray(fitted["coefficients"]), np.sqrt(np.diag(np.asarray(fitted["covariance"])))
    for column, coefficient, error in zip(study.design.columns, coefficients, errors, strict=True):
        if column.kind != "intercept":
            ratio = wald_ratio(float(coefficient), float(error))
            adjusted.append({"name": column.name, **estimate(ratio, two_sided_p(float(coefficient), float(error)))})
    return {
        "arms": arms,
        "risk_ratio": estimate(risk_ratio(*counts)),
        "risk_difference": estimate(risk_difference(*counts)),
        "crude_odds_ratio": estimate(odds_ratio(*counts)),
        "adjusted": adjusted,
        "by_site": _effects_by_site(fitted),
        "rounds": int(fitted["rounds"]),
    }


def _effects_by_site(fitted: Mapping[str, Any]) -> list[Figures]:
    """Risk ratio of each site, only where no hidden one could be subtracted."""
    by_site = beside(fitted["sites"], dict(fitted.get("by_site") or {}))
    rows = []
    for site, cells in by_site.items():
        base, treated = np.asarray(cells)[0], np.asarray(cells)[1]
        counts = (treated[1], treated.sum(), base[1], base.sum())
        rows.append({"site": site, "counts": [int(count) for count in counts], **estimate(risk_ratio(*counts))})
    return rows


def _auc(value: float | None, variance: float | None, groups: float | None = None) -> Figures:
    """AUC with interval, or why it is not shown."""
    if value is None or variance is None or (groups is not None and groups < FEWEST_BINS):
        return {"auc": None, "auc_low": None, "auc_high": None, "auc_groups": groups}
    half = Z95 * float(np.sqrt(variance))
    if 0 < value < 1:
        logit, width = np.log(value / (1 - value)), half / (value * (1 - value))
        low, high = 1 / (1 + np.exp(-(logit - width))), 1 / (1 + np.exp(-(logit + width)))
    else:
        low = high = value
    return {"auc": float(value), "auc_low": float(low), "auc_high": float(high), "auc_groups": groups}


def _of_sums(
    rows: float, events: float, expected: float, squared_error: float, log_loss: float, correct: float
) -> Figures:
    found: Figures = {"n": int(rows), "events": int(events)}
    if rows:
        ratio = observed_to_expected(events, expected, rows)
        found |= {"brier": squared_error / rows, "log_loss": log_loss / rows, "accuracy": correct / rows}
        found |= {"oe": ratio.value, "oe_low": ratio.low, "oe_high": ratio.high}
    return found


def _overall(summary: Mapping[str, Any]) -> Figures:
    rows = summary["rows"]
    found = _of_sums(
        rows,
        summary["events"],
        summary["expected"],
        summary["brier"] * rows,
        summary["log_loss"] * rows,
        summary["accuracy"] * rows,
    )
    found |= {key: summary[key] for key in ("oe_low", "oe_high") if key in summary}  # where noise widens them
    return found | _auc(summary["area"], summary["area_variance"])


def prediction_figures(
    study: Study,
    run: Mapping[str, Any],
    *,
    tables: Mapping[str, StudyTable] | None = None,
    minimum: Mapping[str, int] | None = None,
) -> Figures:
    """Methods side by side: local, federated and (where ``tables`` are given) pooled; by site where policies allow."""
    if study.evaluation.design == "leave_one_site_out":
        return {"methods": [], "left_out": _left_out(study, run["evaluation"], tables or {})}
    methods = []
    for name in ("main", *study.evaluation.variants):
        judged = run["evaluation"]["judged"][name]
        results: list[Figures] = [{"where": "federated", "site": None, **_overall(judged["overall"])}]
        line = judged["line"]
        if line:
            half = Z95 * line["slope_error"]
            results[0] |= {
                "slope": line["slope"],
                "slope_low": line["slope"] - half,
                "slope_high": line["slope"] + half,
            }
        by_site = beside(judged["sites_counted"], judged.get("by_site") or {})
        for site, reply in by_site.items():
            found = _of_sums(*reply["site_sums"]) | _auc(*reply["site_area"])
            results.append({"where": "federated", "site": site, **found})
            local = _of_sums(*reply["local_sums"]) | _auc(*reply["local_area"])
            results.append({"where": "local", "site": site, **local})
        counted = {site: table for site, table in (tables or {}).items() if site in judged["sites_counted"]}
        if counted and "pooled" in study.evaluation.compare:
            pooled = pooled_figures(counted, study, dict(minimum or {}), None if name == "main" else name)
            results.append({"where": "pooled", "site": None, **_overall(pooled["overall"])})
            shown = {site: found for site, found in pooled["by_site"].items() if site in by_site}
            results += [{"where": "pooled", "site": site, **_overall(found)} for site, found in shown.items()]
        declared = study.method if name == "main" else study.variants[name]
        curves = {site: np.asarray(reply["site_curve"]) for site, reply in by_site.items()}
        methods.append(
            {
                "name": name,
                "use": declared.use.rpartition(".")[2],
                "results": results,
                "joining": [_joining(site, reply["difference"]) for site, reply in by_site.items()],
                "calibration": [{"site": site, "groups": _groups(curve)} for site, curve in curves.items()],
                "roc": [_roc(site, curve) for site, curve in curves.items() if (curve[0] > 0).sum() >= FEWEST_BINS],
                "sites_counted": list(judged["sites_counted"]),
                "not_shown": dict(judged.get("not_shown") or {}),
            }
        )
    return {"methods": methods}


def _left_out(study: Study, evaluation: Mapping[str, Any], tables: Mapping[str, StudyTable]) -> list[Figures]:
    """The model fitted without each site, judged there; beside it the pooled fit's, where tables are in one place."""
    rows = []
    for name in ("main", *study.evaluation.variants):
        for site in study.sites.invited:
            judged = evaluation["judged"][f"{name} {site}"]
            if site not in judged["by_site"]:
                reason = judged["not_shown"][site]["reason"]
                rows.append({"method": name, "where": "federated", "site": site, "n": 0, "reason": reason})
                continue
            reply = judged["by_site"][site]
            found: Figures = {"method": name, "where": "federated", "site": site}
            found |= _of_sums(*reply["site_sums"]) | _auc(*reply["site_area"])
            if (
                "pooled" in study.evaluation.compare
                and len(tables) == len(study.sites.invited)
                and found["auc"] is not None
            ):
                pooled = pooled_leave_one_out(tables, study, site, None if name == "main" else name)
                exact = auc_of_scores(*predictor_at(tables[site], study, pooled))
                found["difference_from_pooled"] = abs(exact.value - found["auc"]) if exact is not None else None
            rows.append(found)
    return rows


def _roc(site: str, curve: Any) -> Figures:
    """A ROC curve from patients and events in groups of ascending risk, (3, groups)."""
    patients, events = np.asarray(curve)[0][::-1], np.asarray(curve)[1][::-1]
    used = patients > 0
    true = np.concatenate([[0.0], np.cumsum(events[used]) / events.sum()])
    false = np.concatenate([[0.0], np.cumsum((patients - events)[used]) / (patients - events).sum()])
    return {
        "where": "federated",
        "site": site,
        "false_positive_rate": false.tolist(),
        "true_positive_rate": true.tolist(),
    }


def site_alarms(study: Study, judged: Mapping[str, Any]) -> tuple[list[Figures], int]:
    """Sites set apart by prevalence, by the sign of a coefficient, or by an AUC under one half; how many were compared."""
    by_site: dict[str, Any] = {}
    for name, found in judged.items():
        if name == "main" or name.startswith("main "):
            own = found.get("by_site") or {}
            by_site |= beside(found["sites_counted"], own) if "sites_counted" in found else own
    coefficients = judged.get("coefficients") or {}
    seen = []
    for site, reply in by_site.items():
        rows, events = int(reply["site_sums"][0]), int(reply["site_sums"][1])
        own = np.asarray(coefficients[site]) if site in coefficients else np.zeros((2, 0))
        named = {
            column: (float(own[0, k]), float(own[1, k]))
            for k, column in enumerate(study.design.names)
            if own.size and own[1, k] > 0
        }
        figures = _auc(*reply["site_area"])
        auc = None
        if figures["auc"] is not None and 0 < events < rows:
            error = float(np.sqrt(reply["site_area"][1]))
            auc = Auc(
                figures["auc"], figures["auc_low"], figures["auc_high"], error, 0.0, 1.0, events, rows - events,
                int(figures["auc_groups"]),
            )  # fmt: skip
        seen.append(SiteFigures(site, rows, events, named, auc))
    found = [
        {"kind": alarm.kind, "site": alarm.site, "sentence": alarm.sentence, "parameters": dict(alarm.parameters)}
        for alarm in alarms(seen)
    ]
    return found, len(seen)


def _joining(site: str, difference: Any) -> Figures:
    value, variance, known = (float(v) for v in difference)
    if not known:
        return {"site": site, "difference": None, "low": None, "high": None, "verdict": "not shown"}
    half = Z95 * float(np.sqrt(variance))
    verdict = "gain" if value - half > 0 else "loss" if value + half < 0 else "no clear gain"
    return {"site": site, "difference": value, "low": value - half, "high": value + half, "verdict": verdict}


def _groups(curve: Any) -> list[Figures]:
    found = []
    for rows, events, expected in np.asarray(curve).T:
        if rows > 0:
            observed = wilson(events, rows)
            found.append({"n": int(rows), "predicted": float(expected / rows), "observed": observed.value,
                          "low": observed.low, "high": observed.high})  # fmt: skip
    return found


def fitted_model(study: Study, fitted: Mapping[str, Any], provenance: Mapping[str, Any]) -> LinearModel:
    """The artefact that goes back to sites, from the result of a linear method."""
    p = len(study.design.columns)
    columns = study.design.columns
    outcome = study.variables[study.outcome]
    return LinearModel(
        kind="logistic" if outcome.type == "code" else "gaussian",
        names=study.design.names,
        centre=np.asarray(fitted["centre"]),
        scale=np.asarray(fitted["scale"]),
        coefficients=np.asarray(fitted["coefficients"]),
        covariance=np.asarray(fitted.get("covariance", np.zeros((p, p)))),
        low=np.array([column.low for column in columns], dtype=np.float64),
        high=np.array([column.high for column in columns], dtype=np.float64),
        study=study.hash,
        provenance=dict(provenance),
    )


def coefficient_table(study: Study, fitted: Mapping[str, Any]) -> list[Figures]:
    """Coefficients per unit of each feature, with Wald intervals where the method gives a covariance."""
    if "covariance" not in fitted:
        scale, centre = np.asarray(fitted["scale"]), np.asarray(fitted["centre"])
        values = np.asarray(fitted["coefficients"]) / scale
        values[0] = fitted["coefficients"][0] - (np.asarray(fitted["coefficients"]) * centre / scale)[1:].sum()
        return [{"name": name, "value": float(v)} for name, v in zip(study.design.names, values, strict=True)]
    values, covariance = in_study_units(fitted)
    errors = np.sqrt(np.diag(covariance))
    return [
        {"name": name, "value": float(v), "low": float(v - Z95 * e), "high": float(v + Z95 * e)}
        for name, v, e in zip(study.design.names, values, errors, strict=True)
    ]
