"""A secure sum stopped at a stage, where a test steps in with a message of its own."""

from dataclasses import replace
from typing import Any

import pytest
from secure_rounds import consortium, exchange, plain_total, random_words

from medfed.errors import PrivacyError
from medfed.privacy.checks import signed
from medfed.privacy.coordinator_side import CoordinatorSide

LENGTH = 5
BAD = "site001"


class Sum:
    """A sum among five sites (quorum four), stopped where a test steps in."""

    def __init__(self, until: str, count: int = 5) -> None:
        self.group = consortium(count)
        self.values = random_words(self.group.roster.sites, LENGTH)
        self.context = self.group.context(LENGTH)
        self.coordinator = CoordinatorSide(self.context, self.group.roster)
        self.sides = self.group.sides(self.context)
        self.go(until)

    def go(self, until: str, drops: dict[str, str] | None = None) -> None:
        exchange(self.group, self.coordinator, self.sides, self.values, drops=drops, until=until)

    def reply(self, site: str = BAD) -> Any:
        return self.sides[site].answer(self.coordinator.requests()[site], self.values[site])

    def resigned(self, message: Any, **changes: Any) -> Any:
        """The message with changes, signed by its site: a member that cheats with its own key."""
        changed = replace(message, **changes)
        return signed(changed, self.group.keys[message.site])

    def refuses(self, message: Any, match: str, sender: str = BAD, culprits: tuple[str, ...] = (BAD,)) -> None:
        """The coordinator refuses it, then goes on without the sender and gets the exact total of the others."""
        stage = self.coordinator.stage
        with pytest.raises(PrivacyError, match=match) as refused:
            self.coordinator.receive(sender, message)
        assert refused.value.culprits == culprits
        self.go("a signature of the count", drops={sender: stage})
        survivors = self.coordinator.survivors
        assert (self.coordinator.total == plain_total(self.values, survivors)).all()

    def site_refuses(self, request: Any, match: str, site: str = "site000") -> PrivacyError:
        """The site refuses the request and, asked what it should have been asked, still answers."""
        with pytest.raises(PrivacyError, match=match) as refused:
            self.sides[site].answer(request, self.values[site])
        self.go("a signature of the count")
        assert (self.coordinator.total == plain_total(self.values, self.group.roster.sites)).all()
        return refused.value
