"""The coordinator's verbs: sum, gather, and whom they ask. A verb is journaled before a method sees its outcome."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import canonical_json, digest, pack
from medfed.errors import LISTED, FederationError, LedgerError
from medfed.federation import gate
from medfed.federation.budget import Charge
from medfed.federation.call import Answer, Call, Failure, Own, Protection
from medfed.federation.opening import check_bounds, decoded, ring_of
from medfed.federation.packages import Method, step_name
from medfed.federation.private import noise_shares, release_deviation
from medfed.federation.ring import decode
from medfed.federation.secure import SecureSums
from medfed.federation.shown_counts import merges_under
from medfed.federation.step import Reply, Step, bind, shape_of
from medfed.privacy.plan import total_deviation
from medfed.privacy.roster import MINIMUM_SITES
from medfed.study import Study

_NOTHING = Own()
NOT_AS_DECLARED = "its answer is not what the step declares"
TOO_FEW = (
    "{answered} of {asked} sites answered '{step}', the study needs {needed} ({reasons}). "
    "Mend what keeps them away, then `medfed resume`: the same question is asked again"
)
WITHOUT = {
    "refused": "{site} refused: {reason}",
    "failed": "{site} failed: {reason}",
    "late": "{site} late: {reason}",
    "unreachable": "{site} unreachable: {reason}",
}


@dataclass(frozen=True)
class Total:
    """Sums over the sites that were counted: ``total["score"]``; who they are; why others are not among them.

    noise: standard deviation of the noise in each entry of a sum, by name; empty where there is none, and for metered
    releases, whose noise went through the step. merged: whether neighbouring counts were merged before the total was opened,
    each merged cell's standing at its last place (``merging``).
    """

    values: Mapping[str, NDArray[np.float64]]
    sites: tuple[str, ...]
    failures: Mapping[str, Failure]
    noise: Mapping[str, float] = field(default_factory=dict)
    merged: bool = False

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.values[name]


class RunContext(Protocol):
    """What a federation needs of the run it belongs to (the runner's)."""

    study: Study
    path: str
    counted: dict[str, dict[str, str]]
    settled: dict[str, dict[str, str]]
    ordinals: dict[tuple[int, str], int]
    protection: Protection
    secure: SecureSums | None
    charges: Mapping[str, Charge]

    def exchange(self, call: Call, own: Mapping[str, Own]) -> Iterator[tuple[str, Answer | Failure]]: ...
    def journaled(self, key: str) -> tuple[str, Mapping[str, Any]] | None: ...
    def journal(self, call: Call, question: str, outcome: Mapping[str, Any]) -> None: ...
    def child(self, name: str, method: Method, federation: "Federation", variant: str | None) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Federation:
    """The sites as a method sees them in one round. Selections return a new federation."""

    run: RunContext = field(repr=False)
    round: int
    sites: tuple[str, ...]
    part: str | None = None
    fold_number: int | None = None
    variant: str | None = None

    @property
    def study(self) -> Study:
        return self.run.study

    @property
    def is_secure(self) -> bool:
        """Whether sums are seen as totals only."""
        return self.run.protection == "secure"

    def on(self, part: str) -> "Federation":
        """Ask about this part (train, valid, test) instead of the first that a step reads."""
        return replace(self, part=part)

    def fold(self, number: int) -> "Federation":
        """Ask within one fold: ``train`` becomes all rows outside it, ``test`` the rows in it."""
        return replace(self, fold_number=number)

    def roster(self, sites: Sequence[str]) -> "Federation":
        """Only these sites."""
        chosen = set(sites)
        return replace(self, sites=tuple(site for site in self.sites if site in chosen))

    def sample(self, fraction: float) -> "Federation":
        """A share of the sites, at least two and the study's minimum, drawn from study seed, run path and round.

        Where sums are secure, groups of three and more that stay the same over all rounds are drawn instead of sites: of
        other samples the totals of two rounds would give one or two sites away. Where they carry noise as well, all sites
        are asked: their noise is spread over so many of them.
        """
        if self.run.protection == "secure" and self.study.privacy.epsilon is not None:
            return self
        if self.run.protection == "secure":
            return self._sample_groups(fraction)
        # A sample of one would be a question to a site alone.
        count = max(2, self.study.sites.minimum, round(fraction * len(self.sites)))
        if count >= len(self.sites):
            return self
        words = (self.study.seed, self.run.path.partition("/")[2], self.round)
        chosen = random.Random("|".join(map(str, words))).sample(sorted(self.sites), count)
        return self.roster(chosen)

    def _sample_groups(self, fraction: float) -> "Federation":
        words = (self.study.seed, self.run.path.partition("/")[2])
        order = sorted(self.sites)
        random.Random("|".join(map(str, words))).shuffle(order)
        count = max(1, len(order) // MINIMUM_SITES)
        groups = [order[start::count] for start in range(count)]
        wanted = max(1, -(-self.study.sites.minimum * count // len(order)), round(fraction * count))
        drawn = random.Random("|".join(map(str, (*words, self.round)))).sample(range(count), min(wanted, count))
        return self.roster([site for group in drawn for site in groups[group]])

    def child(self, name: str, method: Method, variant: str | None = None) -> Mapping[str, Any]:
        """Run a method inside this round, on these sites; the parent's keeps can be read, its own are written."""
        return self.run.child(name, method, self, variant if variant is not None else self.variant)

    def sum(self, step: Step, **inputs: Any) -> Total:
        """Add the step's releases over the sites, in the ring: exact, and independent of order and engine.

        Raises FederationError when fewer sites than the study's minimum were counted; nothing is journaled then.
        """
        if not step.is_sum:
            raise FederationError(f"{step.name} gives replies of single sites: ask for it with gather, not sum")
        study = self.study

        expected = _declared_arrays(step, inputs, study)
        needed = min(study.sites.minimum, len(self.sites))

        def collect_plain(call: Call, own: Mapping[str, Own]) -> dict[str, Any]:
            total: dict[str, NDArray[np.int64]] = {}
            counted, failures = [], {}
            for site, answer in self._once_each(self.run.exchange(call, own)):
                answer = _as_declared(answer, expected)
                if isinstance(answer, Failure):
                    failures[site] = {"kind": answer.kind, "reason": answer.reason}
                    continue
                counted.append(site)
                for name, value in answer.values.items():
                    if name in total:
                        total[name] += value
                    else:
                        total[name] = np.array(value)
            if len(counted) < needed:
                raise FederationError(_too_few(step, self.sites, counted, failures, needed))
            values = {name: decode(value, *ring_of(step.releases[name], study)) for name, value in total.items()}  # type: ignore[arg-type]
            return {"values": values, "sites": sorted(counted), "failures": dict(sorted(failures.items()))}

        def collect_secure(call: Call, own: Mapping[str, Own]) -> dict[str, Any]:
            assert self.run.secure is not None
            shapes = {name: shape for name, (_, shape) in expected.items()}
            length = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
            found = self.run.secure.total(call, own, step, length, shapes)
            failures = {site: {"kind": f.kind, "reason": f.reason} for site, f in found.failures.items()}
            if len(found.sites) < needed:
                raise FederationError(_too_few(step, self.sites, found.sites, failures, needed))
            values = decoded(found.words, step, shapes, study)
            check_bounds(values, step, study, len(found.sites))
            return {"values": values, "sites": list(found.sites), "failures": failures}

        secure = self.run.protection == "secure"
        try:
            outcome = self._once(step, inputs, {}, collect_secure if secure else collect_plain)
        except FederationError as problem:
            if gate.TOO_STEEP in str(problem):
                raise TooSteep.of(step, inputs, study, self.variant) from None
            raise
        noise = self._noise(step, len(outcome["sites"]))
        merged = secure and merges_under(step, study)
        return Total(outcome["values"], tuple(outcome["sites"]), _failures(outcome), noise, merged)

    def _noise(self, step: Step, counted: int) -> dict[str, float]:
        charge = self.run.charges.get(step_name(step))
        if charge is None or not step.is_bounded:
            return {}
        shares = noise_shares(self.run.protection, len(self._named))
        return {name: total_deviation(release_deviation(step, name, charge), counted, shares) for name in step.releases}

    @property
    def _named(self) -> tuple[str, ...]:
        """The roster of a call: the sites that are asked. Of noisy secure sums all that the sites approved, whoever is asked:
        over so many the noise is spread."""
        if self.run.secure is None or self.study.privacy.epsilon is None:
            return self.sites
        return tuple(site for site in self.study.sites.invited if site in self.run.secure.keys)

    def gather(
        self, step: Step, each: Mapping[str, Mapping[str, Any]] | None = None, **inputs: Any
    ) -> dict[str, Mapping[str, Any] | Failure]:
        """Every site's own reply, or its failure. ``each``: inputs for one site only."""
        if any(not isinstance(kind, Reply) for kind in step.releases.values()):
            raise FederationError(f"{step.name} releases sums: ask for it with sum, not gather")
        if self.study.privacy.epsilon is not None:
            raise FederationError(f"{step.name}: the study has an epsilon, and single replies can't be given noise")

        def collect(call: Call, own: Mapping[str, Own]) -> dict[str, Any]:
            replies, failures = {}, {}
            for site, answer in self._once_each(self.run.exchange(call, own)):
                given = {**inputs, **(each or {}).get(site, {})}
                answer = _as_declared(answer, _declared_arrays(step, given, self.study))
                if isinstance(answer, Failure):
                    failures[site] = {"kind": answer.kind, "reason": answer.reason}
                else:
                    replies[site] = dict(answer.values)
            return {
                "values": dict(sorted(replies.items())),
                "sites": sorted(replies),
                "failures": dict(sorted(failures.items())),
            }

        outcome = self._once(step, inputs, each or {}, collect)
        replies: dict[str, Mapping[str, Any] | Failure] = dict(outcome.get("values") or {})
        return replies | _failures(outcome)

    def _once_each(self, answers: Iterator[tuple[str, Answer | Failure]]) -> Iterator[tuple[str, Answer | Failure]]:
        """The first answer of every site that was asked; a site that nobody speaks of is unreachable."""
        waiting = dict.fromkeys(self.sites)
        for site, answer in answers:
            if site in waiting:
                del waiting[site]
                yield site, answer
        for site in waiting:
            yield site, Failure("unreachable", "nothing was heard of the site")

    def _once(self, step: Step, inputs: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]], collect: Any) -> Any:
        run, slot = self.run, step.keeps.slot if step.keeps else None
        name = step_name(step)
        ordinal = run.ordinals.get((self.round, name), 0)
        run.ordinals[self.round, name] = ordinal + 1
        part = self.part or step.reads[0]
        if self.fold_number is not None:
            part = f"{part}:{self.fold_number}"
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        call = Call(
            study=run.study.hash,
            run=run.path,
            round=self.round,
            step=name,
            ordinal=ordinal,
            part=part,
            roster=self._named,
            inputs=arrays,
            variant=self.variant,
            protection=run.protection if step.is_sum else "plain",
            phase="seal" if step.is_sum and run.protection == "secure" else "answer",
            charge=run.charges.get(name),
        )
        if call.charge is None and self.study.privacy.epsilon is not None:
            raise FederationError(f"{name} is not among the private calls that the method planned")
        counted = run.counted.get(slot, {}) if slot else {}
        settled = run.settled.get(slot, {}) if slot else {}
        if slot or each:
            own = {s: Own(counted.get(s), settled.get(s), each.get(s, {})) for s in self.sites}
        else:
            own = dict.fromkeys(self.sites, _NOTHING)
        question = digest(call.digest, canonical_json(counted), pack(each) if each else b"")
        known = run.journaled(call.key)
        if known is not None:
            if known[0] != question:
                raise FederationError(
                    f"{call.key}: the method asked something else than before the restart; it is not deterministic "
                    "and the run can't go on"
                )
            outcome = known[1]
        else:
            outcome = collect(call, own)
            run.journal(call, question, outcome)
        if slot and step.keeps and step.keeps.writes:
            run.counted.setdefault(slot, {}).update(dict.fromkeys(outcome["sites"], call.key))
        return outcome


class TooSteep(FederationError):
    """Sites hold a model for steep enough to isolate patients: what range, or what separation, makes it so."""

    @staticmethod
    def of(step: Step, inputs: Mapping[str, Any], study: Study, variant: str | None) -> "TooSteep":
        """It names the steepest column, from public numbers only."""
        low, high, _ = step.ranges(study, variant) if step.ranges else gate.declared_ranges(study)
        reach = gate.reach_of(step, inputs, study, variant)
        steepest = 1 + int(reach[:, 1:].max(0).argmax())
        name = (study.formula(variant).names if step.ranges else study.design.names)[steepest]
        lowest, highest = low[steepest], high[steepest]
        return TooSteep(
            f"{name!r} makes the model so steep over its declared range, {lowest:g} to {highest:g}, that the sites "
            "refuse it; narrow the range in the study to what the values can be, and if they fill it, leave the column out: it "
            "separates the outcome, or orders the events perfectly"
        )


def _declared_arrays(
    step: Step, inputs: Mapping[str, Any], study: Study
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of every array that an answer to these inputs has; sums are coded for the ring."""
    sizes = bind(step.takes, {name: np.asarray(value) for name, value in inputs.items()}, study.sizes)
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for name, declared in step.releases.items():
        shape = shape_of(declared.shape, sizes)
        if isinstance(declared, Reply):
            expected[name] = (np.dtype(np.float64), shape)
        else:
            limbs = declared.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
            expected[name] = (np.dtype(np.int64), shape if limbs == 1 else (*shape, 2))
    return expected


def _as_declared(
    answer: Answer | Failure, expected: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> Answer | Failure:
    """An answer whose arrays are what the step declares; otherwise that site's failure, which stops nobody else."""
    if isinstance(answer, Failure):
        return answer
    try:
        values = answer.values
    except LedgerError:
        return Failure("failed", NOT_AS_DECLARED)
    if values.keys() != expected.keys():
        return Failure("failed", NOT_AS_DECLARED)
    for name, (kind, shape) in expected.items():
        array = np.asarray(values[name])
        if array.dtype != kind or array.shape != shape or (kind.kind == "f" and not np.isfinite(array).all()):
            return Failure("failed", NOT_AS_DECLARED)
    return answer


def _failures(outcome: Mapping[str, Any]) -> dict[str, Failure]:
    return {site: Failure(**failure) for site, failure in (outcome.get("failures") or {}).items()}


def _too_few(
    step: Step, asked: Sequence[str], counted: Sequence[str], failures: Mapping[str, Mapping[str, str]], needed: int
) -> str:
    reasons = (WITHOUT[f["kind"]].format(site=site, reason=f["reason"]) for site, f in sorted(failures.items()))
    return TOO_FEW.format(answered=len(counted), asked=len(asked), step=step.name.rpartition(".")[2], needed=needed,
                          reasons=LISTED.join(reasons))  # fmt: skip
