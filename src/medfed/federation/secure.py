"""The coordinator's part in secure sums: what is sealed at the sites is opened over many of them at once, as a total.

First a signed count of units, once a roster and table; then the sum. Everything that binds is in the runner's store before
it is said: the number of an attempt before it begins, the set before any site is asked to sign it. So a runner that is
killed anywhere goes on: the same set, a fresh attempt, the same total. What a site refuses, or that one is missing,
is told by name.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, PolicyViolation, PrivacyError
from medfed.federation.call import Answer, Call, Failure, Opening, Own, Purpose
from medfed.federation.merging import NoCells
from medfed.federation.opening import (
    asked_of_all,
    context_of,
    counted_releases,
    entries_name,
    entries_question,
    entry_shapes,
    show,
)
from medfed.federation.openings import ATTEMPT_VOID, GIVES_AWAY, VISIBLE, flags_of
from medfed.federation.secure_sentences import check_quorum, gone, missing_from, not_without, reasons_of, short_name
from medfed.federation.shown_counts import CountsShown
from medfed.federation.step import Step
from medfed.federation.store import RunnerStore
from medfed.federation.units import UNITS, Layout, lots_of
from medfed.privacy import CoordinatorSide, Roster, SignedCount, given_away, read_message, write_message
from medfed.study import Study

IntArray = NDArray[np.int64]
Exchange = Callable[[Call, Mapping[str, Own]], Iterator[tuple[str, Answer | Failure]]]

LEFT_OUT = "a total with this site, beside the earlier ones without it, would give its terms away"
OTHER_KEEP = "what it has kept is of another call than that of most sites, and a total over both would show its terms"
MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class Opened:
    """A total: its words, the sites in it, and why the others are not."""

    words: IntArray
    sites: tuple[str, ...]
    failures: Mapping[str, Failure]


class _GoOn(Exception):
    """Sites were lost, and the sum may go on over the rest: their units are counted anew."""

    def __init__(self, sites: tuple[str, ...]) -> None:
        super().__init__()
        self.sites = sites


class _CountAgain(Exception):
    """A study table changed since its units were counted."""


@dataclass
class _Opening:
    """One call to be opened. must: the sites that have to be in it, where that is known before."""

    call: Call
    own: Mapping[str, Own]
    roster: Roster
    length: int
    purpose: Purpose
    asked: tuple[str, ...]
    must: tuple[str, ...] = ()
    shown: bytes = b""
    tables: Mapping[str, str] | None = None

    @property
    def kept(self) -> str | None:
        """The earlier call whose keep these sites read, the same at all of them."""
        return next((own.kept for site, own in self.own.items() if site in self.asked), None)


class SecureSums:
    """Opens the sums of one run. keys: the public key of every site that may be asked; exchange: carries a call."""

    def __init__(self, study: Study, store: RunnerStore, keys: Mapping[str, str], exchange: Exchange) -> None:
        self.study = study
        self.store = store
        self.keys = keys
        self.exchange = exchange

    def total(
        self, call: Call, own: Mapping[str, Own], step: Step, length: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Opened:
        """The sum of what the call's sites have to say, over as many of them as may be counted.

        length: words of one answer; shapes: of its coded releases, by name. Raises FederationError, which says who is missing or refuses and what to do; the same
        question is asked again on resume.
        """
        try:
            roster = Roster.of({site: self.keys[site] for site in call.roster})
        except PrivacyError as problem:
            raise FederationError(f"{short_name(step.name)}: {problem}") from None
        failures: dict[str, Failure] = {}
        sealed = self._sealed(call, own, _of_one_keep(own, failures), failures)
        if call.charge is not None:
            return self._noisy(call, own, roster, sealed, length, failures)
        sites = self._choose(sealed, roster, step, failures)
        for _ in range(MOST_ATTEMPTS):
            try:
                count = self._units(call, roster, sites, failures)
                self._refuse_small_cells(call, roster, count)
                found = self._sum(call, own, roster, length, step, shapes, count, failures)
            except _GoOn as lost:
                sites = lost.sites
                continue
            except _CountAgain:
                self._forget(call, roster, count.sites)
                continue
            counted = found.survivors
            return Opened(found.total, counted, {s: f for s, f in sorted(failures.items()) if s not in counted})
        raise FederationError(
            f"{short_name(step.name)}: sites came and went too often to open the total; `medfed resume` asks again"
        )

    # -- what is sealed, and over whom it may be opened ----------------------------------------------------------------

    def _sealed(
        self, call: Call, own: Mapping[str, Own], asked: Sequence[str], failures: dict[str, Failure]
    ) -> tuple[str, ...]:
        """The sites that have sealed an answer; nothing of it has left them."""
        sealed = []
        for site, answer in self.exchange(call, {site: own[site] for site in asked}):
            if isinstance(answer, Failure):
                failures[site] = answer
            else:
                sealed.append(site)
        return tuple(sorted(sealed))

    def _choose(
        self, sealed: tuple[str, ...], roster: Roster, step: Step, failures: dict[str, Failure]
    ) -> tuple[str, ...]:
        """The sites to ask: all that have sealed, or those of the totals so far, where one more or less would be given away."""
        earlier, visible = self._earlier()
        chosen = sealed
        if earlier and given_away(sealed, earlier, visible=visible):
            within = [names for names in earlier if names <= set(sealed)]
            if not within:
                raise FederationError(missing_from(step.name, earlier[-1] - set(sealed), failures))
            chosen = max((tuple(sorted(names)) for names in within), key=len)
            failures |= {site: Failure("refused", LEFT_OUT) for site in sealed if site not in chosen}
        check_quorum(chosen, roster, step.name, failures)
        return chosen

    def _noisy(
        self,
        call: Call,
        own: Mapping[str, Own],
        roster: Roster,
        sealed: tuple[str, ...],
        length: int,
        failures: dict[str, Failure],
    ) -> Opened:
        """The total of answers that carry noise, over all that sealed one and stay. Nothing is counted before.

        Any quorum of the roster will do, whatever the totals so far were over: the noise of so many is enough.
        """
        check_quorum(sealed, roster, call.step, failures)
        found = self._open(_Opening(call, own, roster, length, "noisy", sealed), failures)
        counted = found.survivors
        return Opened(found.total, counted, {s: f for s, f in sorted(failures.items()) if s not in counted})

    def _earlier(self) -> tuple[list[frozenset[str]], set[str]]:
        """Sets that were opened in this study, and the sites whose terms may be seen by what they said last."""
        visible: set[str] = set()
        earlier = []
        for names, of_visible in self.store.opened_sets(self.study.hash):
            earlier.append(names)
            visible = (visible - names) | of_visible
        return earlier, visible

    # -- counts, then the sum ------------------------------------------------------------------------------------------

    def _units(self, call: Call, roster: Roster, sites: tuple[str, ...], failures: dict[str, Failure]) -> SignedCount:
        """The signed count of units over these sites: the one that is kept, or a new one, which some of them may miss."""
        layout = Layout(self.study, len(roster.sites))
        question = layout.question(roster.digest)
        kept = self.store.kept_count(self.study.hash, question, roster.digest, sites)
        if kept is not None:
            count = read_message(kept)
            assert isinstance(count, SignedCount)
            return count
        # Two rosters may be counted in one round, over the same sites: under one key a site answers one question only.
        first = 0 if set(roster.sites) == set(self.keys) else 1 + int(roster.digest[:7], 16)
        asked = Call(
            call.study, call.run, call.round, UNITS, first, "all", call.roster, {}, protection="secure", phase="seal"
        )
        # A key is opened over one set: another set is counted under another ordinal.
        while (fixed := self.store.survivors(self._key(asked, roster))) and fixed != sites:
            asked = replace(asked, ordinal=asked.ordinal + 1)
        own = dict.fromkeys(sites, Own())
        sealed = self._sealed(asked, own, sites, failures)
        side = self._open(_Opening(asked, own, roster, layout.length, "count", sealed), failures)
        self.store.keep_count(self.study.hash, question, roster.digest, side.survivors, write_message(side.count))
        return side.count

    def _refuse_small_cells(self, call: Call, roster: Roster, count: SignedCount) -> None:
        """Say which variables make a cell that no site would open a sum over, before any is asked. Raises FederationError."""
        layout, minimum = Layout(self.study, len(roster.sites)), self.study.privacy.minimum_cell
        if found := layout.read(count.totals).small_cell(minimum):
            lot = int(lots_of(minimum, layout.sites)[0])
            raise FederationError(found.sentence(short_name(call.step), minimum, lot))

    def _key(self, call: Call, roster: Roster) -> str:
        one = _Opening(call, {}, roster, 1, "count", ())
        return context_of(_opening(one, self.study, 0), self.study, roster, 1).key

    def _forget(self, call: Call, roster: Roster, sites: tuple[str, ...]) -> None:
        question = Layout(self.study, len(roster.sites)).question(roster.digest)
        self.store.drop_count(self.study.hash, question, roster.digest, sites)

    def _sum(
        self,
        call: Call,
        own: Mapping[str, Own],
        roster: Roster,
        length: int,
        step: Step,
        shapes: Mapping[str, tuple[int, ...]],
        count: SignedCount,
        failures: dict[str, Failure],
    ) -> CoordinatorSide:
        tables = dict(zip(count.sites, count.tables, strict=True))
        shown = {"units": count}
        one = _Opening(call, own, roster, length, "sum", count.sites, count.sites, show(shown), tables)
        if counted_releases(step):
            one = self._counted(one, step, shapes, shown, failures)
        return self._open(one, failures)

    def _counted(
        self,
        one: _Opening,
        step: Step,
        shapes: Mapping[str, tuple[int, ...]],
        shown: dict[str, SignedCount],
        failures: dict[str, Failure],
    ) -> _Opening:
        """The call with the counts of its own released counts: of all cells and, where neighbours are merged, again of those."""
        sizes = entry_shapes(step, shapes, self.study)
        length = 2 * sum(int(np.prod(shape, dtype=np.int64)) for shape in sizes.values())
        while True:
            found = CountsShown(_opening(one, self.study, 0), step, one.roster, self.study, sizes, one.kept)
            try:
                if found.merged.done:
                    return one
            except PolicyViolation:
                raise NoCells(
                    f"{short_name(step.name)}: there are no cells whose counts over all sites together are large enough to be seen; "
                    "invite more sites, join levels in the study, or ask for less"
                ) from None
            shown[entries_name(len(found.counts))] = self._entries(one, length, len(found.counts), failures)
            one = replace(one, shown=show(shown))

    def _entries(self, one: _Opening, length: int, number: int, failures: dict[str, Failure]) -> SignedCount:
        """The signed count of the entries that a step releases as counts, in lots."""
        study, question = self.study.hash, entries_question(asked_of_all(one.call, one.kept), one.shown, number)
        kept = self.store.kept_count(study, question, one.roster.digest, one.must)
        if kept is not None:
            count = read_message(kept)
            assert isinstance(count, SignedCount)
            return count
        side = self._open(replace(one, length=length, purpose="count"), failures)
        self.store.keep_count(study, question, one.roster.digest, side.survivors, write_message(side.count))
        return side.count

    # -- one call, opened ----------------------------------------------------------------------------------------------

    def _open(self, one: _Opening, failures: dict[str, Failure]) -> CoordinatorSide:
        """Attempts, until one is done. Raises FederationError where the sites that are needed do not come."""
        call = _opening(one, self.study, 0)
        key = context_of(call, self.study, one.roster, one.length).key
        problem = ""
        for _ in range(MOST_ATTEMPTS):
            number, fixed = self.store.next_attempt(key, self.study.hash)
            lost: dict[str, Failure] = {}
            try:
                return self._carry(one, number, key, fixed, lost)
            except PrivacyError as found:
                problem = str(found)
            failures |= lost
            if not any(failure.reason == ATTEMPT_VOID for failure in lost.values()):
                break
        fixed = self.store.survivors(key)
        refusing = {site for site in fixed if site in lost and lost[site].reason == GIVES_AWAY}
        if refusing and len(fixed) - len(refusing) < one.roster.quorum:
            # So few have signed this set, or may yet, that it is never opened: with the others back, another one is asked for.
            # Who has signed it may sign no other; a quorum of the others is enough.
            self.store.fix_survivors(key, (), ())
            raise FederationError(not_without(one.call.step, set(one.roster.sites) - set(fixed), failures))
        raise FederationError(
            f"{short_name(one.call.step)}: the total could not be opened: {problem} ({reasons_of(lost)}). "
            "Nothing of it was seen; mend what keeps them away, then `medfed resume`"
        )

    def _carry(
        self, one: _Opening, number: int, key: str, fixed: tuple[str, ...], lost: dict[str, Failure]
    ) -> CoordinatorSide:
        """One attempt: messages to and fro until the total is open. Raises PrivacyError where too few sites are left."""
        call = _opening(one, self.study, number)
        must = fixed or one.must
        side = CoordinatorSide(
            context_of(call, self.study, one.roster, one.length, one.kept), one.roster, asked=must or one.asked
        )
        agreed = False
        while not side.is_done:
            if side.survivors and not agreed:
                self._agree(one, side, key, fixed, must, lost)
                agreed = True
            requests = side.requests()
            own = {
                site: replace(one.own[site], message=None if request is None else write_message(request))
                for site, request in requests.items()
            }
            for site, answer in self.exchange(call, own):
                self._take(side, site, answer, lost)
            side.advance()
            if one.tables and side.tables and any(one.tables.get(s, word) != word for s, word in side.tables.items()):
                raise _CountAgain
        return side

    @staticmethod
    def _take(side: CoordinatorSide, site: str, answer: Answer | Failure, lost: dict[str, Failure]) -> None:
        """A site's reply, or why there is none; a bad one is not counted, and its culprit is named."""
        if isinstance(answer, Failure):
            lost[site] = answer
            return
        try:
            side.receive(site, read_message(bytes(answer.data)))  # type: ignore[arg-type]
        except PrivacyError as problem:
            lost[site] = Failure("failed", str(problem))

    def _agree(
        self,
        one: _Opening,
        side: CoordinatorSide,
        key: str,
        fixed: tuple[str, ...],
        must: tuple[str, ...],
        lost: dict[str, Failure],
    ) -> None:
        """Fix the set of sites before any of them is asked to sign it, where it is the one that it has to be."""
        sites = side.survivors
        if one.purpose == "noisy":
            missing = set(fixed or one.asked) - set(sites)
            if any(site in lost and lost[site].reason == ATTEMPT_VOID for site in missing):
                raise PrivacyError(f"{', '.join(sorted(missing))} started anew")
            if fixed and missing:
                raise FederationError(gone(one.call.step, missing, lost))
            if not fixed:
                self._check_minimum(one, sites, lost)
                self.store.fix_survivors(key, sites, [])
            return
        earlier, visible = self._earlier()
        flagged = [site for site, word in side.tables.items() if VISIBLE in flags_of(word)]
        if must and sites != must:
            missing = set(must) - set(sites)
            if any(site in lost and lost[site].reason == ATTEMPT_VOID for site in missing):
                raise PrivacyError(f"{', '.join(sorted(missing))} started anew")
            if fixed or given_away(sites, earlier, visible=visible | set(flagged)) or len(sites) < one.roster.quorum:
                raise FederationError(missing_from(one.call.step, missing, lost))
            raise _GoOn(sites)
        if not must and given_away(sites, earlier, visible=visible | set(flagged)):
            raise FederationError(missing_from(one.call.step, set(one.asked) - set(sites), lost))
        if not fixed:
            if one.purpose == "sum":
                self._check_minimum(one, sites, lost)
            self.store.fix_survivors(key, sites, [site for site in flagged if site in sites])

    def _check_minimum(self, one: _Opening, sites: Sequence[str], lost: Mapping[str, Failure]) -> None:
        """A set that is fixed stays: one that the study has too few sites in would never give a total that counts."""
        needed = min(self.study.sites.minimum, len(one.own))
        if len(sites) < needed:
            raise FederationError(
                f"{short_name(one.call.step)}: {len(sites)} of {len(one.own)} sites are left for the total, the study needs {needed} "
                f"({reasons_of(lost)}). Nothing was opened; mend what keeps them away, then `medfed resume`"
            )


def _opening(one: _Opening, study: Study, attempt: int) -> Call:
    """The call that carries one attempt's messages; its inputs stay at home."""
    opening = Opening(attempt, one.purpose, one.call.inputs_digest, one.shown)
    return replace(one.call, phase="open", inputs={}, opening=opening)


def _of_one_keep(own: Mapping[str, Own], failures: dict[str, Failure]) -> tuple[str, ...]:
    """The largest group of sites that read the same keep; masks of others would not cancel with theirs."""
    kept = {site: mine.kept for site, mine in own.items()}
    most = max(Counter(kept.values()).items(), key=lambda found: (found[1], found[0] or ""))[0]
    failures |= {site: Failure("refused", OTHER_KEEP) for site, read in kept.items() if read != most}
    return tuple(site for site, read in kept.items() if read == most)
