"""All sites in one process: the default of the command line, of tests and of what-ifs. It isolates nobody.

Each member of ``doors`` answers for its own sites: one ``Doors`` over one store for a what-if with many sites, or one
for each site's folder.
"""

from collections.abc import Iterator, Mapping, Sequence

from medfed.federation.call import Answer, Call, Failure, Own, Protection
from medfed.federation.door import Doors


class Embedded:
    """Carries calls within one process."""

    protections: tuple[Protection, ...] = ("plain",)

    def __init__(self, doors: Sequence[Doors]) -> None:
        self.doors = tuple(doors)
        self.sites = tuple(site for door in doors for site in door.sites)

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        """Answers in the doors' order. ``deadline`` is for engines that wait."""
        for door in self.doors:
            mine = {site: part for site, part in own.items() if site in door.sites}
            if mine:
                yield from door.answer(call, mine).items()
