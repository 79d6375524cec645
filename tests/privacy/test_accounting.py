"""Accountants against published values and against each other."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.errors import LedgerError
from medfed.privacy import accounting
from medfed.privacy.accounting import (
    Event,
    charged_epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise,
    merged,
    pld_epsilon,
    rdp_epsilon,
)
from medfed.privacy.plan import LARGEST_NOISE, Planned, noise_for, total_deviation


@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "rdp", "pld"), [(0.04, 1.5, 2250, 7.329, 6.769), (1.0, 10.0, 100, 4.729, 4.377)]
)
def test_accountants_give_the_published_epsilons(rate: float, sigma: float, steps: int, rdp: float, pld: float) -> None:
    events = {Event(sigma, rate): steps}
    assert rdp_epsilon(events, 1e-5) == pytest.approx(rdp, abs=5e-4)
    assert charged_epsilon(events, 1e-5) == pytest.approx(pld, abs=5e-4)


def test_analytic_gaussian_noise_is_the_published_one() -> None:
    assert gaussian_noise(1.0, 1e-5) == pytest.approx(3.7306316, abs=5e-8)
    assert gaussian_epsilon(3.7306316, 1e-5) == pytest.approx(1.0, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 300), st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_what_is_charged_is_never_below_the_exact_epsilon(noise: float, delta: float) -> None:
    exact, charged = gaussian_epsilon(noise, delta), charged_epsilon({Event(noise): 1}, delta)
    assert exact <= charged <= exact * 1.002 + 1e-3
    if exact > 0:
        assert gaussian_delta(noise, exact) == pytest.approx(delta, rel=1e-6)


def test_two_studies_compose_to_less_than_their_sum_and_more_than_either() -> None:
    first, second = {Event(20.0): 30}, {Event(2.0, 0.05): 400}
    alone = [charged_epsilon(events, 1e-5) for events in (first, second)]
    together = charged_epsilon({**first, **second}, 1e-5)
    assert max(alone) < together < sum(alone)
    assert together <= rdp_epsilon({**first, **second}, 1e-5)


def test_unsampled_events_compose_to_one_gaussian() -> None:
    events = {Event(3.0): 2, Event(6.0): 4}
    assert [event.noise for event in merged(events)] == pytest.approx([math.sqrt(3.0)])
    one_by_one = pld_epsilon({Event(3.0, 0.999999999): 2, Event(6.0, 0.999999999): 4}, 1e-5, 1e-3)
    assert charged_epsilon(events, 1e-5) == pytest.approx(one_by_one, abs=2e-3)


def test_every_further_event_costs_something() -> None:
    spent = [charged_epsilon({Event(20.0): count}, 1e-5) for count in (0, 1, 10, 11, 1000)]
    assert spent == sorted(set(spent))
    assert spent[0] == 0.0


def test_accountants_that_disagree_stop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "pld_epsilon", lambda events, delta, interval: 99.0)
    with pytest.raises(LedgerError, match="contradict"):
        charged_epsilon({Event(7.77): 3}, 1e-5)


@pytest.mark.parametrize("event", [(0.0, 1.0), (1.0, 0.0), (1.0, 1.1), (math.nan, 1.0)])
def test_an_event_without_noise_is_none(event: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="noise is above 0"):
        Event(*event)


# -- plans -----------------------------------------------------------------------------------------------------------

PLANS = [
    {"a": Planned(1)},
    {"count": Planned(1, weight=0.3), "gradient": Planned(30)},
    {"count": Planned(1, weight=0.3), "gradient": Planned(500, sampling_rate=0.05)},
    {"local": Planned(20, draws=5)},
]


@pytest.mark.parametrize("planned", PLANS, ids=lambda p: "-".join(p))
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_a_plan_spends_its_epsilon_and_not_more(planned: dict[str, Planned], epsilon: float) -> None:
    noise = noise_for(planned, epsilon, 1e-5)

    def spent(factor: float) -> float:
        events: dict[Event, int] = {}
        for name, plan in planned.items():
            event = Event(noise[name].noise * factor, noise[name].sampling_rate)
            events[event] = events.get(event, 0) + plan.calls * plan.draws
        return charged_epsilon(events, 1e-5)

    assert spent(1.0) <= epsilon < spent(0.998)


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_a_small_epsilon_is_spent_to_three_digits(epsilon: float) -> None:
    noise = noise_for({"a": Planned(2)}, epsilon, 1e-5)["a"]
    assert 0.999 * epsilon < charged_epsilon({noise: 2}, 1e-5) <= epsilon
    assert noise.noise == pytest.approx(gaussian_noise(epsilon, 1e-5) * math.sqrt(2), rel=2e-3)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_an_epsilon_near_nothing_is_refused_and_not_searched_for(rate: float) -> None:
    with pytest.raises(ValueError, match="times a patient's bound"):
        noise_for({"a": Planned(40, sampling_rate=rate)}, 1e-4, 1e-5)


def test_twice_the_weight_is_half_the_noise() -> None:
    noise = noise_for({"a": Planned(3), "b": Planned(5, weight=2.0)}, 1.0, 1e-5)
    assert noise["a"].noise == pytest.approx(2 * noise["b"].noise)


def test_a_plan_that_would_drown_the_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{LARGEST_NOISE:g}"):
        noise_for({"gradient": Planned(10_000)}, 0.01, 1e-5)


def test_full_noise_at_each_site_and_shares() -> None:
    assert total_deviation(2.0, 4, 1) == 4.0
    assert total_deviation(2.0, 4, 3) == pytest.approx(2.0 * math.sqrt(4 / 3))
