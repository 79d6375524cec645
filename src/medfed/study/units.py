"""Units as pint reads them, and what to write instead of what it can't read."""

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache

import pint

# Units of medicine that pint makes from a prefix, for suggestions: without them "mmoll" would be near to "mol".
_WITH_PREFIX = (
    "mmol", "umol", "nmol", "pmol", "kg", "mg", "ug", "ng", "ml", "dl", "ul", "fl", "cm", "mm", "um", "ms", "kPa",
)  # fmt: skip
# What medicine writes and pint does not know; the nearest word would mislead ("bpm" is near to "bp").
_SAID_OTHERWISE = {
    "bpm": "write '1/minute'",
    "cells": "a count is a pure number; write for example '1/ul'",
    "IU": "its size depends on the substance; write '1' and name the unit in the meaning",
    "mIU": "its size depends on the substance; write '1' and name the unit in the meaning",
    "points": "a score is a pure number; write '1'",
    "score": "a score is a pure number; write '1'",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: did you mean the known word that is nearest? Empty where none is near."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


@lru_cache(maxsize=1)
def unit_registry() -> pint.UnitRegistry:  # type: ignore[type-arg]
    """Pint's registry, made once: it takes a quarter of a second."""
    return pint.UnitRegistry(cache_folder=None)


def unit_problem(unit: str) -> str | None:
    """Why a unit can't be understood, with the nearest one that can; None when all is well."""
    if unit == "1":
        return None
    general = f"{unit!r} is not a unit; write for example 'mmol/l', 'kg/m**2', 'year', or '1' for a pure number"
    if not unit.strip():
        return general
    # Pint takes // for a division and would let the slip pass.
    mended = re.sub(r"/(\s*/)+", "/", re.sub(r"\^[\^*]+|\*+\^|\*{3,}", "**", unit))
    if mended != unit:
        return f"{unit!r} is not a unit; did you mean {mended!r}?" if _is_unit(mended) else general
    if _is_unit(unit):
        return None
    if factor := re.fullmatch(r"x?10(?:\^|\*\*|E)?(9|12)\s*/\s*[lL]", unit):
        same = {"9": "1/nl", "12": "1/pl"}[factor[1]]
        return f"a unit has no factor; write {same!r}, which is the same as {unit!r}"
    registry = unit_registry()
    words = [word for word in re.split(r"[/*^\s]+", unit) if word.isalpha()]
    for word in words:
        if word in _SAID_OTHERWISE:
            return f"there is no unit {word!r}; {_SAID_OTHERWISE[word]}"
        if word not in registry:
            known = [*_WITH_PREFIX, *(name for name in dir(registry) if name.isalpha())]
            close = difflib.get_close_matches(word, known, 1, 0.6)
            if close:
                return f"there is no unit {word!r}; did you mean {unit.replace(word, close[0])!r}?"
            return f"there is no unit {word[:40]!r}; write for example 'mmol/l', 'year', or '1' for a pure number"
    return general


def _is_unit(unit: str) -> bool:
    try:
        unit_registry().parse_units(unit)
    except Exception:  # pint raises its own, tokenizer and attribute errors
        return False
    return True


def is_unit_of_time(unit: str) -> bool:
    """Whether a unit that pint can read measures time."""
    return dict(unit_registry().get_dimensionality(unit)) == {"[time]": 1}


def absolute_zero(unit: str) -> float | None:
    """The lowest temperature there is, on a scale such as degC; None for other units, and for kelvin differences."""
    registry = unit_registry()
    if dict(registry.get_dimensionality(unit)) != {"[temperature]": 1}:
        return None
    if registry.Quantity(0.0, unit).to("kelvin").magnitude == 0.0:
        return None
    return float(registry.Quantity(0.0, "kelvin").to(unit).magnitude)
