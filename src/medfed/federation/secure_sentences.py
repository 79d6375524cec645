"""What the coordinator says where a secure sum can't be opened: who is missing, why, and what to do."""

from collections.abc import Mapping, Sequence

from medfed.errors import FederationError
from medfed.federation.call import Failure
from medfed.privacy import Roster


def short_name(step: str) -> str:
    """The name of a step, without its package."""
    return step.rpartition(".")[2]


def reasons_of(failures: Mapping[str, Failure]) -> str:
    """Who failed, how and why, as one clause."""
    return "; ".join(f"{site} {failure.kind}: {failure.reason}" for site, failure in sorted(failures.items()))


def check_quorum(sites: Sequence[str], roster: Roster, step: str, failures: Mapping[str, Failure]) -> None:
    """FederationError where fewer sites answered than a secure sum over this roster takes."""
    if len(sites) < roster.quorum:
        raise FederationError(
            f"{len(sites)} of {len(roster.sites)} sites answered {short_name(step)!r}, a secure sum needs {roster.quorum} of "
            f"them ({reasons_of(failures)}). Mend what keeps them away, then `medfed resume`: the same question is asked again"
        )


def gone(step: str, missing: set[str], lost: Mapping[str, Failure]) -> str:
    """Sites that the set of a noisy sum was fixed with are not heard of any more."""
    why = reasons_of({site: failure for site, failure in lost.items() if site in missing}) or "nothing was heard"
    return (
        f"{short_name(step)}: the total was to be opened with {', '.join(sorted(missing))}, of whom nothing more was heard "
        f"({why}). It is opened over one set of sites, so the run waits. Mend what keeps them away, then `medfed resume`: "
        "the same question is asked again"
    )


def missing_from(step: str, missing: set[str] | frozenset[str], lost: Mapping[str, Failure]) -> str:
    """Sites of the totals so far are missing, and one without them would give terms away."""
    names = ", ".join(sorted(missing))
    why = reasons_of({site: failure for site, failure in lost.items() if site in missing}) or "nothing was heard"
    return (
        f"{short_name(step)}: {names} took part in the totals so far and is missing now ({why}). A total without, beside those "
        f"with {names}, would give terms away, so the run waits. Mend what keeps it away, then `medfed resume`: the same "
        "question is asked again"
    )


def not_without(step: str, missing: set[str], failures: Mapping[str, Failure]) -> str:
    """The sites remember totals, of this study or another, beside which one without the missing sites gives terms away."""
    names = ", ".join(sorted(missing)) or "a site of an earlier total"
    why = reasons_of({site: failure for site, failure in failures.items() if site in missing}) or "nothing was heard"
    return (
        f"{short_name(step)}: {names} is missing ({why}), and the other sites sign no total without: beside an earlier one, "
        "maybe of another study, it would give away the terms of one or two of them. Nothing was seen, and the run waits. Mend "
        f"what keeps {names} away, then ask again or `medfed resume`: the same question is asked again"
    )
