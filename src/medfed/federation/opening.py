"""What coordinator and site have to mean alike when a secure sum is opened: contexts, words, and the counts that are shown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest, pack, unpack
from medfed.errors import FederationError, LedgerError, PolicyViolation
from medfed.federation.approval import Approval
from medfed.federation.call import Call
from medfed.federation.ring import decode
from medfed.federation.step import NOISE_AT_MOST, Count, Reply, Step, Sum
from medfed.federation.units import UNITS, Layout
from medfed.privacy import Context, Roster, SignedCount, read_message, write_message
from medfed.privacy.checks import check_count
from medfed.privacy.roster import MINIMUM_SITES
from medfed.study import Study

IntArray = NDArray[np.int64]

NOT_COUNTED = "the signed count that allows this sum was not shown, or belongs to another question"


def secure_roster(study: Study, keys: Mapping[str, str]) -> dict[str, str]:
    """The invited sites whose keys are known, where sums can be secure over them; none where sums are plain."""
    known = {site: keys[site] for site in study.sites.invited if site in keys}
    return known if study.privacy.sums == "strongest" and len(known) >= MINIMUM_SITES else {}


PLAIN_ASKED = "the study asks for sums in plain"
PLAIN_FEW = "secure sums need at least three sites whose keys every site has approved: of two, each would learn the other's terms"


def why_plain(study: Study, roster: Mapping[str, str]) -> str | None:
    """Why sums of a study are plain over these sites; None where they are secure."""
    if study.privacy.sums == "plain":
        return PLAIN_ASKED
    return None if secure_roster(study, roster) else PLAIN_FEW


def approved_roster(approvals: Iterable[Approval | None]) -> dict[str, str]:
    """The sites, and their keys, that every standing approval names alike."""
    return common_roster([approval.roster for approval in approvals if approval is not None])


def common_roster(rosters: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The sites that stand with the same key in all rosters."""
    if not rosters:
        return {}
    return {site: key for site, key in rosters[0].items() if all(other.get(site) == key for other in rosters)}


def words_of(values: Mapping[str, Any]) -> IntArray:
    """Coded arrays as one row of words, in order of names."""
    return np.concatenate([np.asarray(values[name], np.int64).ravel() for name in sorted(values)])


def arrays_of(words: IntArray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, IntArray]:
    """The arrays that ``words_of`` made a row of."""
    found, start = {}, 0
    for name in sorted(shapes):
        size = int(np.prod(shapes[name], dtype=np.int64))
        found[name] = words[start : start + size].reshape(shapes[name])
        start += size
    return found


def counted_releases(step: Step) -> dict[str, Count]:
    """The releases that are counts, in order of names."""
    return {name: kind for name, kind in sorted(step.releases.items()) if isinstance(kind, Count)}


def entry_sizes(step: Step, shapes: Mapping[str, tuple[int, ...]], study: Study) -> dict[str, int]:
    """How many numbers each coded release of a sum holds."""
    sizes = {}
    for name, kind in step.releases.items():
        assert not isinstance(kind, Reply)
        limbs = kind.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
        sizes[name] = int(np.prod(shapes[name], dtype=np.int64)) // limbs
    return sizes


def entry_shapes(step: Step, shapes: Mapping[str, tuple[int, ...]], study: Study) -> dict[str, tuple[int, ...]]:
    """Shapes of the counts that a step releases, from those of its coded releases."""
    found = {}
    for name, kind in counted_releases(step).items():
        limbs = kind.limbs(rows_at_most=study.rows_at_most, sites_at_most=study.sites_at_most)
        found[name] = tuple(shapes[name]) if limbs == 1 else tuple(shapes[name][:-1])
    return found


def entries_name(number: int) -> str:
    """What the counts of a call's own released counts are shown as: the first of all, others of merged cells."""
    return f"entries {number}"


