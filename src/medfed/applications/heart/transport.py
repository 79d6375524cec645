"""Does a model learned at three hospitals hold at the fourth, and how many of its own patients repair its risks?

Each hospital in turn is left out of an exact logistic fit and judged by it (``StudyRun``). Then the model's intercept is
updated on a few local patients, drawn again and again from the hospital's own (a step: draws and patients stay there).
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from medfed.applications.heart.exports import build_and_approve, prepare, read_study
from medfed.data.table import StudyTable
from medfed.engines.site_folders import SiteFolders
from medfed.errors import FederationError
from medfed.evaluation.calibration import observed_to_expected, patients_needed, ratios_after_update
from medfed.evaluation.discrimination import auc_of_scores
from medfed.evaluation.intervals import normal_quantile
from medfed.evaluation.outcome import site_alarms
from medfed.evaluation.steps import predictors, stack_fits
from medfed.evaluation.study_run import StudyRun, pooled_leave_one_out, predictor_at, steps_of
from medfed.federation.call import Failure
from medfed.federation.federation import Federation
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.preview import preview
from medfed.federation.runner import Listener, Runner
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Reply, Step, step
from medfed.study import Study

FloatArray = NDArray[np.float64]
Figures = dict[str, Any]

UPDATE = "intercept-update"
NEAR, SHARE = (0.9, 1.1), 0.9


@step(
    reads="test",
    takes={
        "models": Input("folds,p", limit=50, model=True, meaning="coefficients"),
        "centres": Input("folds,p", limit=1e9, model=True, meaning="centre"),
        "scales": Input("folds,p", limit=1e9, model=True, meaning="scale"),
    },
    releases={"update_ratios": Reply("4", limit=1e6), "update_patients": Reply("3", limit=1e6)},
)
def intercept_update(site: Site, *, models: FloatArray, centres: FloatArray, scales: FloatArray) -> Out:
    """O/E after an intercept update on some of the site's patients, over repeated draws; and how many it takes.

    update_ratios: median, 2.5th and 97.5th percentile of O/E over the draws, share of draws within 0.9 to 1.1.
    update_patients: how many patients put 90 % of draws within 0.9 to 1.1, and the ends of an interval for that
    number, since the share is itself counted over finitely many draws; 0 where even 1,000 are too few.
    """
    drawn = {"draws": site.settings["draws"], "prior_sd": site.settings["prior_sd"]}
    predictor, outcome = predictors(site, models, centres, scales)
    ratios = ratios_after_update(predictor, outcome, rng=site.rng, patients=site.settings["patients"], **drawn)
    error = normal_quantile() * np.sqrt(SHARE * (1 - SHARE) / drawn["draws"])
    needed = [
        patients_needed(predictor, outcome, rng=site.rng, share=share, low=NEAR[0], high=NEAR[1], **drawn).patients or 0
        for share in (SHARE, SHARE - error, SHARE + error)
    ]
    within = np.mean((ratios >= NEAR[0]) & (ratios <= NEAR[1]))
    return Out(
        {
            "update_ratios": np.array([*np.quantile(ratios, [0.5, 0.025, 0.975]), within]),
            "update_patients": np.array(needed, dtype=np.float64),
        }
    )


@dataclass(frozen=True)
class UpdateState:
    """found: replies by hospital."""

    found: dict[str, Any]


@dataclass(frozen=True)
class InterceptUpdate:
    """Settings: patients, draws, prior_sd (of the change). fits: the model for each hospital, which it did not shape."""

    patients: int = 50
    draws: int = 1000
    prior_sd: float = 1.5
    fits: Mapping[str, Any] = field(default_factory=dict)

    steps: ClassVar[tuple[Step, ...]] = (intercept_update,)

    def start(self, study: Study) -> UpdateState:
        return UpdateState({})

    def advance(self, federation: Federation, state: UpdateState) -> UpdateState:
        site = next(name for name in sorted(self.fits) if name not in state.found)
        asked = replace(federation, variant=UPDATE).on("test").roster([site])
        inputs: dict[str, Any] = stack_fits([self.fits[site]])
        reply = asked.gather(intercept_update, **inputs)[site]
        if isinstance(reply, Failure):
            raise FederationError(f"{site} did not say how an intercept update would do: {reply.reason}")
        return UpdateState({**state.found, site: dict(reply)})

    def done(self, state: UpdateState) -> bool:
        return len(state.found) >= len(self.fits)

    def result(self, state: UpdateState) -> Mapping[str, Any]:
        return state.found


def leave_one_out(data: Path, folder: Path, *, listener: Listener | None = None) -> Figures:
    """Every hospital judged by the model of the other three, with intervals, the repair, and the pooled difference.

    data: see ``prepare``; folder: an empty one, for the four sites and the coordinator. Returns JSON values:
    ``hospitals`` by name (n, events, auc, oe with low and high; ``update``: O/E after the update; ``needed``),
    ``difference_from_pooled`` (the largest of any coefficient, AUC or O/E), ``alarms`` (hospitals that stand apart, in
    sentences), ``held_back_by_default`` (the reason by hospital and step).
    """
    study = read_study()
    tables = {name: build_and_approve(site, study) for name, site in prepare(data, folder).items()}
    engine = SiteFolders(folder, study, durability="process")
    options: dict[str, Any] = {"durability": "process", "listener": listener, "public_keys": engine.public_keys}
    with closing(engine), closing(Runner(folder / "coordinator", engine, study, **options)) as runner:
        found = runner.execute(StudyRun(study), "leave-one-out")["evaluation"]
        fits = {site: found["fits"][f"main {site}"] for site in study.sites.invited}
        method = find_method(study, UPDATE)
        assert isinstance(method, InterceptUpdate)
        updates = runner.execute(replace(method, fits=fits), UPDATE)
    hospitals, differences = {}, []
    for site in study.sites.invited:
        judged = found["judged"][f"main {site}"]
        if site in judged["not_shown"]:
            raise FederationError(f"{site} was not judged: {judged['not_shown'][site]['reason']}")
        reply = judged["by_site"][site]
        hospitals[site] = {**_judged(reply), **_repair(updates[site], method.patients)}
        differences.append(_difference(tables, study, site, fits[site], hospitals[site]))
    return {
        "patients": sum(hospital["n"] for hospital in hospitals.values()),
        "hospitals": hospitals,
        "difference_from_pooled": max(differences),
        "alarms": {a["site"]: a["sentence"].format(**a["parameters"]) for a in site_alarms(study, found["judged"])[0]},
        "held_back_by_default": held_back(study, tables, Policy()),
    }


def _judged(reply: Mapping[str, Any]) -> Figures:
    area, variance, _ = (float(value) for value in reply["site_area"])
    rows, events, expected = (float(value) for value in reply["site_sums"][:3])
    ratio = observed_to_expected(events, expected, rows)
    logit = special.logit(area)
    half = normal_quantile() * np.sqrt(variance) / (area * (1 - area))
    return {
        "n": int(rows),
        "events": int(events),
        "auc": area,
        "auc_low": float(special.expit(logit - half)),
        "auc_high": float(special.expit(logit + half)),
        "oe": ratio.value,
        "oe_low": ratio.low,
        "oe_high": ratio.high,
    }


def _repair(reply: Mapping[str, Any], patients: int) -> Figures:
    median, low, high, within = (float(value) for value in reply["update_ratios"])
    needed, fewest, most = (int(value) or None for value in reply["update_patients"])
    return {
        "update": {"patients": patients, "oe": median, "low": low, "high": high, "within": within},
        "needed": {"patients": needed, "low": fewest, "high": most},
    }


def _difference(
    tables: Mapping[str, StudyTable], study: Study, site: str, fit: Mapping[str, Any], figures: Mapping[str, Any]
) -> float:
    """Largest difference between a hospital's figures and those of one fit on the other hospitals' rows together."""
    pooled = pooled_leave_one_out(tables, study, site)
    predictor, outcome = predictor_at(tables[site], study, pooled)
    auc = auc_of_scores(predictor, outcome)
    ratio = outcome.sum() / special.expit(predictor).sum()
    parts = [
        np.abs(np.asarray(fit[key]) - np.asarray(pooled[key])).max() for key in ("coefficients", "centre", "scale")
    ]
    return float(max(*parts, abs(figures["oe"] - ratio), abs(figures["auc"] - (auc.value if auc else np.nan))))


def held_back(study: Study, tables: Mapping[str, StudyTable], policy: Policy) -> dict[str, dict[str, str]]:
    """What a policy would hold back of this study, by hospital and step: the reason in a sentence. Runs no step."""
    found = {}
    for name, table in tables.items():
        steps = preview(name, study, table, policy, steps_of(study)).steps
        found[name] = {one.step: one.held_back for one in steps if one.held_back is not None}
    return found
