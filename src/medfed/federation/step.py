"""What a step declares and what it returns. The declaration is what a site approves and the gate enforces.

A step is a pure function of a site's read-only view and the call's inputs; it lives in an installed package and is
named ``distribution:dotted.path``, so no code travels.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from medfed.errors import PolicyViolation
from medfed.federation.ring import FRACTION_BITS, bits_of_one_limb, limbs_needed, on_grid

__all__ = ["Count", "Input", "Keep", "Out", "Reply", "Step", "Sum", "bind", "on_grid", "shape_of", "step"]

Size = int | tuple[int]
Sizes = Mapping[str, Size]


@dataclass(frozen=True)
class Input:
    """One input of a call: its shape in the study's sizes and the largest absolute value a site accepts.

    model: whether it is part of the model that is judged; a site counts how many models are opened on test rows.
    meaning: what it is to standardised features, so that the gate can bound how steep a model may be. "outcome coefficients":
    of a model that is logistic where the study's outcome is a code, and linear, which no slope makes a threshold, elsewhere.
    "line": (intercept, slope) laid on the model's predictor.
    """

    shape: str
    limit: float
    model: bool = False
    meaning: Literal["", "coefficients", "outcome coefficients", "centre", "scale", "line"] = ""


# The most that noise adds to a total, in bounds on one unit: 40 standard deviations of the widest noise there is.
NOISE_AT_MOST = 65_536


@dataclass(frozen=True)
class Sum:
    """A sum over patients, added across sites in the ring. Each entry is held to ``limit``, or to ``limit_per_row`` x rows.

    unit_bound: the step returns a row of terms for each of its rows, (rows, *shape), instead of their sum. The federation
    adds them up by unit (patient), shortens each unit's terms to this L2 norm and sums; in a study with an epsilon it
    adds noise. metered: made from ``site.noisy_sum`` alone, so that it carries its noise already.
    """

    shape: str = ""
    limit: float | None = None
    limit_per_row: float | None = None
    unit_bound: float | None = None
    metered: bool = False

    def at_most(self, rows: Any) -> Any:
        """Largest absolute value of an entry at a site with so many rows (a number or an array)."""
        if self.unit_bound is not None:
            return self.unit_bound * rows
        return self.limit if self.limit is not None else (self.limit_per_row or 0.0) * rows

    def limbs(self, *, rows_at_most: int, sites_at_most: int) -> int:
        """Width of the ring, from public numbers only. Always 1 for bounded terms, whose total must tell nothing beside itself."""
        if self.unit_bound is not None:
            return 1
        return limbs_needed(float(self.at_most(rows_at_most)) * sites_at_most)

    def bits(self, *, rows_at_most: int, sites_at_most: int) -> int:
        """Fractional bits in the ring, from public numbers only: 40, or of bounded terms as many as one limb holds."""
        if self.unit_bound is None:
            return FRACTION_BITS
        return bits_of_one_limb(float(self.at_most(rows_at_most + NOISE_AT_MOST)) * sites_at_most)


@dataclass(frozen=True)
class Count:
    """Whole units, added across sites, each entry under the minimum-cell rule.

    ``zero_is_small`` says whether an empty cell is held back like a small one. A step that merges neighbouring
    cells to the site's minimum (``site.minimum_cell``) says False: its empty cells are the merged ones.
    merges: under secure sums neighbours along the first axis are merged by rule on signed totals (``merging``), all columns
    of such releases with the same borders ("together"), or each column along the second axis with its own ("apart"). A
    merged cell's count stands at its last place.
    """

    shape: str = ""
    zero_is_small: bool = True
    merges: Literal["", "together", "apart"] = ""

    def limbs(self, *, rows_at_most: int, sites_at_most: int) -> int:
        """Width of the ring, from public numbers only."""
        return limbs_needed(float(rows_at_most) * sites_at_most)

    def bits(self, *, rows_at_most: int, sites_at_most: int) -> int:
        """Fractional bits in the ring."""
        return FRACTION_BITS


@dataclass(frozen=True)
class Reply:
    """A figure of one site, seen by itself: for ``gather`` only, and only where the site's policy lists its name.

    site_terms: estimates of this site alone (its coefficients); the policy must also have ``site_terms_visible``.
    """

    shape: str = ""
    limit: float = 1e6
    minimum_patients: int = 10
    site_terms: bool = False


Release = Sum | Count | Reply


@dataclass(frozen=True)
class Keep:
    """What stays at the site between calls, starting as zeros; shared by the steps that name the same slot."""

    slot: str
    shapes: Mapping[str, str]
    writes: bool = True


@dataclass(frozen=True)
class Out:
    """What a step returns.

    release: arrays that are to leave. keep: arrays for the step's slot. local: arrays for the site's own people,
    never sent. effective_patients: how many patients the released sums rest on, (sum w)^2 / sum w^2 of the weights
    (Kish 1965); the gate holds back a release that rests on fewer than the site's minimum. A twin gives one a site.
    effective_of: of how many patients they are, all of the site's where it is None: under secure sums the weights may let
    no patient stand out of these. Both may list several groups; 0 patients: a count that is judged on totals as well.
    ordinary_patients: the sum of the weights over what one weighs where all are alike, as at the site's mean outcome. Under
    secure sums the gate holds back a release whose weights next to vanish here: the total would be that of few patients
    elsewhere. A twin gives one a site.
    """

    release: Mapping[str, Any]
    keep: Mapping[str, Any] | None = None
    local: Mapping[str, Any] | None = None
    effective_patients: Any = None
    effective_of: Any = None
    ordinary_patients: Any = None


@dataclass(eq=False)
class Step:
    """A function with its declaration; ``batched`` adds a twin that computes many sites at once.

    ranges: (study, variant) -> low, high and is-a-number of each column that its coefficients belong to, for the
    gate's bound on steepness; the study's features where it is None.
    """

    function: Callable[..., Out]
    reads: tuple[str, ...]
    takes: Mapping[str, Input]
    releases: Mapping[str, Release]
    keeps: Keep | None
    name: str = ""
    twin: Callable[..., Out] | None = field(default=None, repr=False)
    ranges: Callable[[Any, str | None], tuple[Any, Any, Any]] | None = field(default=None, repr=False)

    def __call__(self, site: Any, **inputs: Any) -> Out:
        return self.function(site, **inputs)

    def batched(self, twin: Callable[..., Out]) -> Callable[..., Out]:
        """Decorator: this function computes the same for stacked sites (see ``Sites``)."""
        if self.is_bounded or self.is_metered:
            raise TypeError(f"{self.name}: a step with bounded or metered releases has no twin")
        self.twin = twin
        return twin

    @property
    def is_sum(self) -> bool:
        """Whether its releases are added across sites (else they are replies, for ``gather``)."""
        return not any(isinstance(kind, Reply) for kind in self.releases.values())

    @property
    def is_bounded(self) -> bool:
        """Whether every release is a sum of bounded per-unit terms, which the federation can give its noise."""
        return all(isinstance(kind, Sum) and kind.unit_bound is not None for kind in self.releases.values())

    @property
    def is_metered(self) -> bool:
        """Whether every release is made from noisy sums that the step itself asked for."""
        return all(isinstance(kind, Sum) and kind.metered for kind in self.releases.values())


def step(
    *,
    reads: str | tuple[str, ...] = "train",
    takes: Mapping[str, Input] | None = None,
    releases: Mapping[str, Release],
    keeps: Keep | None = None,
    ranges: Callable[[Any, str | None], tuple[Any, Any, Any]] | None = None,
) -> Callable[[Callable[..., Out]], Step]:
    """Declare a step. Its name is ``distribution:module.function``; the distribution is that of the top package."""

    def declare(function: Callable[..., Out]) -> Step:
        kinds = {isinstance(kind, Reply) for kind in releases.values()}
        if len(kinds) > 1:
            raise TypeError(f"{function.__qualname__}: a step releases sums or replies, not both")
        bounded = {isinstance(kind, Sum) and kind.unit_bound is not None for kind in releases.values()}
        metered = {isinstance(kind, Sum) and kind.metered for kind in releases.values()}
        if len(bounded) > 1 or len(metered) > 1 or (True in bounded and True in metered):
            raise TypeError(
                f"{function.__qualname__}: either all releases are bounded by unit, or all metered, or none"
            )
        parts = (reads,) if isinstance(reads, str) else reads
        name = f"{function.__module__}.{function.__qualname__}"
        return Step(function, parts, dict(takes or {}), dict(releases), keeps, name, ranges=ranges)

    return declare


_TRIANGLE = re.compile(r"triangle\((\w+)\)")


def _extent(word: str, sizes: Sizes) -> int:
    if word.isdigit():
        return int(word)
    if match := _TRIANGLE.fullmatch(word):
        side = _extent(match[1], sizes)
        return side * (side + 1) // 2
    if word.endswith("+1"):
        return _extent(word[:-2], sizes) + 1
    size = sizes[word]
    if isinstance(size, tuple):
        raise PolicyViolation(f"the size {word!r} is chosen by an input, and no input of this call has it")
    return size


def shape_of(text: str, sizes: Sizes) -> tuple[int, ...]:
    """ "p,triangle(p),bins+1,2" -> a shape. A name is a size of the study or one that an input has bound."""
    return tuple(_extent(word.strip(), sizes) for word in text.split(",") if word.strip())


def bind(takes: Mapping[str, Input], inputs: Mapping[str, Any], sizes: Sizes) -> dict[str, Size]:
    """Sizes with those filled in that an input's shape chooses, never above what the study allows (``(most,)``)."""
    bound = dict(sizes)
    for name, declared in takes.items():
        if name not in inputs:
            continue
        words = [word.strip() for word in declared.shape.split(",") if word.strip()]
        shape = np.shape(inputs[name])
        if len(words) != len(shape):
            raise PolicyViolation(f"input {name!r} has {len(shape)} dimensions, {len(words)} are declared")
        for word, extent in zip(words, shape, strict=True):
            most = bound.get(word)
            if isinstance(most, tuple):
                if extent > most[0]:
                    raise PolicyViolation(f"input {name!r}: {word} is {extent}, at most {most[0]} is approved")
                bound[word] = extent
    return bound