def entries_question(asked: str, shown: bytes, number: int) -> str:
    """Names a count of a call's own released counts: of the cells that follow from the counts before it, as they are shown."""
    return digest("medfed entries", asked, *(shown_bytes(shown, entries_name(before)) for before in range(number)))


def entries_shown(shown: bytes) -> int:
    """How many counts of its own released counts a call brings."""
    number = 0
    while shown_bytes(shown, entries_name(number)):
        number += 1
    return number


def shown_bytes(shown: bytes, name: str) -> bytes:
    """A count that a call brings, unread; nothing where it is not there."""
    try:
        data = unpack(shown).get(name) if shown else None
    except LedgerError:
        return b""
    return data.tobytes() if isinstance(data, np.ndarray) and data.dtype == np.uint8 else b""


def context_of(call: Call, study: Study, roster: Roster, length: int) -> Context:
    """What the keys, masks and signatures of an attempt are bound to.

    The question is the same at all sites that are asked the same; where one is asked something else, masks do not cancel.
    """
    assert call.opening is not None
    question, step = call.digest, call.step
    if step == UNITS:
        question = Layout(study, len(roster.sites)).question(roster.digest)
    elif call.opening.purpose == "count":
        question = entries_question(call.digest, call.opening.shown, entries_shown(call.opening.shown))
    return Context(
        call.study, call.run, call.round, step, call.ordinal, question, roster.digest, length, call.opening.purpose,
        call.opening.attempt,
    )  # fmt: skip


def show(counts: Mapping[str, SignedCount]) -> bytes:
    """Signed counts as a call brings them: by "units" and "entries 0", "entries 1", ..."""
    return pack({name: np.frombuffer(write_message(count), np.uint8) for name, count in counts.items()})


def shown_count(shown: bytes, name: str, question: str, length: int, roster: Roster, study: Study) -> SignedCount:
    """A count that a call brings, signed by a quorum of this roster and about this question.

    Raises PolicyViolation where it is not there, PrivacyError where its signatures do not hold.
    """
    data = shown_bytes(shown, name)
    if not data:
        raise PolicyViolation(NOT_COUNTED)
    count = read_message(data)
    if not isinstance(count, SignedCount) or count.question != question or count.totals.shape != (length,):
        raise PolicyViolation(NOT_COUNTED)
    check_count(count, roster, study.hash)
    return count


def decoded(words: IntArray, step: Step, shapes: Mapping[str, tuple[int, ...]], study: Study) -> dict[str, Any]:
    """Total words as the values that a method sees, float64."""
    values = {}
    for name, array in arrays_of(words, shapes).items():
        kind = step.releases[name]
        assert not isinstance(kind, Reply)
        values[name] = decode(array, *ring_of(kind, study))
    return values


def ring_of(kind: Sum | Count, study: Study) -> tuple[int, int]:
    """Limbs and fractional bits in which a release is summed, from public numbers only."""
    most = {"rows_at_most": study.rows_at_most, "sites_at_most": study.sites_at_most}
    return kind.limbs(**most), kind.bits(**most)


def check_bounds(values: Mapping[str, NDArray[np.float64]], step: Step, study: Study, sites: int) -> None:
    """Hold totals to what so many sites can add up to. FederationError where one of them has lied about its own words."""
    for name, value in values.items():
        kind = step.releases[name]
        if isinstance(kind, Sum) and kind.unit_bound is not None:
            most = kind.unit_bound * (study.rows_at_most + NOISE_AT_MOST) * sites
        elif isinstance(kind, Sum) and kind.limit is not None:
            most = kind.limit * sites
        else:
            each = (kind.limit_per_row or 0.0) if isinstance(kind, Sum) else 1.0
            most = each * study.rows_at_most * sites
        if not np.all(np.abs(value) <= most * (1 + 1e-9) + sites * 2.0**-40):
            raise FederationError(
                f"the total of {name!r} passes what {sites} sites can add up to, so a site's part in it is not what its step "
                "returned; nothing was used. Sums in plain show which site it is"
            )
