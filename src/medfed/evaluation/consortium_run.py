"""A study over the site folders of one consortium: run, figures, report, model files."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfed import __version__
from medfed.canonical import write_atomically
from medfed.engines.site_folders import SiteFolders
from medfed.errors import LedgerError
from medfed.evaluation.outcome import coefficient_table, effect_figures, fitted_model, prediction_figures, site_alarms
from medfed.evaluation.report import write_report
from medfed.evaluation.report_data import plain
from medfed.evaluation.study_run import StudyRun
from medfed.federation.gate import REPLY_NOT_LISTED, SITE_TERMS, minimum_cell
from medfed.federation.ledger import Durability, released, verify_ledger
from medfed.federation.policy import Policy
from medfed.federation.runner import Listener, Runner
from medfed.models.linear import LinearModel
from medfed.study import Study

OF_ONE_SITE = (REPLY_NOT_LISTED, SITE_TERMS)


@dataclass(frozen=True)
class ConsortiumRun:
    """A finished run: the report's data, the files written, and models by method."""

    report: dict[str, Any]
    folder: Path
    files: tuple[Path, ...]
    models: Mapping[str, Path]
    result: Mapping[str, Any]


def run_consortium(
    consortium: Path,
    study: Study,
    run: str,
    *,
    durability: Durability = "call",
    listener: Listener | None = None,
) -> ConsortiumRun:
    """Run (or go on with) a study and write everything below coordinator/runs/RUN. Raises FederationError if it stops."""
    engine = SiteFolders(consortium, study, durability=durability)
    try:
        runner = Runner(
            consortium / "coordinator",
            engine,
            study,
            durability=durability,
            listener=listener,
            public_keys=engine.public_keys,
        )
        with closing(runner):
            result = runner.execute(StudyRun(study), run)
            heads = runner.store.heads()
            started = next(row["started"] for row in runner.store.runs() if row["run"] == run)
        report = _report(study, run, engine, result, heads, started)
        folder = consortium / "coordinator" / "runs" / run
        models = _write_models(folder, study, run, result, report)
        files = [*write_report(report, folder), *_write_estimates(folder, study, result)]
        return ConsortiumRun(report, folder, tuple([*files, *models.values()]), models, result)
    finally:
        engine.close()


def _write_models(
    folder: Path, study: Study, run: str, result: Mapping[str, Any], report: dict[str, Any]
) -> dict[str, Path]:
    if study.task.kind != "risk_prediction" or "coefficients" not in result["fitted"]:
        return {}
    fitted = result["fitted"]
    provenance = {"run": run, "method": study.method.use, "sites": list(fitted["sites"]), "medfed": __version__}
    model: LinearModel = fitted_model(study, fitted, provenance)
    path = folder / "model.medfed"
    write_atomically(path, model.to_bytes())
    report["model"] = {"file": path.name, "hash": model.hash}
    return {"main": path}


def _write_estimates(folder: Path, study: Study, result: Mapping[str, Any]) -> list[Path]:
    """What a method found that fits no model (counts, means, histograms), as JSON beside the report."""
    if study.task.kind != "risk_prediction" or "coefficients" in result["fitted"]:
        return []
    path = folder / "estimates.json"
    write_atomically(path, json.dumps(plain(result["fitted"]), ensure_ascii=False, indent=2).encode())
    return [path]


def _counted(study: Study, result: Mapping[str, Any]) -> list[str]:
    return list(result["fitted"].get("sites", ()))


