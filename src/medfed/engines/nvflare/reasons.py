"""The sentences that may leave a site when it does not answer. Everything else stays in the site's own log.

An exception's words can quote a record, a path or a secret, so none of them travels: a reason is one of this list, or one
of a few templates whose blanks hold names and numbers of the study only.
"""

import re
from string import Formatter

from medfed.engines import site_folders
from medfed.federation import (
    admission,
    budget,
    door,
    execution,
    federation,
    gate,
    opening,
    openings,
    private,
    secure_site,
)
from medfed.federation.call import Failure

STEP_ENDED = "the process of the step ended twice, most likely for want of memory; the site's own log has the details"
NOT_ANSWERED = "the site could not answer; its own log has the details"
NO_STUDY = "the study was not proposed to this site; propose it first"
DISK = "the answer could not be sealed at the site (disk or ledger), so nothing was released"
KEEP_GONE = "the site no longer holds what it kept for this run; start a new run"

SENTENCES = {
    "the site is asked but is not on the roster",
    "the site has more rows than the study's rows_per_site allows for",
    "the site's approval of this study has ended",
    "the site's approval of this study is of another study or site",
    "the site's approval is of another study or site",
    "the site's approval is damaged or not signed by its key",
    "the site has withdrawn its approval of this study",
    "the site has not approved this version of the study",
    "the site has declined this version of the study",
    "the site's policy does not allow this step",
    "the study table is not the version that was approved; build, check and approve again",
    "the policy pins another version of the package that holds the step",
    "this is not the study that the site approved: its hash differs",
    "the call does not name a run, a round and an ordinal as medfed writes them",
    "the roster names a site twice",
    "the roster names sites that the study does not invite",
    "the scaling that the call brings blows features up: it can isolate patients",
    "the model that the call brings is so steep that it can isolate patients",
}
# Their blanks hold names and numbers of the study, as below.
TEMPLATES = (
    "there is no part '{part}'",
    "the step may not read the part '{part}'",
    "the approved study has no variant '{variant}'",
    "the call brings inputs that the step does not declare: {names}",
    "the call lacks the input '{name}'",
    "the call brings an input '{name}' that the step does not declare",
    "input '{name}' has shape {number}, {declared} is declared",
    "input '{name}' has {number} dimensions, {declared} are declared",
    "input '{name}': {size} is {number}, at most {limit} is approved",
    "input '{name}' passes its limit of {limit}: an extreme input can isolate a patient",
    "the size '{name}' is chosen by an input, and no input of this call has it",
)

_FIXED = SENTENCES | {
    value
    for module in (admission, budget, door, execution, federation, gate, opening, openings, private, secure_site, site_folders)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, str)
} | {STEP_ENDED, NOT_ANSWERED, NO_STUDY, DISK, KEEP_GONE}  # fmt: skip

_WORD = r"[A-Za-z][A-Za-z0-9_]{0,59}"
_NUMBERS = r"[0-9eE+., ()-]{1,80}"
_BLANKS = {
    "part": rf"{_WORD}(:[0-9]{{1,4}})?",
    "variant": "[a-z][a-z0-9-]{0,59}",
    "names": rf"{_WORD}(, {_WORD}){{0,20}}",
    "name": _WORD,
    "size": _WORD,
    "number": _NUMBERS,
    "declared": _NUMBERS,
    "limit": _NUMBERS,
}
_TEMPLATES = [
    re.compile(
        "".join(re.escape(text) + _BLANKS.get(str(name), "") for text, name, _, _ in Formatter().parse(template))
    )
    for template in TEMPLATES
]


# A message of a secure sum that the protocol does not allow is told in the protocol's words: it knows no rows.
_PROTOCOL = re.compile(r"secure sum: [^\x00-\x1f\x7f]{1,1000}")


def is_public(reason: str) -> bool:
    """Whether a sentence may leave a site."""
    return (
        reason in _FIXED
        or _PROTOCOL.fullmatch(reason) is not None
        or any(pattern.fullmatch(reason) for pattern in _TEMPLATES)
    )


def public(failure: Failure) -> Failure:
    """The failure with a reason that may leave; what it said before is for the site's log."""
    return failure if is_public(failure.reason) else Failure(failure.kind, NOT_ANSWERED)
