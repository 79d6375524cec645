"""All sites in one process: the default of the command line, of tests and of what-ifs. It isolates nobody.

Each member of ``doors`` answers for its own sites: one ``Doors`` over one store for a what-if with many sites, or one
for each site's folder.
"""

from collections.abc import Iterator, Mapping, Sequence

from medfed.federation.call import Answer, Call, Failure, Own, Protection
from medfed.federation.door import Doors
from medfed.federation.opening import approved_roster
from medfed.privacy.roster import MINIMUM_SITES


class Embedded:
    """Carries calls within one process."""

    def __init__(self, doors: Sequence[Doors]) -> None:
        self.doors = tuple(doors)
        self.sites = tuple(site for door in doors for site in door.sites)

    @property
    def roster(self) -> dict[str, str]:
        """The sites that all of them approved to be summed with, and their keys."""
        return approved_roster(door.standing_approval(site) for door in self.doors for site in door.sites)

    @property
    def protections(self) -> tuple[Protection, ...]:
        return ("plain", "secure") if len(self.roster) >= MINIMUM_SITES else ("plain",)

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        """Answers in the doors' order. ``deadline`` is for engines that wait."""
        for door in self.doors:
            mine = {site: part for site, part in own.items() if site in door.sites}
            if mine:
                yield from door.answer(call, mine).items()
