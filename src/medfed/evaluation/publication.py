"""The second door: which figures of single sites may stand beside a total, so that no hidden site can be worked out.

A site that is in the total and not among the figures is hidden. Taken off the total, the figures of all others show one
hidden site, or two together; of three and more nothing is told of any one of them.
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")

FEWEST_HIDDEN = 3


def may_stand_beside(total: Collection[str], shown: Collection[str]) -> bool:
    """Whether figures of the sites ``shown`` may be seen beside a total over the sites ``total``."""
    hidden = set(total) - set(shown)
    return not hidden or len(hidden) >= FEWEST_HIDDEN


def beside(total: Collection[str], figures: Mapping[str, T]) -> dict[str, T]:
    """The figures of single sites that may stand beside a total over the sites ``total``: all of them, or none."""
    return dict(figures) if may_stand_beside(total, figures) else {}
