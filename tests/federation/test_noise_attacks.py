"""A coordinator that wants less noise than was sealed: other rosters, other protection, fewer survivors, other labels.

What a site refuses here it refuses from what its officer approved and what stands in its ledger, whatever is claimed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import synthetic_study
from private_study import private_engine, private_study
from secure_faults import engine_of as exact_engine

from medfed.engines.embedded import Embedded
from medfed.errors import PrivacyError
from medfed.federation import admission
from medfed.federation.admission import NO_COUNTS, OTHER_ROSTER, STRANGER, SUMS_IN_PLAIN, SUMS_SECURELY
from medfed.federation.budget import Charge, charged_events
from medfed.federation.call import Answer, Call, Failure, Opening, Own
from medfed.federation.opening import context_of
from medfed.federation.packages import step_name
from medfed.federation.private import NOT_CHARGED, charges_of
from medfed.federation.secure_site import NOT_AS_CHARGED, NOT_SEALED, OTHER_QUESTION
from medfed.federation.step import Step
from medfed.federation.units import UNITS
from medfed.methods.private_glm import PrivateGLM, clipped_gradient, patient_count
from medfed.methods.standardise import moments
from medfed.privacy import CoordinatorSide, Roster, read_message, write_message
from medfed.privacy.messages import Survivors
from medfed.study import Study

SITES = ["a", "b", "c", "d"]


@pytest.fixture
def study() -> Study:
    return private_study(SITES)


@pytest.fixture
def engine(tmp_path: Path, study: Study) -> Embedded:
    return private_engine(tmp_path / "s", study, [50, 40, 30, 20])


def call_of(study: Study, step: Step, ordinal: int = 0, **changes: Any) -> Call:
    charge = None
    if study.privacy.epsilon is not None:
        charge = charges_of(study, PrivateGLM())[step_name(step)]
    call = Call(
        study=study.hash, run="main", round=1, step=step_name(step), ordinal=ordinal, part="train", roster=tuple(SITES),
        inputs={"model": np.zeros(5)} if step is clipped_gradient else {}, protection="secure", phase="seal", charge=charge,
    )  # fmt: skip
    return replace(call, **changes)


def asked(engine: Embedded, call: Call, sites: Sequence[str] = SITES) -> set[str]:
    """What the sites say to a call: their reasons, or "sealed", or "given" where something leaves."""
    found = set()
    for _, answer in engine.exchange(call, dict.fromkeys(sites, Own())):
        if isinstance(answer, Failure):
            found.add(answer.reason)
        else:
            found.add("sealed" if dict(answer.values) == {"sealed": True} else "given")
    return found


class Refused(Exception):
    """What a site said while a sum was opened."""


def opened(
    engine: Embedded,
    study: Study,
    call: Call,
    sites: Sequence[str],
    length: int,
    *,
    purpose: Any = "noisy",
    attempt: int = 0,
    survivors: Sequence[str] | None = None,
    until: str = "",
) -> CoordinatorSide:
    """Open a call by hand, as a coordinator would that says what it likes. survivors: those it names instead of the real."""
    roster = Roster.of({site: engine.roster[site] for site in call.roster})
    opening = replace(call, phase="open", inputs={}, opening=Opening(attempt, purpose, call.inputs_digest))
    side = CoordinatorSide(context_of(opening, study, roster, length), roster, asked=sites)
    while not side.is_done and side.stage != until:
        requests: dict[str, Any] = dict(side.requests())
        if survivors is not None:
            requests = {
                site: Survivors(r.context, tuple(survivors)) if isinstance(r, Survivors) else r
                for site, r in requests.items()
                if not isinstance(r, Survivors) or site in survivors
            }
        own = {s: Own(message=None if r is None else write_message(r)) for s, r in requests.items()}
        for site, answer in engine.exchange(opening, own):
            if isinstance(answer, Failure):
                raise Refused(answer.reason)
            side.receive(site, read_message(bytes(answer.data)))  # type: ignore[arg-type]
        side.advance()
    return side


def test_the_hand_of_the_attacker_opens_what_may_be_opened(engine: Embedded, study: Study) -> None:
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    assert opened(engine, study, call, SITES, 5).survivors == tuple(SITES)


# -- the roster --------------------------------------------------------------------------------------------------------


def test_a_roster_of_two_hundred_names_makes_no_tiny_share(tmp_path: Path) -> None:
    """The study invites 200 sites; the officers approved the keys of four."""
    invited = SITES + [f"s{number:03}" for number in range(196)]
    study = private_study(invited)
    engine = private_engine(tmp_path / "s", study, [50, 40, 30, 20])
    assert asked(engine, call_of(study, clipped_gradient, roster=tuple(invited))) == {STRANGER}
    assert charged_events(engine.doors[0].store.db, "a") == {}
    assert asked(engine, call_of(study, clipped_gradient)) == {"sealed"}


@pytest.mark.parametrize("roster", [("a", "b", "c"), ("a", "b"), ("a",), ("d", "c", "b")])
def test_a_roster_of_fewer_sites_than_were_approved_is_refused(
    engine: Embedded, study: Study, roster: tuple[str, ...]
) -> None:
    found = asked(engine, call_of(study, clipped_gradient, roster=roster), roster)
    if len(roster) < 3:
        (reason,) = found
        assert reason.startswith("secure sum: a secure sum needs at least 3 sites")
    else:
        assert found == {OTHER_ROSTER}


def test_what_was_sealed_over_many_is_not_opened_over_few(
    engine: Embedded, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares for three survivors of four; over a roster of three, or were it approved, the noise would be too little."""
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    few = replace(call, roster=("a", "b", "c"))
    with pytest.raises(Refused, match=OTHER_ROSTER[:40]):
        opened(engine, study, few, ["a", "b", "c"], 5)
    # Without that rule the opening is bound to what was sealed all the same.
    monkeypatch.setattr(admission.Admission, "roster_of", lambda self, site, call: self.roster(site, call.roster))
    with pytest.raises(Refused, match=OTHER_QUESTION):
        opened(engine, study, few, ["a", "b", "c"], 5)


