"""A coordinator that wants a count under the minimum: it asks what it likes, of whom it likes, as often as it likes.

Each attack returns the counts of patients that it takes to have found; the caller knows which of them are true. The same
code runs against the sites as they are, where it has to find nothing, and against sites with one rule switched off.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from consortium import GENEROUS, fixed_keys, synthetic_study

from medfed.data.table import StudyTable
from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.errors import MedfedError
from medfed.federation.call import Answer, Call, Failure, Opening, Own, Purpose
from medfed.federation.opening import arrays_of, context_of, counted_releases, show
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.ring import decode
from medfed.federation.step import Step, shape_of
from medfed.federation.units import UNITS, Layout
from medfed.methods.standardise import moments
from medfed.methods.treatment_effect import arm_by_outcome, arm_by_outcome_here
from medfed.privacy import CoordinatorSide, Roster, quorum, read_message, write_message
from medfed.study import Study, study_from_dict

MINIMUM = 10
POLICY = Policy(values_per_patient=GENEROUS, replies=("site_patients",))
Columns = dict[str, np.ndarray]


def effect_study(names: Sequence[str], **changes: Any) -> Study:
    """Arm, outcome and one covariate."""
    declared = synthetic_study(list(names), features=1).model_dump(mode="json")
    declared["variables"]["arm"] = {
        "meaning": "Arm", "type": "code", "role": "arm", "codes": {"control": "c", "treated": "t"}, "reference": "control",
    }  # fmt: skip
    declared["task"] = {"kind": "treatment_effect", "coding": "reference"}
    declared["method"] = {"use": "medfed:medfed.methods.treatment_effect.TreatmentEffect", "settings": {}}
    return study_from_dict({**declared, **changes})


def patients(rng: np.random.Generator, count: int) -> Columns:
    return {
        "arm": np.array(["control", "treated"])[rng.integers(0, 2, count)],
        "event": np.array(["no", "yes"])[rng.integers(0, 2, count)],
        "x0": rng.normal(size=count),
    }


@dataclass
class Consortium:
    """Sites on disk, each with patients of its own; studies may be put to them one after the other."""

    folder: Path
    sites: tuple[str, ...]
    columns: dict[str, Columns]
    rng: random.Random
    engines: dict[str, Embedded] = field(default_factory=dict)
    ordinal: int = 0

    def rows(self, *sites: str) -> int:
        return sum(len(self.columns[site]["x0"]) for site in sites)

    def open(self, study: Study, without: Mapping[str, int] | None = None, every: slice = slice(None)) -> Embedded:
        """Doors of a study. without: so many patients of a site are not in its cohort; every: which of the others are."""
        if study.hash not in self.engines:
            tables = {}
            for index, site in enumerate(self.sites):
                keep = np.arange(self.rows(site))[(without or {}).get(site, 0) :][every]
                own = {name: column[keep] for name, column in self.columns[site].items()}
                who = np.arange(self.rows(site), dtype=np.uint64)[keep] + np.uint64(1_000_000 * (index + 1))
                tables[site] = StudyTable.from_columns(study, own, pseudonyms=who)
            engine, _ = what_if(
                self.folder, tables, study, [find_method(study)], policy=POLICY, keys=fixed_keys(list(self.sites))
            )
            self.engines[study.hash] = engine
        return self.engines[study.hash]

    def close(self) -> None:
        for engine in self.engines.values():
            engine.doors[0].store.db.close()


class Coordinator:
    """Asks one study's sites, and honours no rule itself."""

    def __init__(
        self, consortium: Consortium, study: Study, without: Mapping[str, int] | None = None, every: slice = slice(None)
    ) -> None:
        self.consortium, self.study = consortium, study
        self.engine = consortium.open(study, without, every)
        self.refusals: list[str] = []

    def _ask(self, call: Call, own: Mapping[str, Own]) -> dict[str, Answer]:
        answers = dict(self.engine.exchange(call, own))
        self.refusals += [answer.reason for answer in answers.values() if isinstance(answer, Failure)]
        return {site: answer for site, answer in answers.items() if isinstance(answer, Answer)}

    def call(self, step: str, roster: Sequence[str], **changes: Any) -> Call:
        self.consortium.ordinal += 1
        asked: dict[str, Any] = dict(
            study=self.study.hash, run=f"r{self.consortium.ordinal}", round=1, step=step, ordinal=0,
            part="all" if step == UNITS else "train", roster=tuple(roster), inputs={}, protection="secure", phase="seal",
        )  # fmt: skip
        return Call(**asked | changes)

    def alone(self, site: str, step: Step) -> dict[str, np.ndarray] | None:
        """A site's own answer to a plain sum or for a figure of its own."""
        call = self.call(step_name(step), self.consortium.sites, protection="plain", phase="answer")
        answer = self._ask(call, {site: Own()}).get(site)
        return None if answer is None else self._decoded(step, answer.values)

    def total(
        self,
        step: Step,
        over: Sequence[str],
        roster: Sequence[str] | None = None,
        call: Call | None = None,
        attempt: int = 0,
    ) -> dict[str, np.ndarray] | None:
        """A secure total over these sites; None where it was refused. roster: the others on it are said to have dropped."""
        roster = tuple(roster or over)
        units = self.opened(self.call(UNITS, roster), over, "count", b"")
        if units is None:
            return None
        call = call or self.call(step_name(step), roster)
        shown = {"units": units.count}
        if counted_releases(step):
            entries = self.opened(call, over, "count", show(shown), attempt)
            if entries is None:
                return None
            shown["entries 0"] = entries.count
        done = self.opened(call, over, "sum", show(shown), attempt)
        if done is None:
            return None
        shapes = self._shapes(step)
        return self._decoded(step, arrays_of(done.total, shapes))

    def opened(
        self, call: Call, over: Sequence[str], purpose: Purpose, shown: bytes, attempt: int = 0
    ) -> CoordinatorSide | None:
        """Seal and open one call over these sites, from keys to shares."""
        if len(self._ask(call, {site: Own() for site in over})) < len(over):
            return None
        roster = Roster.of({site: self.engine.roster[site] for site in call.roster})
        opening = replace(call, phase="open", inputs={}, opening=Opening(attempt, purpose, call.inputs_digest, shown))
        length = self._length(call, purpose, roster)
        try:
            side = CoordinatorSide(context_of(opening, self.study, roster, length), roster, asked=over)
            while not side.is_done:
                requests = side.requests()
                own = {s: Own(message=None if r is None else write_message(r)) for s, r in requests.items()}
                for site, answer in self._ask(opening, own).items():
                    side.receive(site, read_message(answer.data))
                side.advance()
        except MedfedError:
            return None
        return side

    def _length(self, call: Call, purpose: str, roster: Roster) -> int:
        if call.step == UNITS:
            return Layout(self.study, len(roster.sites)).length
        step = {step_name(s): s for s in (moments, arm_by_outcome)}[call.step]
        sizes = {name: int(np.prod(shape)) for name, shape in self._shapes(step).items()}
        return sum(sizes.values()) if purpose == "sum" else 2 * sum(sizes[name] for name in counted_releases(step))

    def _shapes(self, step: Step) -> dict[str, tuple[int, ...]]:
        return {name: shape_of(kind.shape, self.study.sizes) for name, kind in step.releases.items()}

    def _decoded(self, step: Step, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if not step.is_sum:
            return {name: np.asarray(value) for name, value in values.items()}
        return {name: decode(np.asarray(value), 1) for name, value in values.items()}


def known(total: Mapping[str, np.ndarray] | None) -> float | None:
    """How many patients a total of ``moments`` or of arm by outcome is over."""
    if total is None:
        return None
    return float(total["known"][1] if "known" in total else next(iter(total.values())).sum())


def less(one: Mapping[str, np.ndarray] | None, *others: Mapping[str, np.ndarray] | None) -> list[float]:
    """One number of patients less others: what a subtraction shows, where all of them were given."""
    found = [known(total) for total in (one, *others)]
    if any(value is None for value in found):
        return []
    first, *rest = (value for value in found if value is not None)
    return [abs(first - sum(rest))]


# -- the attacks ---------------------------------------------------------------------------------------------------------

Attack = Callable[[Consortium], tuple[list[float], float]]


def leave_out(group: Consortium, *, roster: bool) -> tuple[list[float], float]:
    """One or two sites are left out of a second roster, or are said to have dropped out of the same one."""
    fewest = 3 if roster else quorum(len(group.sites))
    few = group.sites[-group.rng.randint(1, 2 if len(group.sites) - 2 >= fewest else 1) :]
    rest = [site for site in group.sites if site not in few]
    coordinator = Coordinator(group, effect_study(group.sites))
    totals = [
        coordinator.total(moments, group.sites),
        coordinator.total(moments, rest, None if roster else group.sites),
    ]
    return less(*totals), group.rows(*few)


def retry(group: Consortium) -> tuple[list[float], float]:
    """The same call a second time, as a later attempt, without the last site."""
    coordinator = Coordinator(group, effect_study(group.sites))
    call = coordinator.call(step_name(moments), group.sites)
    first = coordinator.total(moments, group.sites, call=call)
    second = coordinator.total(moments, group.sites[:-1], group.sites, call=call, attempt=1)
    return less(first, second), group.rows(group.sites[-1])


def other_step(group: Consortium) -> tuple[list[float], float]:
    """Near-equal questions: two steps that both tell how many patients there are."""
    coordinator = Coordinator(group, effect_study(group.sites))
    steps = group.rng.sample([moments, arm_by_outcome], 2)
    totals = [coordinator.total(steps[0], group.sites), coordinator.total(steps[1], group.sites[:-1])]
    return less(*totals), group.rows(group.sites[-1])


def other_study(group: Consortium) -> tuple[list[float], float]:
    """A second study over the same patients, with one site fewer."""
    first = Coordinator(group, effect_study(group.sites)).total(moments, group.sites)
    second = Coordinator(group, effect_study(group.sites, name="second", seed=11)).total(moments, group.sites[:-1])
    return less(first, second), group.rows(group.sites[-1])


def other_cohort(group: Consortium) -> tuple[list[float], float]:
    """Two studies whose cohorts at one large site differ by one to nine patients."""
    few, site = group.rng.randint(1, MINIMUM - 1), group.rng.choice(group.sites[:2])
    studies = [(effect_study(group.sites), {}), (effect_study(group.sites, name="second"), {site: few})]
    group.rng.shuffle(studies)
    totals = [Coordinator(group, study, without).total(moments, group.sites) for study, without in studies]
    return less(*totals), few


def cohort_in_total(group: Consortium) -> tuple[list[float], float]:
    """Everybody less a cell: one to three patients of three sites are not in the second cohort, fewer than ten in all."""
    without = {site: group.rng.randint(1, 3) for site in group.sites[:3]}
    studies = [(effect_study(group.sites), {}), (effect_study(group.sites, name="second"), without)]
    totals = [Coordinator(group, study, fewer).total(moments, group.sites) for study, fewer in studies]
    return less(*totals), sum(without.values())


def figures_beside(group: Consortium) -> tuple[list[float], float]:
    """A total, less the figures that all but the last two sites give of themselves."""
    few = group.sites[-2:]
    coordinator = Coordinator(group, effect_study(group.sites))
    total = coordinator.total(arm_by_outcome, group.sites)
    figures = [coordinator.alone(site, arm_by_outcome_here) for site in group.sites if site not in few]
    return less(total, *figures), group.rows(*few)


def plain_beside(group: Consortium, *, first: bool) -> tuple[list[float], float]:
    """A study in plain over the same patients, before or after the secure one; whoever is held back in it, is hidden."""
    few = tuple(site for site in group.sites if group.rows(site) < MINIMUM)
    plain = Coordinator(group, effect_study(group.sites, name="plain", privacy={"sums": "plain", "minimum_cell": 10}))
    secure = Coordinator(group, effect_study(group.sites))
    large = [site for site in group.sites if site not in few]
    parts = [plain.alone(site, moments) for site in large] if first else []
    total = secure.total(moments, group.sites)
    parts = parts or [plain.alone(site, moments) for site in large]
    return less(total, *parts), group.rows(*few)


def small_total(group: Consortium) -> tuple[list[float], float]:
    """A total that is itself under the minimum: three sites with a few patients each."""
    few = group.sites[-3:]
    total = Coordinator(group, effect_study(group.sites)).total(moments, few)
    return less(total, {"known": np.zeros(2)}), group.rows(*few)


def small_cell(group: Consortium) -> tuple[list[float], float]:
    """A cell of arm and outcome that holds a few patients in all."""
    few = group.rng.randint(1, MINIMUM - 1)
    for site in group.sites:
        cell = (group.columns[site]["arm"] == "treated") & (group.columns[site]["event"] == "yes")
        group.columns[site]["event"] = np.where(cell, "no", group.columns[site]["event"])
    group.columns[group.sites[0]]["arm"][:few] = "treated"
    group.columns[group.sites[0]]["event"][:few] = "yes"
    total = Coordinator(group, effect_study(group.sites)).total(arm_by_outcome, group.sites)
    return [] if total is None else [float(total["patients"][1, 1])], few


ATTACKS: dict[str, Attack] = {
    "leave out by roster": lambda group: leave_out(group, roster=True),
    "leave out by dropping": lambda group: leave_out(group, roster=False),
    "retry": retry,
    "near-equal steps": other_step,
    "second study": other_study,
    "cohort of one site": other_cohort,
    "cohort in total": cohort_in_total,
    "figures beside a total": figures_beside,
    "plain, then secure": lambda group: plain_beside(group, first=True),
    "secure, then plain": lambda group: plain_beside(group, first=False),
    "small total": small_total,
    "small cell": small_cell,
}


def consortium(folder: Path, seed: int, attack: str) -> Consortium:
    """Four to seven sites, the last two of one to four patients; or six, the last three of one to three."""
    rng = random.Random(f"{seed} {attack}")
    few, most = (3, 3) if attack == "small total" else (2, 4)
    count = rng.randint(4 if few == 2 and "cohort" not in attack else 5, 7)
    sites = tuple(f"site{n}" for n in range(count))
    sizes = [rng.randint(90, 140) if at < count - few else rng.randint(1, most) for at in range(count)]
    generator = np.random.default_rng(rng.getrandbits(32))
    return Consortium(folder, sites, {s: patients(generator, n) for s, n in zip(sites, sizes, strict=True)}, rng)


def revealed(folder: Path, seed: int, attack: str) -> tuple[bool, list[str]]:
    """Whether the attack finds the count that it is after, which is under the minimum; and what the sites said no with."""
    group = consortium(folder, seed, attack)
    said: list[str] = []
    original = Coordinator.__init__

    def init(self: Coordinator, *arguments: Any) -> None:
        original(self, *arguments)
        self.refusals = said

    Coordinator.__init__ = init  # type: ignore[method-assign]
    try:
        found, true = ATTACKS[attack](group)
    finally:
        Coordinator.__init__ = original  # type: ignore[method-assign]
        group.close()
    assert 0 < true < MINIMUM
    return any(abs(value - true) < 0.5 for value in found), said
