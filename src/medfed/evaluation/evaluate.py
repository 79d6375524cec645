"""The run's child ``evaluation``: fits on folds, sites or the training part, judged on rows they did not see.

One task a round, so that a crash costs one task. Local and federated figures come from the sites; pooled ones only
where the engine holds all tables (a what-if), and are computed beside the run by ``pooled_figures``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medfed.errors import FederationError
from medfed.evaluation.private_scores import judge_privately, scored_counts
from medfed.evaluation.steps import calibration_terms, overall, site_coefficients, site_report, stack_fits
from medfed.federation.call import Failure
from medfed.federation.federation import Federation
from medfed.federation.packages import Method, find_method
from medfed.federation.step import Step
from medfed.study import Study

STEPS: tuple[Step, ...] = (overall, calibration_terms, site_report, site_coefficients)


def evaluation_steps(study: Study) -> tuple[Step, ...]:
    """What an evaluation may ask for: under an epsilon only what can be given noise."""
    if study.evaluation.design == "none":
        return ()
    return STEPS if study.privacy.epsilon is None else (scored_counts,)


@dataclass(frozen=True)
class EvaluationState:
    """finished: tasks done. fits: results by task. judged: figures by variant (and left-out site)."""

    finished: int
    fits: dict[str, Any]
    judged: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a study's method and its compared variants by the study's design. fitted: results of the whole fits."""

    study: Study
    fitted: Mapping[str, Any]

    @property
    def steps(self) -> tuple[Step, ...]:
        return evaluation_steps(self.study)

    def _tasks(self) -> list[tuple[str, str, str]]:
        """(what, variant, fold or site), in order."""
        study, tasks = self.study, []
        if study.evaluation.design != "none" and study.privacy.epsilon is None:
            tasks.append(("coefficients", "main", ""))
        for variant in ("main", *study.evaluation.variants):
            if study.evaluation.design == "cross_validation":
                tasks += [("fit", variant, str(fold)) for fold in range(study.parts.folds or 0)]
                tasks.append(("judge", variant, ""))
            elif study.evaluation.design == "holdout":
                if variant != "main":
                    tasks.append(("fit", variant, ""))
                tasks.append(("judge", variant, ""))
            elif study.evaluation.design == "leave_one_site_out":
                for site in study.sites.invited:
                    tasks += [("fit", variant, site), ("judge", variant, site)]
        return tasks

    def start(self, study: Study) -> EvaluationState:
        return EvaluationState(0, {}, {})

    def advance(self, federation: Federation, state: EvaluationState) -> EvaluationState:
        what, variant, where = self._tasks()[state.finished]
        named = None if variant == "main" else variant
        fits, judged = dict(state.fits), dict(state.judged)
        design = self.study.evaluation.design
        if what == "coefficients":
            judged["coefficients"] = _coefficients(federation, self.fitted)
        elif what == "fit":
            fits[f"{variant} {where}"] = self._fit(federation, named, where)
        elif design == "leave_one_site_out":
            judged[f"{variant} {where}"] = _judge_site(federation, fits[f"{variant} {where}"], where, named)
        else:
            if design == "cross_validation":
                own = [fits[f"{variant} {fold}"] for fold in range(self.study.parts.folds or 0)]
            else:
                own = [self.fitted if variant == "main" else fits[f"{variant} "]]
            if self.study.privacy.epsilon is None:
                judged[variant] = _judge(federation, own, named)
            else:
                judged[variant] = judge_privately(federation, stack_fits(own))
        return EvaluationState(state.finished + 1, fits, judged)

    def _fit(self, federation: Federation, variant: str | None, where: str) -> dict[str, Any]:
        method: Method = find_method(self.study, variant)
        design = self.study.evaluation.design
        if design == "cross_validation":
            federation = federation.fold(int(where))
        elif design == "leave_one_site_out":
            federation = federation.roster([site for site in federation.sites if site != where])
        name = "-".join(word for word in ("fit", variant or "main", where) if word)
        result = federation.child(name, method, variant)
        return {key: result[key] for key in ("coefficients", "centre", "scale", "sites")}

    def done(self, state: EvaluationState) -> bool:
        return state.finished >= len(self._tasks())

    def result(self, state: EvaluationState) -> Mapping[str, Any]:
        return {"judged": state.judged, "fits": state.fits}


def _judge(federation: Federation, fits: list[Any], variant: str | None) -> dict[str, Any]:
    """Overall figures over the sites, the calibration line, and every site's own report where its policy allows."""
    inputs = stack_fits(fits)
    asked = federation.on("test")
    total = asked.sum(overall, **inputs)
    report: dict[str, Any] = {
        "overall": summary({name: float(value) for name, value in total.values.items()}),
        "sites_counted": list(total.sites),
        "line": _line(asked, inputs),
    }
    return report | _site_reports(asked, inputs, variant)


def _site_reports(asked: Federation, inputs: Mapping[str, Any], variant: str | None) -> dict[str, Any]:
    replies = replace(asked, variant=variant).gather(site_report, **inputs)
    by_site, not_shown = {}, {}
    for site, reply in replies.items():
        if isinstance(reply, Failure):
            not_shown[site] = {"kind": reply.kind, "reason": reply.reason}
        else:
            by_site[site] = {name: np.asarray(value) for name, value in reply.items()}
    return {"by_site": by_site, "not_shown": not_shown}


def _coefficients(federation: Federation, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Each site's own coefficients and errors where its policy lets them be seen: for alarms, not for the answer."""
    replies = federation.gather(site_coefficients, scale=fitted["scale"])
    return {
        site: np.asarray(reply["local_coefficients"])
        for site, reply in replies.items()
        if not isinstance(reply, Failure)
    }


def _judge_site(federation: Federation, result: Mapping[str, Any], site: str, variant: str | None) -> dict[str, Any]:
    return _site_reports(federation.on("test").roster([site]), stack_fits([result]), variant)


def _line(asked: Federation, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Calibration intercept and slope by Newton's method over the sites (Cox 1958), with the slope's standard error."""
    line = np.array([0.0, 1.0])
    for _ in range(25):
        total = asked.sum(calibration_terms, line=line, **inputs)
        aa, ab, bb = total["information"]
        information = np.array([[aa, ab], [ab, bb]])
        try:
            delta = np.linalg.solve(information, total["score"])
        except np.linalg.LinAlgError:
            break
        line = line + delta
        if not np.isfinite(line).all() or np.abs(line).max() > 15:
            break
        if np.abs(delta).max() < 1e-8:
            error = float(np.sqrt(np.linalg.inv(information)[1, 1]))
            return {"intercept": float(line[0]), "slope": float(line[1]), "slope_error": error}
    return {}


def summary(sums: Mapping[str, float]) -> dict[str, Any]:
    """Figures of a report from the sums of ``figures``. Raises FederationError when nobody was judged."""
    rows = sums["rows"]
    if not rows > 0:
        raise FederationError("no patient could be judged; the test part is empty at every site")
    shown = sums["weight"] > 0
    return {
        "rows": rows,
        "events": sums["events"],
        "area": sums["weighted_area"] / sums["weight"] if shown else None,
        "area_variance": sums["weighted_variance"] / sums["weight"] ** 2 if shown else None,
        "brier": sums["squared_error"] / rows,
        "log_loss": sums["log_loss"] / rows,
        "accuracy": sums["correct"] / rows,
        "observed_to_expected": sums["events"] / sums["expected"] if sums["expected"] > 0 else None,
        "expected": sums["expected"],
    }