def _report(
    study: Study,
    run: str,
    engine: SiteFolders,
    result: Mapping[str, Any],
    heads: Mapping[str, Any],
    started: str,
) -> dict[str, Any]:
    counted = _counted(study, result)
    reasons = dict(result["fitted"].get("held_back") or {})
    for name, judged in (result["evaluation"].get("judged") or {}).items():
        if name != "coefficients":
            # That a site's own figures are not shown is no reason why it was not counted.
            not_shown = {s: f for s, f in (judged.get("not_shown") or {}).items() if f["reason"] not in OF_ONE_SITE}
            reasons = not_shown | reasons
    report: dict[str, Any] = {
        "study": {
            "name": study.name,
            "title": _both(study, study.title),
            "question": _both(study, study.question),
            "hash": study.hash,
            "unit": study.unit,
            "protects": study.protects,
            "seed": study.seed,
            "variables": {name: variable.model_dump(mode="json") for name, variable in study.variables.items()},
            "outcome": study.outcome,
            "arm": study.arm,
        },
        "run": run,
        "started": started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "medfed": __version__,
        "what_if": any(door.sites[s].policy.minimum_cell < Policy().minimum_cell for s, door in engine.doors.items()),
        "protection": engine.protections[-1],
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "minimum_cell": max(
            [minimum_cell(door.sites[s].policy, study) for s, door in engine.doors.items()],
            default=study.privacy.minimum_cell,
        ),
        "sites": [_site(study, engine, name, counted, reasons) for name in study.sites.invited],
        "kind": study.task.kind,
        **_leaving(study, engine, run, heads),
    }
    curve = list(result["fitted"].get("curve") or ())
    if len(curve) > 1:
        rounds = list(range(1, len(curve) + 1))
        report["training"] = [{"name": "main", "measure": "log-loss", "rounds": rounds, "values": curve}]
    if study.task.kind == "treatment_effect":
        report["effect"] = effect_figures(study, result["fitted"])
    elif result["evaluation"]:
        fits = [list(fit["sites"]) for fit in result["evaluation"].get("fits", {}).values()]
        apart = study.evaluation.design == "leave_one_site_out"
        # Pooled figures stand beside federated ones only where every fit was of the same sites.
        tables = {site: table for site, table in engine.tables.items() if site in counted}
        if not apart and any(sites != counted for sites in fits):
            tables = {}
        minimum = {site: minimum_cell(engine.doors[site].sites[site].policy, study) for site in tables}
        report["prediction"] = prediction_figures(study, result, tables=tables, minimum=minimum)
        report["prediction"]["coefficients"] = coefficient_table(study, result["fitted"])
        report["alarms"] = site_alarms(study, result["evaluation"]["judged"])
    return report


def _both(study: Study, text: Any) -> dict[str, str]:
    return {lang: study.text(text, lang) for lang in ("en", "zh")}


def _site(
    study: Study, engine: SiteFolders, name: str, counted: list[str], reasons: Mapping[str, Any]
) -> dict[str, Any]:
    folder = engine.folders.get(name)
    title = {lang: folder.title(lang) if folder else name for lang in ("en", "zh")}
    if name in counted:
        return {"name": name, "title": title, "counted": True, "reason": None}
    reason = engine.closed.get(name) or (reasons.get(name) or {}).get("reason") or "the site did not answer"
    return {"name": name, "title": title, "counted": False, "reason": reason}


def _leaving(study: Study, engine: SiteFolders, run: str, heads: Mapping[str, Any]) -> dict[str, Any]:
    """What left each site in this run, its approval, and whether its ledger holds: read from the sites' own ledgers."""
    releases, approvals, ledgers = [], [], []
    for name, door in engine.doors.items():
        db, access = door.store.db, door.sites[name]
        patients = access.table.on("all").patients
        for found in released(db, name, study.hash, run):
            releases.append(
                {"site": name, "step": found.step, "calls": found.calls, "values": found.values, "bytes": found.bytes,
                 # Beside the values in a call it would tell how many patients there are, which noise hides.
                 "values_per_patient": found.values / patients if study.privacy.epsilon is None else None}
            )  # fmt: skip
        approval = door.standing_approval(name)
        if approval is not None:
            approvals.append(
                {"site": name, "until": approval.until, "hash": approval.study, "table_version": approval.table_version}
            )
        known = heads[name][0] if name in heads else None
        head, verified = door.store.heads().get(name), True
        try:
            verify_ledger(db, name, known)
        except LedgerError:
            verified = False
        if head is not None:
            ledgers.append({"site": name, "rows": head.number + 1, "head": head.hash, "verified": verified,
                            "epsilon": head.spent})  # fmt: skip
    return {"releases": releases, "approvals": approvals, "ledgers": ledgers}
