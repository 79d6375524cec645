"""A site's part in opening a secure sum, once its answer is sealed: keys, shares, masked words, signatures, shares back.

The secrets of an attempt live in the memory of this process and nowhere else. If the process ends, the attempt is void;
a fresh one, with fresh keys over the same sealed words and the same set of sites, may follow. Before a site masks, it has
judged a signed count; before it signs a set of sites, the set stands in its ledger's store. Of a sum that carries noise
nothing is counted, and its sets are compared with no other; but it is opened over one set, and over the sites for which
its noise was sized.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest, pack
from medfed.errors import PolicyViolation, PrivacyError
from medfed.federation import gate
from medfed.federation.admission import Admission
from medfed.federation.approval import version_sealed
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.merging import merged_counts
from medfed.federation.opening import (
    NOT_COUNTED,
    context_of,
    counted_releases,
    entries_name,
    entry_shapes,
    entry_sizes,
    shown_count,
    without_carries,
    words_of,
)
from medfed.federation.openings import (
    ATTEMPT_VOID,
    GIVES_AWAY,
    Record,
    is_same_table,
    row_sets,
    table_word_with,
)
from medfed.federation.ring import decode, encode
from medfed.federation.seal import SiteStore
from medfed.federation.shown_counts import CountsShown
from medfed.federation.site_units import noise_secret
from medfed.federation.step import Step, Sum
from medfed.federation.units import UNITS, Layout, Units, entry_words, lot_at
from medfed.privacy import Context, Roster, SignedCount, SiteSide, read_message, table_word, write_message
from medfed.privacy.messages import Delivery, Survivors

IntArray = NDArray[np.int64]

OTHER_QUESTION = "another question was already answered under this call"
OTHER_TABLE = "the answer was sealed over an earlier version of the study table; ask anew, in a new run"
FEW_SITES = "the total would be over fewer sites than this site's policy hides itself among (fewest_sites)"
NOT_SEALED = "nothing is sealed under this call, so there is nothing to open"
NOT_AS_CHARGED = "a sum that carries noise is opened as such, no other is, and its answers are not counted"
_ATTEMPTS_KEPT = 16


def asked_digest(call: Call, own: Own) -> str:
    """Everything that one site is asked: under one key it answers one digest only."""
    if own.kept is None and not own.each:
        return call.digest
    return digest(call.digest, own.kept or "", pack(own.each) if own.each else b"")


@dataclass
class _Attempt:
    """One attempt at one call, at one site. entries: numbers in each release; units: what the signed count says.

    words: what is opened; before it is masked, neighbouring counts are merged by what the signed counts say. values: the
    sealed answer, coded. kept: the earlier call whose keep it was made from.
    """

    context: Context
    words: IntArray
    values: Mapping[str, Any]
    entries: Mapping[str, int]
    side: SiteSide
    kept: str | None = None
    units: Units | None = None


class SecureSites:
    """Answers the messages of secure sums for the sites behind one store."""

    def __init__(self, admission: Admission, store: SiteStore) -> None:
        self.admission = admission
        self.store = store
        self.study = admission.study
        self._attempts: dict[str, OrderedDict[str, _Attempt]] = {site: OrderedDict() for site in admission.sites}
        self._read: dict[tuple[str, str, str, str], tuple[SignedCount, Units]] = {}

    def answer(self, call: Call, step: Step, own: Mapping[str, Own], at: str) -> dict[str, Answer | Failure]:
        """Each site's reply to its own message; a refusal sends nothing."""
        out: dict[str, Answer | Failure] = {}
        for site, mine in own.items():
            try:
                out[site] = Answer(self._reply(site, call, step, mine, at))
            except PrivacyError as problem:
                reason = str(problem)
                out[site] = Failure(
                    "refused", reason if reason in (GIVES_AWAY, ATTEMPT_VOID, FEW_SITES) else f"secure sum: {reason}"
                )
            except PolicyViolation as problem:
                out[site] = Failure("refused", str(problem))
        return out

    def _reply(self, site: str, call: Call, step: Step, own: Own, at: str) -> bytes:
        if call.opening is None or site not in call.roster:
            raise PolicyViolation(NOT_SEALED)
        purpose = call.opening.purpose
        if (purpose == "noisy") != (call.charge is not None):
            raise PolicyViolation(NOT_AS_CHARGED)
        may_count = call.step == UNITS or bool(counted_releases(step))
        if (purpose == "count" and not may_count) or (purpose == "sum" and call.step == UNITS):
            raise PolicyViolation(NOT_COUNTED)
        roster = self.admission.roster_of(site, call)
        request = None if own.message is None else read_message(own.message)
        attempt = self._attempt(site, call, step, own, roster, begin=request is None, at=at)
        count = None
        if isinstance(request, Delivery | Survivors) and call.step != UNITS and purpose != "noisy":
            count, attempt.units = self._judge(site, call, step, roster, attempt)
            attempt.words = self._masked_words(site, call, step, roster, attempt)
        shown = count if purpose == "sum" else None
        return write_message(attempt.side.answer(request, attempt.words, shown))  # type: ignore[arg-type]

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _attempt(
        self, site: str, call: Call, step: Step, own: Own, roster: Roster, *, begin: bool, at: str
    ) -> _Attempt:
        """The attempt that a message belongs to; a higher number begins a new one. Raises PolicyViolation where it is void."""
        assert call.opening is not None
        attempts = self._attempts[site]
        key = context_of(call, self.study, roster, 1).key
        known = attempts.get(key)
        if begin and (known is None or known.context.attempt < call.opening.attempt):
            known = attempts[key] = self._begin(site, call, step, own, roster, at)
            attempts.move_to_end(key)
            while len(attempts) > _ATTEMPTS_KEPT:
                attempts.popitem(last=False)
        if known is None or known.context != context_of(call, self.study, roster, len(known.words), own.kept):
            raise PolicyViolation(ATTEMPT_VOID)
        return known

    def _begin(self, site: str, call: Call, step: Step, own: Own, roster: Roster, at: str) -> _Attempt:
        access, openings = self.admission.sites[site], self.store.openings
        table = access.table
        words, values, entries = self._words(site, call, step, own)
        context = context_of(call, self.study, roster, len(words), own.kept)
        if call.charge is not None:

            def remember_noisy(key: str, sites: tuple[str, ...]) -> tuple[str, ...]:
                return openings.remember_noisy(site, key, sites, at)

            # No table word: it would tell, without noise, whether the rows changed.
            return _Attempt(
                context,
                words,
                values,
                entries,
                SiteSide(site, access.key, context, roster, remember=remember_noisy),
                own.kept,
            )
        fresh = table_word_with(
            table_word(access.key, table.version),
            visible=access.policy.site_terms_visible,
            seen=call.step == UNITS and openings.own_is_seen(site, table.on("all").pseudonyms),
        )
        # Of a sum the word is the one under which units were counted: that some terms were seen since changes nothing.
        before = openings.word(site, roster.digest, table.version) if call.step != UNITS else None
        word = before if before is not None and is_same_table(before, fresh) else fresh

        # A count of units tells of every part; a sum of its own.
        parts = Layout(self.study, 1).parts() if call.step == UNITS else (call.part,)
        rows = row_sets(*(table.on(part).pseudonyms for part in parts))

        def remember(key: str, sites: tuple[str, ...]) -> tuple[str, ...]:
            if len(sites) < access.policy.fewest_sites:
                raise PrivacyError(FEW_SITES)
            units = attempt.units
            passing, showing = (units.passing, units.showing) if units else (None, None)
            record = Record(rows, table.version, roster.digest, attempt.side.tables, passing, showing, at,
                            tells=call.step == UNITS)  # fmt: skip
            return openings.remember(site, key, sites, record)

        side = SiteSide(site, access.key, context, roster, remember=remember, table=word)
        attempt = _Attempt(context, words, values, entries, side, own.kept)
        return attempt

    def _words(
        self, site: str, call: Call, step: Step, own: Own
    ) -> tuple[IntArray, Mapping[str, Any], Mapping[str, int]]:
        """The words that are opened, before counts are merged; the sealed answer; how many entries each release has."""
        assert call.opening is not None
        found = self.store.sealed(call.key, [site]).get(site)
        if found is None:
            raise PolicyViolation(NOT_SEALED)
        asked, answer = found
        if asked != asked_digest(call, own):
            raise PolicyViolation(OTHER_QUESTION)
        if isinstance(answer, Failure):
            raise PolicyViolation(answer.reason)
        access = self.admission.sites[site]
        if version_sealed(self.store.db, site, call.study, call.key, access.key) != access.table.version:
            raise PolicyViolation(OTHER_TABLE)
        if call.step == UNITS:
            return words_of(answer.values), {}, {}
        entries = entry_sizes(step, {name: np.shape(value) for name, value in answer.values.items()}, self.study)
        if call.opening.purpose != "count":
            return self._in_words(site, call, step, answer.values), answer.values, entries
        length = 2 * sum(entries[name] for name in counted_releases(step))
        return np.zeros(length, dtype=np.int64), answer.values, entries

    def _masked_words(self, site: str, call: Call, step: Step, roster: Roster, attempt: _Attempt) -> IntArray:
        """The words of an attempt whose signed counts are judged: merged counts, or for a count the lots of them."""
        assert call.opening is not None
        kinds = counted_releases(step)
        if not kinds:
            return attempt.words
        most = {"rows_at_most": self.study.rows_at_most, "sites_at_most": self.study.sites_at_most}
        counts = {
            name: np.rint(decode(attempt.values[name], kind.limbs(**most))).astype(np.int64)
            for name, kind in kinds.items()
        }
        shown = self._shown(call, step, roster, attempt)
        counts = merged_counts(counts, shown.merged.ends)
        if call.opening.purpose == "count":
            lot = lot_at(self.study.privacy.minimum_cell, call.roster, site)
            secret = noise_secret(self.admission.sites[site], call, entries_name(len(shown.counts)))
            return entry_words([counts[name] for name in sorted(counts)], lot, secret)
        coded = {name: encode(counts[name].astype(np.float64), kind.limbs(**most)) for name, kind in kinds.items()}
        return self._in_words(site, call, step, {**attempt.values, **coded})

    def _in_words(self, site: str, call: Call, step: Step, values: Mapping[str, Any]) -> IntArray:
        """Coded arrays as words whose totals say nothing of how many carries are in them."""
        secret = noise_secret(self.admission.sites[site], call, "carries")
        return words_of(without_carries(values, step, self.study, len(call.roster), secret))

    # -- what has to hold before anything is masked ------------------------------------------------------------------

    def _judge(self, site: str, call: Call, step: Step, roster: Roster, attempt: _Attempt) -> tuple[SignedCount, Units]:
        """The signed count of units, once all rules for counts hold on it. Raises PolicyViolation or PrivacyError."""
        assert call.opening is not None
        shown = call.opening.shown
        policy = self.admission.sites[site].policy
        minimum = gate.minimum_cell(policy, self.study)
        key = (site, digest(shown), call.part, roster.digest)
        if key not in self._read:
            layout = Layout(self.study, len(roster.sites))
            count = shown_count(shown, "units", layout.question(roster.digest), layout.length, roster, self.study)
            units = layout.read(count.totals)
            if reason := units.refuses(call.part, minimum, policy.minimum_patients if minimum > 1 else 1):
                raise PolicyViolation(reason)
            if len(self._read) > 256:
                self._read.clear()
            self._read[key] = count, units
        count, units = self._read[key]
        values: dict[str, int] = {}
        for name, size in attempt.entries.items():
            kind = "sum" if isinstance(step.releases[name], Sum) else "count"
            values[kind] = values.get(kind, 0) + size
        patients = units.patients(call.part)
        if any(amount > policy.values_per_patient.get(kind, 0.0) * patients for kind, amount in values.items()):  # type: ignore[call-overload]
            raise PolicyViolation(gate.TOO_MANY_VALUES)
        if counted_releases(step):
            self._judge_entries(call, step, roster, attempt, count, minimum)
        return count, units

    def _judge_entries(
        self, call: Call, step: Step, roster: Roster, attempt: _Attempt, count: SignedCount, minimum: int
    ) -> None:
        """Counts that a step releases are under the rule entry by entry, in total."""
        assert call.opening is not None
        shown = self._shown(call, step, roster, attempt)
        if any(each.sites != count.sites for each in shown.counts):
            raise PolicyViolation(NOT_COUNTED)
        if (call.opening.purpose == "sum") != shown.merged.done:
            raise PolicyViolation(NOT_COUNTED)
        if shown.merged.done and shown.has_small(minimum):
            raise PolicyViolation(gate.SMALL_COUNT)

    def _shown(self, call: Call, step: Step, roster: Roster, attempt: _Attempt) -> CountsShown:
        shapes = {name: np.shape(value) for name, value in attempt.values.items()}
        return CountsShown(call, step, roster, self.study, entry_shapes(step, shapes, self.study), attempt.kept)
