"""What the signed counts that a call brings say of the counts its step releases: which cells are opened, and how many are in each."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medfed.errors import PolicyViolation
from medfed.federation import gate
from medfed.federation.call import Call
from medfed.federation.merging import Lots, Merged, judged_entries, merged, merged_counts, merges
from medfed.federation.opening import (
    asked_of_all,
    counted_releases,
    entries_name,
    entries_question,
    shown_bytes,
    shown_count,
)
from medfed.federation.step import Step
from medfed.federation.units import small_cells
from medfed.privacy import Roster, SignedCount
from medfed.study import Study


def merges_under(step: Step, study: Study) -> bool:
    """Whether neighbours of a step's counts are merged in this study: not where no count is small."""
    return study.privacy.minimum_cell > 1 and merges(step)


@dataclass(frozen=True)
class CountsShown:
    """The signed counts of a step's released counts that one call of phase "open" brings. shapes: of these, by name.

    kept: the earlier call whose keep the sites read, or None.

    Where neighbours are merged "entries 0" is of everything as one cell, and each other one of the cells that follow from
    those before (``merging``); else there is one, of all that is released.
    """

    call: Call
    step: Step
    roster: Roster
    study: Study
    shapes: Mapping[str, tuple[int, ...]]
    kept: str | None = None

    @cached_property
    def counts(self) -> tuple[SignedCount, ...]:
        """All of them, in order. PolicyViolation where one is about something else, or more than there is to count."""
        assert self.call.opening is not None
        shown = self.call.opening.shown
        found: list[SignedCount] = []
        length = 2 * sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())
        while shown_bytes(shown, entries_name(len(found))):
            question = entries_question(asked_of_all(self.call, self.kept), shown, len(found))
            found.append(shown_count(shown, entries_name(len(found)), question, length, self.roster, self.study))
        return tuple(found)

    @cached_property
    def _lots(self) -> list[Lots]:
        return [Lots.read(count.totals, self.shapes) for count in self.counts]

    @cached_property
    def merged(self) -> Merged:
        """The cells that are counted next or, when done, opened. PolicyViolation where none are large enough."""
        if not merges_under(self.step, self.study):
            return Merged({}, bool(self.counts))
        found = merged(self.step, self.shapes, self._lots, self.study.privacy.minimum_cell)
        if found is None:
            raise PolicyViolation(gate.SMALL_COUNT)
        return found

    def has_small(self, minimum: int) -> bool:
        """Whether a count that is opened is under the minimum."""
        lots, ends = self._lots[-1], self.merged.ends
        kinds = counted_releases(self.step)
        words: list[NDArray[np.int64]] = []
        for by_name in (lots.at_least, lots.present):
            opened = merged_counts({n: by_name[n].astype(np.int64).reshape(s) for n, s in self.shapes.items()}, ends)
            words.append(np.concatenate([opened[name].ravel() for name in kinds]))
        zero_is_small = [np.full(opened[name].size, kind.zero_is_small) for name, kind in kinds.items()]
        chosen = judged_entries(self.shapes, ends)
        small = small_cells(words[0][chosen], words[1][chosen], np.concatenate(zero_is_small)[chosen], minimum)
        return minimum > 1 and bool(small.any())
