"""Totals are the plain ones, bit for bit, whoever drops out and when; below the quorum there is none."""

import random
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_rounds import STAGES, add_up, consortium, count_over, exchange, plain_total, random_words

from medfed.errors import PrivacyError
from medfed.federation.ring import decode, encode
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.neighbours import graph_of
from medfed.privacy.roster import quorum

# Masked words arrived before a site fell silent: it is counted.
COUNTED = ("a signature of the survivors", "shares to open the sum", None)


def patterns(sites: tuple[str, ...], most: int) -> list[dict[str, str]]:
    """Every way in which at most this many sites fall silent, each at any stage."""
    return [
        dict(zip(gone, stages, strict=True))
        for count in range(most + 1)
        for gone in combinations(sites, count)
        for stages in product(STAGES, repeat=count)
    ]


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_every_dropout_pattern_at_or_above_the_threshold_gives_the_exact_total(count: int) -> None:
    group = consortium(count)
    values = random_words(group.roster.sites, 7, seed=count)
    for attempt, drops in enumerate(patterns(group.roster.sites, count - quorum(count))):
        done = add_up(group, values, drops=drops, round=attempt)
        expected = tuple(site for site in group.roster.sites if drops.get(site) in COUNTED)
        assert done.survivors == expected
        assert (done.total == plain_total(values, expected)).all(), drops


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_below_the_threshold_nothing_is_opened(count: int) -> None:
    group = consortium(count)
    values = random_words(group.roster.sites, 2, seed=count)
    one_too_many = count - quorum(count) + 1
    for attempt, gone in enumerate(combinations(group.roster.sites, one_too_many)):
        for stage in STAGES:
            with pytest.raises(PrivacyError, match=rf"the secure sum needs {quorum(count)}; missing: .*{gone[0]}"):
                add_up(group, values, drops=dict.fromkeys(gone, stage), round=attempt)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_dropouts_among_100_sites_give_the_exact_total(seed: int) -> None:
    draw = random.Random(seed)
    group = consortium(100, seed)
    values = random_words(group.roster.sites, 50, seed)
    drops = {site: draw.choice(STAGES) for site in draw.sample(group.roster.sites, 100 - quorum(100))}
    done = add_up(group, values, drops=drops)
    expected = tuple(site for site in group.roster.sites if drops.get(site) in COUNTED)
    assert done.survivors == expected
    assert (done.total == plain_total(values, expected)).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_more_random_dropouts_among_100_sites(seed: int) -> None:
    draw = random.Random(seed)
    test_random_dropouts_among_100_sites_give_the_exact_total(draw.randrange(10, 10**6))


@pytest.mark.slow
def test_dropouts_on_a_neighbour_graph_of_220_sites_give_the_exact_total() -> None:
    draw = random.Random(5)
    group = consortium(220, 5)
    values = random_words(group.roster.sites, 20, 5)
    drops = {site: draw.choice(STAGES) for site in draw.sample(group.roster.sites, 66)}
    done = add_up(group, values, drops=drops)
    assert not graph_of(220, group.roster.sites, "any").is_complete
    assert (done.total == plain_total(values, done.survivors)).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-4000, 4000), min_size=3, max_size=5), st.sampled_from([1, 2]), st.integers(0, 2**32))
def test_real_numbers_come_back_as_from_a_plain_sum(numbers: list[float], limbs: int, seed: int) -> None:
    group = consortium(len(numbers), seed)
    coded = {
        site: encode(np.array([number]), limbs).reshape(-1)
        for site, number in zip(group.roster.sites, numbers, strict=True)
    }
    shape = (1,) if limbs == 1 else (1, 2)
    total = decode(add_up(group, coded).total.reshape(shape), limbs)
    assert total == decode(np.sum(list(coded.values()), axis=0).reshape(shape), limbs)


def test_a_sum_follows_its_count_and_both_are_exact() -> None:
    group = consortium(4)
    values = random_words(group.roster.sites, 9)
    count = count_over(group)
    assert count.totals.tolist() == [80]
    assert count.sites == count.signers == group.roster.sites
    context = group.context(9, purpose="sum")
    done = exchange(group, CoordinatorSide(context, group.roster), group.sides(context), values, count=count)
    assert (done.total == plain_total(values, group.roster.sites)).all()


def test_a_count_of_the_survivors_lets_the_sum_go_on_without_a_lost_site() -> None:
    group = consortium(4)
    values = random_words(group.roster.sites, 9)
    whole, left = count_over(group), count_over(group, drops={"site001": "keys"}, ordinal=1)
    context = group.context(9, purpose="sum")
    coordinator, sides = CoordinatorSide(context, group.roster), group.sides(context)
    lost = {"site001": "masked words"}
    exchange(group, coordinator, sides, values, drops=lost, count=whole, until="a signature of the survivors")
    with pytest.raises(PrivacyError, match="not the sites whose units were counted"):
        sides["site000"].answer(coordinator.requests()["site000"])
    done = exchange(group, coordinator, sides, values, drops=lost, count=left)
    assert (done.total == plain_total(values, left.sites)).all()


def test_a_second_attempt_has_fresh_masks_and_the_same_total() -> None:
    group = consortium(4)
    values = random_words(group.roster.sites, 9)
    words = []
    for attempt in range(2):
        context = group.context(9, attempt=attempt)
        sides = group.sides(context)
        done = exchange(group, CoordinatorSide(context, group.roster), sides, values)
        assert (done.total == plain_total(values, group.roster.sites)).all()
        words.append([message.values for message in group.heard if type(message).__name__ == "Masked"][-4:])
    assert not any((one == other).any() for one, other in zip(*words, strict=True))


def test_a_lost_reply_is_sent_again_byte_for_byte() -> None:
    group = consortium(3)
    values = random_words(group.roster.sites, 9)
    context = group.context(9)
    coordinator, sides = CoordinatorSide(context, group.roster), group.sides(context)
    while not coordinator.is_done:
        for site, request in coordinator.requests().items():
            first = sides[site].answer(request, values[site])
            assert sides[site].answer(request, values[site]) is first
            coordinator.receive(site, first)
        coordinator.advance()
    assert (coordinator.total == plain_total(values, group.roster.sites)).all()


def test_a_site_leaves_the_callers_words_as_they_are() -> None:
    group = consortium(3)
    values = random_words(group.roster.sites, 9)
    before = {site: words.copy() for site, words in values.items()}
    add_up(group, values)
    assert all((values[site] == before[site]).all() for site in values)
