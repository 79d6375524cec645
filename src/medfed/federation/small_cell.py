"""Why a count of units lets no secure sum be opened, as the coordinator tells it: which patients are too few, what to do."""

from dataclasses import dataclass
from typing import Literal

from medfed.federation.secure_sentences import (
    FEW_KNOWN,
    FEW_MISSING,
    FEW_MISSING_BY,
    FEW_VALUES,
    SMALL_CELL,
    TOO_FEW_PATIENTS,
)

Few = Literal["patients", "missing", "known", "values", "cell"]

_SENTENCES = {
    "patients": TOO_FEW_PATIENTS, "missing": FEW_MISSING, "known": FEW_KNOWN, "values": FEW_VALUES, "cell": SMALL_CELL,
}  # fmt: skip


@dataclass(frozen=True)
class SmallCell:
    """Patients who are fewer than may be seen. few: all of a part; those whose value of ``names[0]`` is missing (among those
    of a cell of the other names), or known; those with other than a number's commonest values; a cell of the names."""

    few: Few
    names: tuple[str, ...] = ()

    def sentence(self, step: str, minimum: int, lot: int) -> str:
        """What the coordinator says. step: its short name; lot: the largest in which a site counts."""
        words = {"step": step, "minimum": minimum, "lot": lot}
        if self.few == "missing" and len(self.names) > 1:
            return FEW_MISSING_BY.format(names=repr(self.names[0]), by=_joined(self.names[1:]), **words)
        return _SENTENCES[self.few].format(names=_joined(self.names), **words)


def _joined(names: tuple[str, ...]) -> str:
    return " by ".join(map(repr, names))
