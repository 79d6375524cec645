"""One execution of a study: its method, then the evaluation that the study declares; and the pooled what-if beside it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.table import StudyTable, View
from medfed.errors import MedfedError
from medfed.evaluation.evaluate import Evaluation, evaluation_steps, summary
from medfed.evaluation.steps import figures, predictors, stack_fits
from medfed.federation.federation import Federation
from medfed.federation.here import Here, PooledView, fit
from medfed.federation.packages import find_method, step_name
from medfed.federation.site import Memo, Site
from medfed.federation.step import Step
from medfed.privacy.plan import Planned
from medfed.study import Study

FloatArray = NDArray[np.float64]


def steps_of(study: Study) -> tuple[Step, ...]:
    """Every step that a run of the study may ask for: what a site approves."""
    steps = dict.fromkeys(find_method(study).steps)
    for variant in study.variants:
        steps |= dict.fromkeys(find_method(study, variant).steps)
    steps |= dict.fromkeys(evaluation_steps(study))
    return tuple(steps)


# Share of a private study's budget that its evaluation spends, as variances go: noise sqrt(3) times what a study that
# spent everything on the one table of scores would have.
EVALUATION_SHARE = 0.25


def step_names(study: Study) -> tuple[str, ...]:
    """Their full names, sorted."""
    return tuple(sorted(step_name(step) for step in steps_of(study)))


@dataclass(frozen=True)
class StudyRunState:
    """fitted: the method's result; evaluation: that of the evaluation; stage: how many of the two are done."""

    stage: int
    fitted: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRun:
    """A study as one method: round 1 runs the method, round 2 the evaluation, each as a child."""

    study: Study

    @property
    def steps(self) -> tuple[Step, ...]:
        return steps_of(self.study)

    def private_calls(self, study: Study) -> Mapping[Step, Planned]:
        """The method's calls, and the evaluation's beside them. StudyError where the method has none."""
        method: Any = find_method(study)
        if not hasattr(method, "private_calls"):
            return {}
        planned = dict(method.private_calls(study))
        spent = sum(plan.calls * plan.draws * (plan.weight * plan.sampling_rate) ** 2 for plan in planned.values())
        weight = math.sqrt(spent * EVALUATION_SHARE / (1 - EVALUATION_SHARE))
        return planned | {step: Planned(1, weight=weight) for step in evaluation_steps(study)}

    @property
    def stages(self) -> int:
        return 1 if self.study.evaluation.design == "none" else 2

    def start(self, study: Study) -> StudyRunState:
        return StudyRunState(0)

    def advance(self, federation: Federation, state: StudyRunState) -> StudyRunState:
        if state.stage == 0:
            return StudyRunState(1, dict(federation.child("fit", find_method(self.study))))
        found = federation.child("evaluation", Evaluation(self.study, state.fitted))
        return StudyRunState(2, state.fitted, dict(found))

    def done(self, state: StudyRunState) -> bool:
        return state.stage >= self.stages

    def result(self, state: StudyRunState) -> Mapping[str, Any]:
        return {"fitted": state.fitted, "evaluation": state.evaluation}


def _pooled_here(tables: Mapping[str, StudyTable], study: Study, variant: str | None) -> Here:
    return Here(lambda part: PooledView([table.on(part) for table in tables.values()], study.seed), study, variant)


def pooled_figures(
    tables: Mapping[str, StudyTable], study: Study, minimum: Mapping[str, int], variant: str | None = None
) -> dict[str, Any]:
    """The pooled fit judged as the federated one is: same folds, same rows, same grouping to each site's minimum cell."""
    here = _pooled_here(tables, study, variant)
    method = find_method(study, variant)
    folds = study.parts.folds or 0
    fits = [fit(method, here.fold(k)) for k in range(folds)] if folds else [fit(method, here)]
    inputs = stack_fits(list(fits))
    total: dict[str, float] = {}
    by_site: dict[str, Any] = {}
    for name, table in tables.items():
        predictor, outcome = predictors(_bare_site(table.on("test"), study), **inputs)
        sums = figures(predictor, outcome, minimum[name])
        by_site[name] = summary(sums)
        for key, value in sums.items():
            total[key] = total.get(key, 0.0) + value
    return {"overall": summary(total), "by_site": by_site}


def pooled_leave_one_out(
    tables: Mapping[str, StudyTable], study: Study, left_out: str, variant: str | None = None
) -> Mapping[str, Any]:
    """The pooled fit on all tables but one."""
    others = {site: table for site, table in tables.items() if site != left_out}
    return fit(find_method(study, variant), _pooled_here(others, study, variant))


def predictor_at(
    table: StudyTable, study: Study, result: Mapping[str, Any], part: str = "test"
) -> tuple[FloatArray, FloatArray]:
    """Linear predictor and outcome (n,) of a fitted linear model on one table, outside any federation."""
    return predictors(_bare_site(table.on(part), study), **stack_fits([result]))


def _bare_site(view: View, study: Study) -> Site:
    return Site(
        view, parts=_no_other_part, study=study, settings={}, sizes=study.sizes, kept=None, minimum_cell=1, seed=0,
        call_seed=0, memo=Memo(),
    )  # fmt: skip


def _no_other_part(part: str) -> View:
    raise MedfedError("this site has one part only")
