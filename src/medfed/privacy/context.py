"""What one secure sum is about. Every key, share, mask and signature is bound to it, so none can be used elsewhere."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from medfed.canonical import digest
from medfed.errors import PrivacyError

Purpose = Literal["sum", "count", "noisy"]


@dataclass(frozen=True)
class Context:
    """One attempt to open one call.

    study: hash of the approved study. run: path of the run. round, step, ordinal: the rest of the call's key.
    question: digest of everything asked of all sites alike; masks between sites that were asked different things do not
    cancel, which defeats a coordinator that gives one site other inputs than the rest (Pasquini et al. 2022).
    roster: digest of the call's roster. length: how many 64-bit words are summed. purpose: "count" for the count of
    units that comes before any sum, "noisy" for a sum that carries noise, which no count comes before. attempt: 0, 1, ...; each has keys and masks of its own.
    """

    study: str
    run: str
    round: int
    step: str
    ordinal: int
    question: str
    roster: str
    length: int
    purpose: Purpose = "sum"
    attempt: int = 0

    def __post_init__(self) -> None:
        if min(self.round, self.ordinal, self.attempt) < 0 or self.length < 1:
            raise PrivacyError("a secure sum has at least one word, and no negative round, ordinal or attempt")
        if self.purpose not in get_args(Purpose):
            raise PrivacyError(f"a secure sum opens a sum or a count, not {self.purpose!r}")

    @cached_property
    def key(self) -> str:
        """Names what is opened, whatever the attempt, roster or inputs: under it a site signs one set of survivors."""
        return digest(
            "medfed opening", self.study, self.run, str(self.round), self.step, str(self.ordinal), self.purpose
        )

    @cached_property
    def digest(self) -> str:
        return digest(
            "medfed secure sum context", self.key, self.question, self.roster, str(self.length), str(self.attempt)
        )
