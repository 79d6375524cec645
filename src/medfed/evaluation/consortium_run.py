"""A study over the sites of one consortium, on this machine or over a network: run, figures, report, model files."""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfed import __version__
from medfed.canonical import write_atomically
from medfed.engines.facts import ConsortiumEngine, Heads, SiteFacts
from medfed.engines.site_folders import SiteFolders
from medfed.evaluation.outcome import coefficient_table, effect_figures, fitted_model, prediction_figures, site_alarms
from medfed.evaluation.publication import may_stand_beside
from medfed.evaluation.report import write_report
from medfed.evaluation.report_data import SITES_SUBTRACT, plain
from medfed.evaluation.report_statistics import statistics_figures
from medfed.evaluation.statistics_results import kind_of, private_kind_of
from medfed.evaluation.study_run import StudyRun
from medfed.federation.gate import REPLY_NOT_LISTED, SITE_TERMS
from medfed.federation.ledger import Durability
from medfed.federation.opening import why_plain
from medfed.federation.openings import SHOWS_OTHERS, TOTALS_FIRST
from medfed.federation.runner import Listener, Runner
from medfed.models.linear import LinearModel
from medfed.study import Study

OF_ONE_SITE = (REPLY_NOT_LISTED, SITE_TERMS, SHOWS_OTHERS, TOTALS_FIRST)


@dataclass(frozen=True)
class ConsortiumRun:
    """A finished run: the report's data, the files written, and models by method."""

    report: dict[str, Any]
    folder: Path
    files: tuple[Path, ...]
    models: Mapping[str, Path]
    result: Mapping[str, Any]


def is_network(consortium: Path) -> bool:
    """Whether `medfed consortium init` made a network in this folder."""
    return (consortium / "coordinator" / "network" / "roster.json").exists()


def open_engine(consortium: Path, study: Study, *, durability: Durability = "call") -> ConsortiumEngine:
    """The engine of a consortium's folder: its network, where `medfed consortium init` made one; else its site folders."""
    if is_network(consortium):
        from medfed.engines.nvflare.engine import Networked

        return Networked(consortium, study)
    return SiteFolders(consortium, study, durability=durability)


def run_consortium(
    consortium: Path,
    study: Study,
    run: str,
    *,
    durability: Durability = "call",
    listener: Listener | None = None,
) -> ConsortiumRun:
    """Run (or go on with) a study and write everything below coordinator/runs/RUN. Raises FederationError if it stops."""
    engine = open_engine(consortium, study, durability=durability)
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
            secure = bool(runner.roster)
        report = _report(study, run, engine, result, heads, started, secure=secure)
        folder = consortium / "coordinator" / "runs" / run
        models = _write_models(folder, study, run, result, report)
        files = [*write_report(report, folder), *_write_estimates(folder, study, result)]
        return ConsortiumRun(report, folder, tuple([*files, *models.values()]), models, result)
    finally:
        engine.close()


def _write_models(
    folder: Path, study: Study, run: str, result: Mapping[str, Any], report: dict[str, Any]
) -> dict[str, Path]:
    if study.task.kind != "risk_prediction" or kind_of(study) is not None or "coefficients" not in result["fitted"]:
        return {}
    fitted = result["fitted"]
    provenance = {"run": run, "method": study.method.use, "sites": list(fitted["sites"]), "medfed": __version__}
    model: LinearModel = fitted_model(study, fitted, provenance)
    path = folder / "model.medfed"
    write_atomically(path, model.to_bytes())
    report["model"] = {"file": path.name, "hash": model.hash}
    return {"main": path}


def _write_estimates(folder: Path, study: Study, result: Mapping[str, Any]) -> list[Path]:
    """What a method found for which no model file is written (counts, means, coefficients), as JSON beside the report."""
    predicts = study.task.kind == "risk_prediction"
    if (predicts and "coefficients" in result["fitted"]) or (not predicts and private_kind_of(study) is None):
        return []
    path = folder / "estimates.json"
    write_atomically(path, json.dumps(plain(result["fitted"]), ensure_ascii=False, indent=2).encode())
    return [path]


