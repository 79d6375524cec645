"""The noise that a call asks for travels with it: same digest at both ends, nothing but what medfed would write."""

import numpy as np
import pytest

from medfed.engines.nvflare.frames import BadMessage
from medfed.engines.nvflare.reasons import is_public
from medfed.engines.nvflare.wire import call_blob, call_content, read_call
from medfed.federation import budget, private
from medfed.federation.budget import Charge
from medfed.federation.call import Call, Own
from medfed.privacy.accounting import Event


def a_call(charge: Charge | None) -> Call:
    return Call(
        study="a" * 64, run="main", round=1, step="medfed:medfed.methods.private_glm.clipped_gradient", ordinal=0,
        part="train", roster=("north", "south"), inputs={"model": np.zeros(3)}, charge=charge,
    )  # fmt: skip


@pytest.mark.parametrize("charge", [None, Charge(Event(20.4642)), Charge(Event(1.9, 0.05), draws=3)])
def test_a_charge_arrives_as_it_was_sent(charge: Charge | None) -> None:
    sent = a_call(charge)
    got, _ = read_call({**call_content(sent), "kept": None, "settled": None}, _blob(sent))
    assert got.charge == charge
    assert got.digest == sent.digest
    assert ("charge" in call_content(sent)) == (charge is not None)


def _blob(call: Call) -> bytes:
    return call_blob(call, Own())


@pytest.mark.parametrize(
    "text",
    ["", "{}", "noise", 5, '{"law":"none","noise":1,"sampling_rate":1,"draws":1}',
     '{"law":"discrete-gaussian","noise":0,"sampling_rate":1,"draws":1}',
     '{"law":"discrete-gaussian","noise":NaN,"sampling_rate":1,"draws":1}', "x" * 300],
)  # fmt: skip
def test_a_charge_that_medfed_would_not_write_is_no_message(text: object) -> None:
    with pytest.raises(BadMessage):
        read_call({**call_content(a_call(None)), "charge": text}, _blob(a_call(None)))


def test_reasons_of_private_studies_may_leave_a_site() -> None:
    for module in (budget, private):
        for name in ("OVER_BUDGET", "NOT_CHARGED", "NO_EPSILON", "NOT_POSSIBLE", "NOT_BOUNDED"):
            if hasattr(module, name):
                assert is_public(getattr(module, name))
