"""Variables of a study: meaning, type, unit, range or codes, role, and what a missing value means."""

import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from medfed.study.units import absolute_zero, is_unit_of_time, nearest, unit_problem, unit_registry

MOST_INTERVALS = 5000


class Translated(BaseModel):
    """A text in English and Chinese."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    en: str = Field(min_length=1)
    zh: str | None = None


Text = Annotated[str, StringConstraints(min_length=1)] | Translated
Code = str


def text_in(value: Text, lang: str) -> str:
    """The text in ``lang``, or in English where there is no translation."""
    if isinstance(value, str):
        return value
    return (value.zh if lang == "zh" else None) or value.en


def one_of(known: Iterable[str]) -> str:
    """The end of a sentence: what there is to choose from. Empty where there is no choice."""
    words = list(known)
    return f"; choose {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else ""


def _grid_problem(interval: float, last: float) -> str | None:
    """Why a grid of this interval up to the last time is impossible, as "key: sentence"."""
    count = last / interval
    if abs(count - round(count)) > 1e-9 * max(count, 1.0) or round(count) < 1:
        nearest_end = max(math.ceil(count - 1e-9), 1) * interval
        return (
            f"interval: {last:g} is no whole number of intervals of {interval:g}; write `horizon: {nearest_end:g}` with "
            "a range that reaches it, or another interval"
        )
    if round(count) > MOST_INTERVALS:
        return f"interval: a grid of {round(count)} intervals is too fine; {MOST_INTERVALS} are possible, so widen it"
    return None


def _two_numbers(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError("a range has two numbers; write [lowest, highest]")
    return value


def _absent(value: Any) -> bool:
    return value is None


class Variable(BaseModel):
    """One variable, as every site must deliver it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    meaning: Text
    type: Literal["number", "code", "date", "text"]
    role: Literal["outcome", "arm", "covariate", "part", "cohort", "time", "offset", "weight"]
    unit: str | None = None
    range: Annotated[tuple[float, float], BeforeValidator(_two_numbers)] | None = None
    codes: dict[str, Text] | None = None
    event: str | None = None
    reference: str | None = None
    missing: Literal["drop", "mean", "unknown"] = "drop"
    # The grid of a time: absent from the file of any other variable, and then from the study's hash.
    interval: float | None = Field(default=None, gt=0, exclude_if=_absent)
    horizon: float | None = Field(default=None, gt=0, exclude_if=_absent)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._number(), *self._code(), *self._role(), *self._time()]:
            raise ValueError("\n".join(problems))
        return self

    def _number(self) -> Iterator[str]:
        if self.type != "number":
            if self.unit is not None or self.range is not None:
                yield f"`unit` and `range` belong to numbers; this variable is of type {self.type}"
            if self.missing == "mean":
                yield "missing: `mean` is for numbers; use `unknown` or `drop`"
            return
        if self.range is None or self.unit is None:
            yield "a number has a `unit` and a `range: [lowest, highest]`"
        if self.range and not self.range[0] < self.range[1]:
            remedy = "swap them" if self.range[0] > self.range[1] else "widen the range"
            yield f"range: the lowest value {self.range[0]:g} is not below the highest {self.range[1]:g}; {remedy}"
        if self.unit is not None:
            if problem := unit_problem(self.unit):
                yield f"unit: {problem}"
            elif self.range and (zero := absolute_zero(self.unit)) is not None and self.range[0] < zero:
                yield f"range: {self.range[0]:g} {self.unit} is below absolute zero, {zero:g}; correct the lowest value"
        if self.codes is not None:
            yield "codes: a number has no codes; use `type: code`"

    def _code(self) -> Iterator[str]:
        codes = self.codes or {}
        if self.type == "code":
            if len(codes) < 2:
                yield "codes: a variable of type code has at least two codes; a constant says nothing"
            if "" in codes:
                yield 'codes: a code is not empty; name it, and list "" among the site\'s missing codes'
            if "unknown" in codes and self.missing == "unknown":
                yield "codes: 'unknown' is added by `missing: unknown`; remove the code or the rule"
        elif self.missing == "unknown":
            yield "missing: `unknown` is for codes; use `mean` or `drop`"
        for key, value in (("event", self.event), ("reference", self.reference)):
            if value is not None and value not in codes:
                yield f"{key}: {value!r} is not among the codes{nearest(value, codes) or one_of(codes)}"

    def _role(self) -> Iterator[str]:
        if self.role == "outcome" and self.type == "code" and self.event is None:
            yield f"event: an outcome of type code says which code is the event{one_of(self.codes or {})}"
        if self.event is not None and self.role != "outcome":
            yield "event: only an outcome has an event; remove it"
        if self.reference is not None and self.role not in ("arm", "covariate"):
            yield f"reference: only an arm or a covariate has a reference, not an {self.role}; remove it"
        if self.role in ("offset", "weight") and self.type != "number":
            yield f"type: {'an' if self.role == 'offset' else 'a'} {self.role} is a number, not a {self.type}"
        if self.role == "weight" and self.range and self.range[0] <= 0:
            yield (
                f"range: a weight of {self.range[0]:g} is possible, and a weight is above 0; raise the lowest value, "
                "and leave rows without weight out of the cohort"
            )
        if self.role in ("outcome", "arm", "part", "time", "offset", "weight") and self.missing != "drop":
            article = "a" if self.role in ("time", "weight") else "an"
            yield f"missing: {article} {self.role} can't be made up; its missing rule is `drop`"
        if self.role in ("covariate", "outcome") and self.type not in ("number", "code"):
            yield f"type: a {self.role} is a number or a code, not a {self.type}"

    def _time(self) -> Iterator[str]:
        if self.role != "time":
            if self.interval is not None or self.horizon is not None:
                yield "interval: only a time has an `interval` and a `horizon`; remove them, or write `role: time`"
            return
        if self.type != "number":
            yield f"type: a time is a number, as days since the start of follow-up, not a {self.type}"
        if self.unit is not None and not unit_problem(self.unit) and not is_unit_of_time(self.unit):
            yield f"unit: {self.unit!r} is no unit of time; write day, week, month or year"
        if self.interval is None:
            yield "interval: a time has the width of its grid's intervals, in its unit; write for example `interval: 1`"
        if self.range is None:
            return
        if self.range[0] < 0:
            yield f"range: a time is not negative, and {self.range[0]:g} is; begin the range at 0"
        last = self.last_time
        if last > self.range[1]:
            yield f"horizon: {last:g} is beyond the range, which ends at {self.range[1]:g}; widen it, or lower the horizon"
        if self.interval is not None and (problem := _grid_problem(self.interval, last)):
            yield problem

    @property
    def last_time(self) -> float:
        """The end of follow-up: what comes later is censored there. The range's end where no horizon is declared."""
        return self.horizon if self.horizon is not None else (self.range or (0.0, 0.0))[1]

    @property
    def intervals(self) -> int:
        """How many intervals the grid of a time has; 0 for other variables."""
        return round(self.last_time / self.interval) if self.interval else 0


__all__ = ["Code", "Text", "Translated", "Variable", "nearest", "one_of", "text_in", "unit_problem", "unit_registry"]
