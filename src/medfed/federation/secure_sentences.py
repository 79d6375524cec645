"""What the coordinator says where a secure sum can't be opened: who is missing, which patients are too few, what to do."""

from collections.abc import Mapping, Sequence

from medfed.errors import LISTED, FederationError
from medfed.federation.call import Failure
from medfed.federation.openings import GIVES_AWAY
from medfed.privacy import Roster

FEW_ANSWERED = (
    "{answered} of {asked} sites answered '{step}', a secure sum needs {needed} of them ({reasons}). Mend what keeps them "
    "away, then `medfed resume`: the same question is asked again"
)
GONE = (
    "{step}: the total was to be opened with {names}, of whom nothing more was heard ({reasons}). It is opened over one set of "
    "sites, so the run waits. Mend what keeps them away, then `medfed resume`: the same question is asked again"
)
MISSING = (
    "{step}: {names} took part in the totals so far and is missing now ({reasons}). A total without, beside those so far, would "
    "give terms away, so the run waits. Mend what keeps it away, then `medfed resume`: the same question is asked again"
)
NOT_WITHOUT = (
    "{step}: {names} is missing ({reasons}), and the other sites sign no total without: beside an earlier one, maybe of another "
    "study, it would give away the terms of one or two of them. Nothing was seen, and the run waits. Mend what keeps it "
    "away, then ask again or `medfed resume`: the same question is asked again"
)
NEVER_SIGNED = (
    "{step}: no site is missing, and {names} sign no total over these sites ({reasons}): too few are left to open it. Nothing was "
    "seen. Resume and `medfed abandon` change nothing, since sites remember totals over all studies; ask in a study that invites "
    "at least three sites more or fewer"
)
TOO_FEW_PATIENTS = (
    "{step}: the sites have fewer patients in all, or in a part of the study, than may be seen (minimum cell {minimum}; each "
    "site counts in lots of up to {lot}, rounded down). Widen the cohort, or invite more sites"
)
FEW_MISSING = (
    "{step}: over all sites, the patients with missing values of {names} are fewer than may be seen, though not none (minimum "
    "cell {minimum}; each site counts in lots of up to {lot}, rounded down). Leave them out of the study with `missing: drop`, "
    "leave the variable out, or invite more sites"
)
FEW_MISSING_BY = (
    "{step}: over all sites, the patients with missing values of {names} are fewer than may be seen, though not none, among those "
    "of a level of {by} (minimum cell {minimum}; each site counts in lots of up to {lot}, rounded down). Leave them out of the "
    "study with `missing: drop`, leave a variable out, or invite more sites"
)
FEW_KNOWN = (
    "{step}: over all sites, fewer patients than may be seen have a value of {names} (minimum cell {minimum}; each site counts in "
    "lots of up to {lot}, rounded down). Leave the variable out, or invite more sites"
)
FEW_VALUES = (
    "{step}: over all sites, {names} takes one or two values for nearly everybody, so that its sums count the few others (minimum "
    "cell {minimum}; each site counts in lots of up to {lot}, rounded down). Leave it out, declare it as a code whose every level "
    "has many patients, or invite more sites"
)
SMALL_CELL = (
    "{step}: over all sites, a cell of {names} has fewer patients than may be seen (minimum cell {minimum}; each site counts in "
    "lots of up to {lot}, rounded down). Join levels in the study, declare a number of two values as a code, leave a variable or "
    "an interaction out, or invite more sites"
)
NOTHING_HEARD = "nothing was heard"


def short_name(step: str) -> str:
    """The name of a step, without its package."""
    return step.rpartition(".")[2]


def reasons_of(failures: Mapping[str, Failure]) -> str:
    """Who failed, how and why, as one clause."""
    return LISTED.join(f"{site} {failure.kind}: {failure.reason}" for site, failure in sorted(failures.items()))


def check_quorum(sites: Sequence[str], roster: Roster, step: str, failures: Mapping[str, Failure]) -> None:
    """FederationError where fewer sites answered than a secure sum over this roster takes."""
    if len(sites) < roster.quorum:
        words = {"answered": len(sites), "asked": len(roster.sites), "needed": roster.quorum}
        raise FederationError(FEW_ANSWERED.format(step=short_name(step), reasons=reasons_of(failures), **words))


def gone(step: str, missing: set[str], lost: Mapping[str, Failure]) -> str:
    """Sites that the set of a noisy sum was fixed with are not heard of any more."""
    return _said(GONE, step, missing, lost)


def missing_from(step: str, missing: set[str] | frozenset[str], lost: Mapping[str, Failure]) -> str:
    """Sites of the totals so far are missing, and one without them would give terms away."""
    return _said(MISSING, step, missing, lost)


def not_without(step: str, missing: set[str], lost: Mapping[str, Failure]) -> str:
    """The sites remember totals, of this study or another, beside which one without the missing sites, or one with all, gives
    terms away."""
    if missing:
        return _said(NOT_WITHOUT, step, missing, lost)
    return _said(NEVER_SIGNED, step, {site for site, failure in lost.items() if failure.reason == GIVES_AWAY}, lost)


def _said(sentence: str, step: str, missing: set[str] | frozenset[str], lost: Mapping[str, Failure]) -> str:
    why = reasons_of({site: failure for site, failure in lost.items() if site in missing}) or NOTHING_HEARD
    return sentence.format(step=short_name(step), names=", ".join(sorted(missing)), reasons=why)
