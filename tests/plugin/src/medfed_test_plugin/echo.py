"""Steps that give back what they were sent, in sums of four sizes, for measuring; and one that takes all memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from medfed.federation.step import Input, Out, Step, Sum, step

SIZES = {"10kb": 1_280, "1mb": 131_072, "10mb": 1_310_720, "100mb": 13_107_200, "400mb": 52_428_800}


def _echo(count: int) -> Step:
    @step(takes={"model": Input(str(count), limit=1.0)}, releases={"model": Sum(str(count), limit=1.0)})
    def echo(site: Any, *, model: np.ndarray) -> Out:
        """The inputs again: as many bytes out as in."""
        return Out({"model": model})

    return echo


echo_10kb, echo_1mb, echo_10mb = _echo(SIZES["10kb"]), _echo(SIZES["1mb"]), _echo(SIZES["10mb"])
echo_100mb, echo_400mb = _echo(SIZES["100mb"]), _echo(SIZES["400mb"])
for _name, _step in (
    ("10kb", echo_10kb),
    ("1mb", echo_1mb),
    ("10mb", echo_10mb),
    ("100mb", echo_100mb),
    ("400mb", echo_400mb),
):
    _step.name = f"medfed_test_plugin.echo.echo_{_name}"


@step(releases={"none": Sum(limit=1.0)})
def all_memory(site: Any) -> Out:
    """Takes memory until there is none."""
    taken = []
    while True:
        taken.append(np.ones(2**24))


@dataclass(frozen=True)
class Echo:
    """Method: approves every step of this file and does nothing."""

    steps: ClassVar = (echo_10kb, echo_1mb, echo_10mb, echo_100mb, echo_400mb, all_memory)

    def start(self, study: Any) -> dict[str, Any]:
        return {}

    def advance(self, federation: Any, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return state

    def done(self, state: Mapping[str, Any]) -> bool:
        return True

    def result(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}