def test_an_opening_of_an_exact_sum_is_bound_to_its_roster_and_inputs(tmp_path: Path) -> None:
    study = synthetic_study(SITES)
    engine, _ = exact_engine(tmp_path / "s", study, [120, 90, 60, 80])
    call = call_of(study, moments)
    assert asked(engine, call) == {"sealed"}
    for other in (replace(call, roster=("a", "b", "c")), replace(call, inputs={"x": np.zeros(1)})):
        with pytest.raises(Refused, match=OTHER_QUESTION):
            opened(engine, study, other, other.roster, 15, purpose="sum")


def test_fewer_survivors_than_the_threshold_are_not_signed(engine: Embedded, study: Study) -> None:
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    with pytest.raises(Refused, match="the survivor set has 2 of 4 sites, at least 3 are needed"):
        opened(engine, study, call, SITES, 5, survivors=["a", "b"])


def test_one_key_is_opened_over_one_set(engine: Embedded, study: Study) -> None:
    """Two totals over sets that differ by one site would give its noisy answer, with a share of the noise."""
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    assert opened(engine, study, call, ["a", "b", "c"], 5).survivors == ("a", "b", "c")
    with pytest.raises(Refused, match="another survivor set for the same call"):
        opened(engine, study, call, SITES, 5, attempt=1)
    again = opened(engine, study, call, ["a", "b", "c"], 5, attempt=2)
    assert again.survivors == ("a", "b", "c")


def test_two_attempts_over_one_set_give_one_total_under_fresh_masks(engine: Embedded, study: Study) -> None:
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    totals = [opened(engine, study, call, SITES, 5, attempt=number).total for number in (0, 1)]
    assert (totals[0] == totals[1]).all()


# -- protection --------------------------------------------------------------------------------------------------------


