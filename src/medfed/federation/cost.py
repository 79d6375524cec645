"""What a whole run of a study costs a site, and how far the site's budget carries it, before anything is asked.

Composed as the ledger composes it when the run comes, so that an officer hears beforehand of a study that would spend a
budget on its first sums and be refused the others. What others spend in between is not foreseen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medfed.federation.budget import Charge, Limits, over_all
from medfed.federation.packages import step_name
from medfed.federation.policy import Policy
from medfed.federation.private import charges_of, limits_of
from medfed.privacy.accounting import Event, Events, charged_epsilon, gaussian_noise
from medfed.study import Study


@dataclass(frozen=True)
class Outlook:
    """A whole run beside a site's budget. epsilon, study_delta: the study's own; spent, after: epsilon over all studies, before it and with all of it; left: see
    ``further_epsilon``; answers: noisy answers that the run asks of the site; answered: those before the first that would
    be refused; study_limit: what this study may spend here; by_study: this limit refuses it, not the budget.
    """

    epsilon: float
    study_delta: float
    budget: float
    delta: float
    spent: float
    after: float
    left: float
    answers: int
    answered: int
    study_limit: float
    by_study: bool

    @property
    def holds(self) -> bool:
        """Whether a whole run can be answered."""
        return self.answered == self.answers


def outlook(
    study: Study,
    method: Any,
    policy: Policy,
    spent: Mapping[str, Events],
    *,
    study_budget: float | None = None,
) -> Outlook | None:
    """How far the budget carries a whole run of the study, after what the ledger holds; None in a study without an epsilon.

    spent: events by study hash (``charged_events``). study_budget: what the officer lets this study spend, if another
    than its own epsilon. Raises StudyError for what can't be given noise. Where steps take turns, ``answered`` counts them
    one step after the other.
    """
    if study.privacy.epsilon is None:
        return None
    charges, planned = charges_of(study, method), method.private_calls(study)
    calls = [(charges[step_name(step)], plan.calls) for step, plan in planned.items()]
    limits = limits_of(policy, "", study)
    if study_budget is not None:
        limits = replace(limits, study_budget=study_budget)
    answers = sum(count for _, count in calls)
    low, high = 0, answers  # ``low`` are answered; one more than ``high`` is refused
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _holds(spent, study.hash, _first(calls, middle), limits) else (low, middle - 1)
    next_one = _with(spent, study.hash, _first(calls, min(low + 1, answers)))
    return Outlook(
        epsilon=study.privacy.epsilon,
        study_delta=limits.study_delta,
        budget=limits.budget,
        delta=limits.delta,
        spent=charged_epsilon(over_all(spent), limits.delta),
        after=charged_epsilon(over_all(_with(spent, study.hash, _first(calls, answers))), limits.delta),
        left=further_epsilon(over_all(spent), limits.budget, limits.delta),
        answers=answers,
        answered=low,
        study_limit=limits.study_budget,
        by_study=low < answers and charged_epsilon(over_all(next_one), limits.delta) <= limits.budget,
    )


def _first(calls: Sequence[tuple[Charge, int]], number: int) -> dict[Event, int]:
    """Events of the first so many calls."""
    found: dict[Event, int] = {}
    for charge, count in calls:
        taken = min(count, number)
        number -= taken
        if taken:
            found[charge.event] = found.get(charge.event, 0) + taken * charge.draws
    return found


def _with(spent: Mapping[str, Events], study: str, events: Events) -> dict[str, Events]:
    own = dict(spent.get(study, {}))
    for event, count in events.items():
        own[event] = own.get(event, 0) + count
    return {**spent, study: own}


def _holds(spent: Mapping[str, Events], study: str, events: Events, limits: Limits) -> bool:
    """Whether the ledger would take these events: as ``Spending.settle`` judges them."""
    within = _with(spent, study, events)
    return (
        charged_epsilon(over_all(within), limits.delta) <= limits.budget
        and charged_epsilon(within[study], limits.study_delta) <= limits.study_budget
    )


def further_epsilon(events: Events, budget: float, delta: float) -> float:
    """The largest epsilon that one further study, of one Gaussian sum, could spend within the budget; 0 where none."""

    def over(epsilon: float) -> float:
        noise = gaussian_noise(epsilon, delta)
        return charged_epsilon({**events, Event(noise): events.get(Event(noise), 0) + 1}, delta) - budget

    from scipy.optimize import brentq

    least = 1e-3
    if budget <= least or over(least) > 0:
        return 0.0
    # Composed, a further study costs less than its own epsilon.
    return float(brentq(over, least, budget * 1.01 + least, xtol=1e-3)) if over(budget * 1.01 + least) > 0 else budget
