"""The demo: from four hospitals' exports to a federated answer and a model back at a hospital, each step as people do it.

Everything after the exports are written is read from the exports alone, through the same functions as the commands.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from medfed.applications.indomethacin.examples import example
from medfed.applications.indomethacin.exports import write_exports, write_followup
from medfed.applications.indomethacin.pooled import pooled_answer
from medfed.canonical import canonical_json, write_atomically
from medfed.data.build import build_table
from medfed.data.quality import Quality
from medfed.data.site_folder import SiteFolder, load_site, write_pseudonym_key
from medfed.data.table import StudyTable
from medfed.engines.site_roster import ROSTER_FILE, add_to_roster, read_roster
from medfed.errors import MedfedError
from medfed.evaluation.consortium_run import ConsortiumRun, run_consortium
from medfed.evaluation.monitor import Applied, FedBack, apply_model, feed_back
from medfed.evaluation.quality_page import render as render_quality
from medfed.evaluation.report import write_report
from medfed.evaluation.study_run import step_names
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key, public_hex, write_signing_key
from medfed.federation.ledger import append_event, open_store, verify_ledger
from medfed.federation.policy import POLICY_TEMPLATE
from medfed.federation.runner import Listener
from medfed.federation.store import RunnerStore
from medfed.models.linear import load_model
from medfed.study import Study, load_study

HOSPITALS = ("michigan", "indiana", "kentucky", "case")
RECEIVER = "kentucky"
MARK = ".medfed-demo"
SITE_FIGURES = ("site_patients", "site_area", "site_sums", "site_curve", "local_area", "local_sums", "difference")


@dataclass(frozen=True)
class Step:
    """One thing that the demo has done. title: an English sentence for translation; lines: what there is to see."""

    title: str
    lines: tuple[str, ...] = ()


Say = Callable[[Step], None]


def prepare(folder: Path, *, fresh: bool) -> bool:
    """Make the folder ready; returns whether exports were written (False: those there are used as they are).

    Only a folder that an earlier demo made is emptied, and of it everything but the exports.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise MedfedError(f"{folder} is not empty and was not made by the demo; choose another --folder")
    exports = {name: folder / "sites" / name / "data" for name in HOSPITALS}
    keep = not fresh and all(path.is_dir() and any(path.iterdir()) for path in exports.values())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("made by `medfed demo`; a later demo replaces everything but the exports\n")
    shutil.rmtree(folder / "coordinator", ignore_errors=True)
    (folder / ROSTER_FILE).unlink(missing_ok=True)
    for path in exports.values():
        for entry in path.parent.glob("*") if path.parent.exists() else ():
            if entry.name == "data" and keep:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not keep:
        write_exports(folder)
    return not keep


def set_up_site(folder: Path, name: str) -> SiteFolder:
    """A hospital's folder around its exports: its mapping, its policy, its keys."""
    home = folder / "sites" / name
    write_atomically(home / "site.yaml", (example("indomethacin") / "sites" / name / "site.yaml").read_bytes())
    policy = POLICY_TEMPLATE.replace("replies: []  ", f"replies: [{', '.join(SITE_FIGURES)}]  ")
    write_atomically(home / "policy.yaml", policy.encode())
    # The trial is public. A fixed key gives the same folds, and so the same figures, every time.
    write_pseudonym_key(home, hashlib.sha256(f"medfed demo {name}".encode()).digest())
    key = write_signing_key(home / "keys")
    add_to_roster(home, name, public_hex(key))
    return load_site(home)


def approve_study(site: SiteFolder, study: Study, table: StudyTable, key: Any) -> None:
    """The hospital's officer approves, after reading the hash."""
    names = step_names(study)
    with closing(open_store(site.ledger_path, "call")) as db:
        approve(
            db, site=site.name, study=study, steps=names, packages=packages_of(names), table_version=table.version,
            until=(date.today() + timedelta(days=180)).isoformat(), key=key, at=_now(), officer="demo officer",
            roster=read_roster(site),
        )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Walkthrough:
    """What the demo found."""

    folder: Path
    effect: ConsortiumRun
    risk: ConsortiumRun
    pooled: Mapping[str, Any]
    difference_from_pooled: float
    applied: Applied
    fed_back: FedBack
    ledger_rows: Mapping[str, int]


