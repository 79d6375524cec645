"""What site.yaml may say: sources, the patient, and how each variable of a study comes out of the source.

Pydantic models, since the file is written by hand; what can be told without looking at the data is refused here.
"""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from medfed.study.variables import Text

_DATE_PARTS = re.compile(r"%(.)", re.DOTALL)
_KNOWN_PARTS = set("YymdbBjHIMSfp%")


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _code_text(value: object) -> object:
    """Whole numbers in a list of codes need no quotes: 9 is the text "9". 9.90 does: which text it was is lost."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _formats(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _dates_readable(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Each format names a whole date, and no two of them read the same text as different days."""
    for pattern in formats:
        parts = _DATE_PARTS.findall(pattern)
        if unknown := [part for part in parts if part not in _KNOWN_PARTS]:
            raise ValueError(
                f"in {pattern!r} there is no %{unknown[0]}; a date is made of %d, %m (or %b, %B), %Y (or %y)"
            )
        if not ({"Y", "y"} & set(parts) and ("j" in parts or ("d" in parts and {"m", "b", "B"} & set(parts)))):
            raise ValueError(
                f"{pattern!r} does not name day, month and year; write for example %d.%m.%Y for 31.12.1960"
            )
    probe = datetime(2003, 4, 5, 6, 7, 8)
    for first in formats:
        for second in formats:
            read = _read(probe.strftime(first), second)
            if read is not None and read.date() != probe.date():
                raise ValueError(
                    f"{first!r} and {second!r} read the same text as different days; declare one, and have the export use it"
                )
    return formats


def _read(text: str, pattern: str) -> datetime | None:
    try:
        return datetime.strptime(text, pattern)
    except ValueError:
        return None


CodeText = Annotated[str, BeforeValidator(_code_text)]
DateFormats = Annotated[
    tuple[str, ...], BeforeValidator(_formats), Field(min_length=1), AfterValidator(_dates_readable)
]


class Source(_Declared):
    """A file of the site. ``header``: column names of a CSV that has none."""

    path: str
    format: Literal["csv", "parquet"] = "csv"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    decimal: Literal[".", ","] = "."
    header: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        if self.format == "csv" and self.decimal == self.delimiter:
            raise ValueError(f"decimal: {self.decimal!r} is the delimiter as well; one of the two is not so")
        return self


class Patient(_Declared):
    """Where the patient's identifier stands; it becomes the pseudonym and goes no further."""

    source: str
    column: str


class YearsUntil(_Declared):
    """The later of two dates: the value is the number of completed years up to it."""

    column: str
    date_format: DateFormats | None = None


class Derive(_Declared):
    """A value worked out from several columns: exactly one of these.

    ratio, product, sum, difference: over column names or numbers, in order; missing where an operand is missing, and
    where a ratio divides by zero. any_of: over columns of codes, ``gives`` where one of them is mapped to it, missing
    where none is and one of them is missing, else the other code.
    """

    ratio: tuple[str | float, str | float] | None = None
    product: tuple[str | float, ...] | None = Field(default=None, min_length=2)
    sum: tuple[str | float, ...] | None = Field(default=None, min_length=2)
    difference: tuple[str | float, str | float] | None = None
    any_of: tuple[str, ...] | None = Field(default=None, min_length=1)
    gives: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set - {"gives"}) != 1:
            raise ValueError("derive has exactly one of ratio, product, sum, difference, any_of")
        if (self.any_of is None) != (self.gives is None):
            raise ValueError(
                "`any_of` lists columns and `gives` names the code that any of them decides; they belong together"
            )
        if not any(isinstance(operand, str) for operand in self.operation[1]):
            raise ValueError("derive needs at least one column among its operands")
        return self

    @property
    def operation(self) -> tuple[str, tuple[str | float, ...]]:
        """Name and operands."""
        name = next(iter(self.model_fields_set - {"gives"}))
        return name, getattr(self, name)


class VariableMapping(_Declared):
    """How one variable of a study comes out of the source."""

    column: str | None = None
    derive: Derive | None = None
    unit: str | None = None
    codes: dict[str, CodeText] | None = Field(default=None, min_length=1)
    missing_codes: tuple[CodeText, ...] = ()
    date_format: DateFormats | None = None
    years_until: YearsUntil | None = None
    round: Literal["down"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.column is None) == (self.derive is None):
            raise ValueError("a variable comes from `column: NAME` or from `derive: ...`")
        if self.derive is not None and (self.years_until or self.date_format):
            raise ValueError("date_format and years_until belong to `column: NAME`, not to `derive`")
        if self.codes is not None and (self.unit or self.years_until or self.round or self.date_format):
            raise ValueError("codes: a variable has codes, or a unit, a rounding or dates; not both")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The source's columns that it is made from."""
        found = [self.column] if self.column is not None else []
        if self.derive is not None:
            found += [operand for operand in self.derive.operation[1] if isinstance(operand, str)]
        if self.years_until is not None:
            found.append(self.years_until.column)
        return tuple(dict.fromkeys(found))


class SiteFile(_Declared):
    """site.yaml."""

    site: str = Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=60)
    title: Text | None = None
    sources: dict[str, Source] = Field(min_length=1)
    missing_codes: tuple[CodeText, ...] = ("", "NA")
    patient: Patient
    duplicates: Literal["refuse", "first", "last"] = "refuse"
    mapping: dict[str, VariableMapping] = Field(min_length=1)

    @model_validator(mode="after")
    def _source_exists(self) -> Self:
        if self.patient.source not in self.sources:
            raise ValueError(
                f"patient.source: there is no source {self.patient.source!r}; it is one of {', '.join(self.sources)}"
            )
        return self