def test_a_share_never_leaves_in_plain(engine: Embedded, study: Study) -> None:
    secure = call_of(study, clipped_gradient)
    assert asked(engine, secure) == {"sealed"}
    plain = replace(secure, protection="plain", phase="answer")
    assert asked(engine, plain) == {OTHER_QUESTION}, "under the key that is sealed"
    assert asked(engine, replace(plain, ordinal=1)) == {SUMS_SECURELY}
    assert asked(engine, replace(secure, phase="answer")) == {SUMS_IN_PLAIN}
    assert asked(engine, replace(secure, protection="plain")) == {SUMS_IN_PLAIN}


def test_a_secure_call_where_two_sites_approved_each_other_is_refused(tmp_path: Path) -> None:
    study = private_study(["a", "b"])
    engine = private_engine(tmp_path / "s", study, [50, 40])
    secure = call_of(study, clipped_gradient, roster=("a", "b"))
    assert asked(engine, secure, ["a", "b"]) == {SUMS_IN_PLAIN}
    assert asked(engine, replace(secure, protection="plain", phase="answer"), ["a", "b"]) == {"given"}


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["sum", "count"])
def test_what_carries_noise_is_opened_as_such_only(engine: Embedded, study: Study, purpose: str) -> None:
    """Under another purpose it would have another key, and could be opened over a second set."""
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    with pytest.raises(Refused, match=NOT_AS_CHARGED):
        opened(engine, study, call, SITES, 5, purpose=purpose)


def test_an_exact_sum_is_not_opened_as_a_noisy_one(tmp_path: Path) -> None:
    """That would spare it the count of units and the rules for differences."""
    study = synthetic_study(SITES)
    engine, _ = exact_engine(tmp_path / "s", study, [120, 90, 60, 3])
    call = call_of(study, moments)
    assert asked(engine, call) == {"sealed"}
    with pytest.raises(Refused, match=NOT_AS_CHARGED):
        opened(engine, study, call, SITES, 15)


def test_no_unit_is_counted_in_a_private_study(engine: Embedded, study: Study) -> None:
    charge = call_of(study, clipped_gradient).charge
    for one in (None, charge):
        call = replace(call_of(study, patient_count), step=UNITS, part="all", charge=one)
        assert asked(engine, call) == {NO_COUNTS}
        with pytest.raises(Refused, match=NO_COUNTS):
            opened(engine, study, call, SITES, 100, purpose="count")


def test_an_opening_with_another_charge_or_none_is_refused(engine: Embedded, study: Study) -> None:
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    assert call.charge is not None
    less = Charge(replace(call.charge.event, noise=2 * call.charge.event.noise))
    for charge, reason in ((None, NOT_CHARGED), (less, OTHER_QUESTION)):
        with pytest.raises(Refused, match=reason):
            opened(engine, study, replace(call, charge=charge), SITES, 5)


def test_what_was_never_sealed_is_not_opened(engine: Embedded, study: Study) -> None:
    with pytest.raises(Refused, match=NOT_SEALED):
        opened(engine, study, call_of(study, patient_count), SITES, 1)


def test_too_few_signatures_of_the_set_open_nothing(engine: Embedded, study: Study) -> None:
    """The coordinator drops two sites after their words are in: without shares of three no mask comes off."""
    call = call_of(study, clipped_gradient)
    assert asked(engine, call) == {"sealed"}
    side = opened(engine, study, call, SITES, 5, until="shares to open the sum")
    requests = side.requests()
    roster = Roster.of(engine.roster)
    opening = replace(call, phase="open", inputs={}, opening=Opening(0, "noisy", call.inputs_digest))
    for site in ("a", "b"):
        own = {site: Own(message=write_message(requests[site]))}  # type: ignore[arg-type]
        for name, answer in engine.exchange(opening, own):
            assert isinstance(answer, Answer)
            side.receive(name, read_message(bytes(answer.data)))  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match=f"needs {roster.quorum}"):
        side.advance()
    with pytest.raises(PrivacyError, match="not open yet"):
        _ = side.total
