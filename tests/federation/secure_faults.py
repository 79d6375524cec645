"""What can happen to a secure sum on its way: sites that fall silent in a stage, doors that start anew, a listening coordinator."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from consortium import GENEROUS, fixed_keys, synthetic_study, synthetic_tables

from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.federation.units import UNITS
from medfed.privacy import read_message
from medfed.study import Study

SITES = ["a", "b", "c", "d"]
ROWS = [120, 90, 60, 3]
# Every stage of opening, by the request that asks for it.
STAGES = ("keys", "KeyList", "Delivery", "Survivors", "SignedSurvivors", "Transcript")
OPEN = Policy(values_per_patient=GENEROUS)


def stage_of(call: Call, own: Own) -> str:
    """What a site is asked in a call: "seal", or the request that opens a sum."""
    if call.phase != "open":
        return call.phase
    return "keys" if own.message is None else type(read_message(own.message)).__name__


class Proxy:
    """An engine that lets ``fault(call, site, stage)`` answer instead of a site, and keeps all that passes."""

    def __init__(self, engine: Any, fault: Callable[[Call, str, str], Failure | None] | None = None) -> None:
        self.engine, self.fault = engine, fault
        self.sites = engine.sites
        self.heard: list[tuple[Call, str, Own, Answer | Failure]] = []

    @property
    def protections(self) -> tuple[str, ...]:
        return self.engine.protections

    @property
    def roster(self) -> Mapping[str, str]:
        return self.engine.roster

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        faults = {
            site: failure
            for site, mine in own.items()
            if self.fault is not None
            and call.phase != "head"
            and (failure := self.fault(call, site, stage_of(call, mine))) is not None
        }
        asked = {site: mine for site, mine in own.items() if site not in faults}
        for site, answer in (*faults.items(), *self.engine.exchange(call, asked, deadline)):
            self.heard.append((call, site, own[site], answer))
            yield site, answer


GONE = Failure("unreachable", "no connection")


class Silence:
    """A site that says nothing from one stage of one kind of call on, ``for`` so many questions."""

    def __init__(self, sites: set[str], stage: str, *, units: bool, skip: int = 0, times: int = 10**6) -> None:
        self.sites, self.stage, self.units, self.skip, self.times = sites, stage, units, skip, times
        self.begun: set[str] = set()

    def __call__(self, call: Call, site: str, stage: str) -> Failure | None:
        if site not in self.sites:
            return None
        if site not in self.begun:
            if stage != self.stage or (call.step == UNITS) != self.units:
                return None
            if self.skip:
                self.skip -= 1
                return None
            self.begun.add(site)
        if self.times <= 0:
            return None
        self.times -= 1
        return GONE


def study_of(sites: list[str] = SITES, **changes: Any) -> Study:
    return synthetic_study(sites, **changes)


def engine_of(
    folder: Path, study: Study, rows: list[int] = ROWS, policy: Any = OPEN, seed: int = 0, **options: Any
) -> tuple[Embedded, dict[str, str]]:
    sites = list(study.sites.invited)
    method = options.pop("method", None) or find_method(study)
    return what_if(
        folder,
        synthetic_tables(study, rows, seed=seed),
        study,
        [method],
        policy=policy,
        keys=fixed_keys(sites),
        **options,
    )


def run(folder: Path, engine: Any, study: Study, method: Any = None, name: str = "main") -> dict[str, Any]:
    runner = Runner(folder, engine, study, durability="process")
    try:
        return dict(runner.execute(method or find_method(study), name))
    finally:
        runner.close()