def walk(
    folder: Path, say: Say, *, lang: str = "en", fresh: bool = False, listener: Listener | None = None
) -> Walkthrough:
    """Do it all: exports, mapping, quality, approval, two studies, reports, a model at a hospital, outcomes, ledgers."""
    written = prepare(folder, fresh=fresh)
    say(Step("Four hospitals' exports, each in its own dialect" if written else "The exports that are there are used as they are",
             tuple(str(path) for name in HOSPITALS for path in sorted((folder / "sites" / name / "data").iterdir()))))  # fmt: skip
    effect, risk = load_study(example("indomethacin")), load_study(example("ercp-risk"))
    sites = {name: set_up_site(folder, name) for name in HOSPITALS}
    tables: dict[str, StudyTable] = {}
    lines = []
    for name, site in sites.items():
        for study in (effect, risk):
            table, quality = build_table(site, study)
            if study is effect:
                tables[name] = table
                lines.append(_quality_line(quality))
                for page_lang in ("en", "zh"):
                    page = site.folder / ("quality.html" if page_lang == "en" else "quality.zh.html")
                    write_atomically(
                        page, render_quality(quality.to_dict(), study, site.title(page_lang), page_lang).encode()
                    )
            approve_study(site, study, table, load_signing_key(site.keys))
    say(Step("Every hospital maps its export and looks at its own quality page", tuple(lines)))
    say(
        Step(
            "Every hospital reads both studies and approves their hashes",
            tuple(f"{s.name}  {s.hash}" for s in (effect, risk)),
        )
    )

    first = run_consortium(folder, effect, "effect", listener=listener)
    counted = list(first.result["fitted"]["sites"])
    pooled = pooled_answer(effect, {name: tables[name].on("all") for name in counted})
    difference = _difference(first, pooled)
    # Here, and only here, the rows lie in one place: the report may say how far the federated answer is from theirs.
    first.report["effect"]["difference_from_pooled"] = difference
    write_report(first.report, first.folder)
    say(Step("Does indomethacin prevent pancreatitis?", tuple(str(path) for path in first.files)))
    second = run_consortium(folder, risk, "risk", listener=listener)
    say(Step("Who is at risk? Federated and pooled, side by side", tuple(str(path) for path in second.files)))

    receiver = sites[RECEIVER]
    model = load_model(second.models["main"])
    applied = apply_model(receiver, risk, model)
    with closing(open_store(receiver.ledger_path, "call")) as db:
        record = canonical_json({"model": applied.model, "predicted": applied.predicted}).encode()
        append_event(db, receiver.name, "prediction", risk.hash, record, at=_now())
    say(Step("The model goes back to a hospital whose patients helped to fit it", (str(applied.path),)))
    outcomes = write_followup(folder)
    fed_back = feed_back(receiver, risk, model, outcomes)
    say(Step("Its outcomes are fed back", (str(outcomes),)))
    rows = verify_all(folder, sites)
    say(Step("Every ledger is verified against the head that the coordinator holds",
             tuple(f"{name}: {count}" for name, count in rows.items())))  # fmt: skip
    return Walkthrough(folder, first, second, pooled, difference, applied, fed_back, rows)


def _quality_line(quality: Quality) -> str:
    dropped = ", ".join(f"{count} {reason}" for reason, count in quality.dropped.items())
    return f"{quality.site}: {quality.rows_kept} / {quality.rows_read}" + (f"  ({dropped})" if dropped else "")


def verify_all(folder: Path, sites: Mapping[str, SiteFolder]) -> dict[str, int]:
    """Rows of each ledger, each verified against the coordinator's head. LedgerError where one does not hold."""
    store = RunnerStore(folder / "coordinator", read_only=True)
    heads = store.heads()
    store.close()
    rows = {}
    for name, site in sites.items():
        with closing(open_store(site.ledger_path, "call")) as db:
            rows[name] = verify_ledger(db, name, heads[name][0] if name in heads else None).number + 1
    return rows


def _difference(run: ConsortiumRun, pooled: Mapping[str, Any]) -> float:
    """Largest difference from the pooled regression (coefficients, standard errors) and risk ratio."""
    fitted = run.result["fitted"]
    ours = np.concatenate([fitted["coefficients"], np.sqrt(np.diag(fitted["covariance"]))])
    theirs = np.array([*pooled["coefficients"].values(), *pooled["standard_errors"].values()])
    ratio = abs(run.report["effect"]["risk_ratio"]["value"] - pooled["risk_ratio"])
    return float(max(np.abs(ours - theirs).max(), ratio))


def summary(found: Walkthrough) -> dict[str, Any]:
    """The demo's figures as one JSON object."""
    effect = found.effect.report["effect"]
    adjusted = {row["name"]: row for row in effect["adjusted"]}
    arm = next(row for name, row in adjusted.items() if name.startswith("arm="))
    return {
        "sites": list(found.effect.result["fitted"]["sites"]),
        "held_back": {site["name"]: site["reason"] for site in found.effect.report["sites"] if not site["counted"]},
        "patients": {row["name"]: [row["events"], row["patients"]] for row in effect["arms"]},
        "risk": {row["name"]: row["value"] for row in effect["arms"]},
        "risk_ratio": effect["risk_ratio"]["value"],
        "risk_ratio_interval": [effect["risk_ratio"]["low"], effect["risk_ratio"]["high"]],
        "adjusted_odds_ratio": arm["value"],
        "adjusted_odds_ratio_interval": [arm["low"], arm["high"]],
        "difference_from_pooled": found.difference_from_pooled,
        "prediction": found.risk.report["prediction"],
        "model": {"hash": found.applied.model, "predicted": found.applied.predicted, "abstained": dict(found.applied.abstained)},
        "feedback": {"joined": found.fed_back.joined, "observed": found.fed_back.observed, "expected": found.fed_back.expected,
                     "verdict": found.fed_back.risk.verdict},
        "ledger_rows": dict(found.ledger_rows),
        "reports": [str(path) for path in (*found.effect.files, *found.risk.files)],
    }  # fmt: skip
