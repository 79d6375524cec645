"""Variables of a study: meaning, type, unit, range or codes, role, and what a missing value means."""

import difflib
from functools import lru_cache
from typing import Annotated, Literal, Self

import pint
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator


class Translated(BaseModel):
    """A text in English and Chinese."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    en: str = Field(min_length=1)
    zh: str | None = None


Text = Annotated[str, StringConstraints(min_length=1)] | Translated
Code = str
# Units of medicine that pint makes from a prefix, for suggestions: without them "mmoll" would be near to "mol".
_WITH_PREFIX = (
    "mmol",
    "umol",
    "nmol",
    "pmol",
    "kg",
    "mg",
    "ug",
    "ng",
    "ml",
    "dl",
    "ul",
    "fl",
    "cm",
    "mm",
    "um",
    "ms",
    "kPa",
)


def text_in(value: Text, lang: str) -> str:
    """The text in ``lang``, or in English where there is no translation."""
    if isinstance(value, str):
        return value
    return (value.zh if lang == "zh" else None) or value.en


@lru_cache(maxsize=1)
def unit_registry() -> pint.UnitRegistry:  # type: ignore[type-arg]
    """Pint's registry, made once: it takes a quarter of a second."""
    return pint.UnitRegistry(cache_folder=None)


def unit_problem(unit: str) -> str | None:
    """Why a unit can't be understood, with the nearest one that can; None when all is well."""
    if unit == "1":
        return None
    registry = unit_registry()
    try:
        registry.parse_units(unit)
        return None
    except Exception:  # pint raises its own, tokenizer and attribute errors
        words = [word for word in unit.replace("/", " ").replace("*", " ").replace("^", " ").split() if word.isalpha()]
        for word in words:
            if word not in registry:
                known = [*_WITH_PREFIX, *(name for name in dir(registry) if name.isalpha())]
                close = difflib.get_close_matches(word, known, 1, 0.6)
                hint = f"; did you mean {unit.replace(word, close[0])!r}?" if close else ""
                return f"there is no unit {word!r}{hint}"
        return f"{unit!r} is not a unit; write for example 'mmol/l', 'kg/m**2', 'year', or '1' for a pure number"


class Variable(BaseModel):
    """One variable, as every site must deliver it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    meaning: Text
    type: Literal["number", "code", "date", "text"]
    role: Literal["outcome", "arm", "covariate", "part", "cohort"]
    unit: str | None = None
    range: tuple[float, float] | None = None
    codes: dict[str, Text] | None = None
    event: str | None = None
    reference: str | None = None
    missing: Literal["drop", "mean", "unknown"] = "drop"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.type == "number":
            if self.range is None or self.unit is None:
                raise ValueError("a number has a `unit` and a `range: [lowest, highest]`")
            if not self.range[0] < self.range[1]:
                raise ValueError(
                    f"range: the lowest value {self.range[0]:g} is not below the highest {self.range[1]:g}"
                )
            if problem := unit_problem(self.unit):
                raise ValueError(f"unit: {problem}")
            if self.codes is not None:
                raise ValueError("codes: a number has no codes; use `type: code`")
        elif self.unit is not None or self.range is not None:
            raise ValueError(f"`unit` and `range` belong to numbers; this variable is of type {self.type}")
        if self.type == "code":
            if not self.codes or len(self.codes) < 2:
                raise ValueError("codes: a variable of type code has at least two codes")
            if "unknown" in self.codes and self.missing == "unknown":
                raise ValueError("codes: 'unknown' is added by `missing: unknown`; remove the code or the rule")
        for key, value in (("event", self.event), ("reference", self.reference)):
            if value is not None and value not in (self.codes or {}):
                close = difflib.get_close_matches(value, list(self.codes or ()), 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{key}: {value!r} is not among the codes{hint}")
        if self.role == "outcome" and self.type == "code" and self.event is None:
            raise ValueError("event: an outcome of type code says which code is the event")
        if self.event is not None and self.role != "outcome":
            raise ValueError("event: only an outcome has an event")
        if self.missing == "mean" and self.type != "number":
            raise ValueError("missing: `mean` is for numbers; use `unknown` or `drop`")
        if self.missing == "unknown" and self.type != "code":
            raise ValueError("missing: `unknown` is for codes; use `mean` or `drop`")
        if self.role in ("outcome", "arm", "part") and self.missing != "drop":
            raise ValueError(f"missing: an {self.role} can't be made up; its missing rule is `drop`")
        if self.role in ("covariate", "outcome") and self.type not in ("number", "code"):
            raise ValueError(f"type: a {self.role} is a number or a code, not a {self.type}")
        return self