def _counted(study: Study, result: Mapping[str, Any]) -> list[str]:
    return list(result["fitted"].get("sites", ()))


def _report(
    study: Study,
    run: str,
    engine: ConsortiumEngine,
    result: Mapping[str, Any],
    heads: Heads,
    started: str,
    *,
    secure: bool,
) -> dict[str, Any]:
    facts = engine.facts(run, heads)
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
        "what_if": not all(site.usual_minimum for site in facts.values()),
        "protection": "secure" if secure else "plain",
        "plain_because": None if secure else why_plain(study, engine.roster),
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "minimum_cell": max(
            [site.minimum_cell for site in facts.values() if site.minimum_cell is not None],
            default=study.privacy.minimum_cell,
        ),
        "sites": [_site(facts[name], name, counted, reasons) for name in study.sites.invited],
        "kind": study.task.kind,
        **_leaving(facts, secure=secure),
    }
    # A private model that is judged has its coefficients beside that.
    kind = kind_of(study) or (None if result["evaluation"] else private_kind_of(study))
    curve = list(result["fitted"].get("curve") or ())
    if len(curve) > 1 and kind is None:  # statistics say in how many rounds; their likelihoods are no losses
        rounds = list(range(1, len(curve) + 1))
        report["training"] = [{"name": "main", "measure": "log-loss", "rounds": rounds, "values": curve}]
    if kind is not None:
        report["statistics"] = statistics_figures(kind, result["fitted"], study)
    elif study.task.kind == "treatment_effect":
        report["effect"] = effect_figures(study, result["fitted"])
        seen = result["fitted"].get("by_site") or {}
        hidden = not report["effect"]["by_site"] and (secure or not may_stand_beside(counted, seen))
        report["effect"]["by_site_reason"] = SITES_SUBTRACT if hidden else None
    elif result["evaluation"]:
        fits = [list(fit["sites"]) for fit in result["evaluation"].get("fits", {}).values()]
        apart = study.evaluation.design == "leave_one_site_out"
        # Pooled figures stand beside federated ones only where every fit was of the same sites.
        tables = {site: table for site, table in engine.tables.items() if site in counted}
        if not apart and any(sites != counted for sites in fits):
            tables = {}
        minimum = {site: facts[site].minimum_cell or study.privacy.minimum_cell for site in tables}
        report["prediction"] = prediction_figures(study, result, tables=tables, minimum=minimum)
        report["prediction"]["coefficients"] = coefficient_table(study, result["fitted"])
        report["alarms"], report["sites_compared"] = site_alarms(study, result["evaluation"]["judged"])
    return report


def _both(study: Study, text: Any) -> dict[str, str]:
    return {lang: study.text(text, lang) for lang in ("en", "zh")}


def _site(facts: SiteFacts, name: str, counted: list[str], reasons: Mapping[str, Any]) -> dict[str, Any]:
    if name in counted:
        return {"name": name, "title": facts.title, "counted": True, "reason": None}
    reason = facts.closed or (reasons.get(name) or {}).get("reason") or "the site did not answer"
    return {"name": name, "title": facts.title, "counted": False, "reason": reason}


def _leaving(facts: Mapping[str, SiteFacts], *, secure: bool) -> dict[str, Any]:
    """What left each site in this run, its approval, and whether its ledger holds: the sites' own ledgers say so.

    Where sums are secure a site's own number of patients is not told, not even as values for each of them.
    """
    releases = [
        {"site": name, "step": found.step, "calls": found.calls, "values": found.values, "bytes": found.bytes,
         "values_per_patient": found.values / site.patients if site.patients and not secure else None}
        for name, site in facts.items() for found in site.releases
    ]  # fmt: skip
    approvals = [{"site": name, **site.approval} for name, site in facts.items() if site.approval]
    ledgers = [{"site": name, **site.ledger} for name, site in facts.items() if site.ledger]
    return {"releases": releases, "approvals": approvals, "ledgers": ledgers}
