"""What a study declares: plain frozen values, checked against each other when they are made. No behaviour.

Pydantic models, since a study enters from a file; unknown keys are refused everywhere.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from medfed.canonical import canonical_json
from medfed.declarations import validate
from medfed.errors import StudyError
from medfed.study.contradictions import contradictions
from medfed.study.design import Column, Design, Formula
from medfed.study.formula import default_formula, parse_formula
from medfed.study.variables import Code, Text, Variable, text_in


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,59}", text):
        raise ValueError(f"{text!r} is no name here; it has a-z, 0-9 and hyphens, and begins with a letter")
    return text


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,59}", text):
        raise ValueError(
            f"{text!r} is no variable's name; it has letters, digits and underscores (its meaning is free)"
        )
    if text in ("intercept", "features", "fold"):
        raise ValueError(f"{text!r} is the name of something that is worked out; choose another")
    return text


def _installed_class(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+:[A-Za-z_][\w.]*\.[A-Za-z_]\w*", text):
        raise ValueError(
            f"{text!r} names no class of an installed package; write it as in medfed:medfed.methods.newton.Newton"
        )
    return text


Name = Annotated[str, AfterValidator(_name)]
VariableName = Annotated[str, AfterValidator(_variable_name)]


class Declared(BaseModel):
    """A part of a study: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Rule(Declared):
    """One condition of the cohort; a row stays if all conditions hold. A missing value fails every condition."""

    variable: str
    at_least: float | None = None
    at_most: float | None = None
    is_one_of: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        bounds = self.at_least is not None or self.at_most is not None
        if bounds == (self.is_one_of is not None):
            raise ValueError("a cohort rule has `at_least` and/or `at_most`, or `is_one_of`")
        if self.is_one_of == ():
            raise ValueError("is_one_of: an empty list leaves nobody; name the codes that stay, or remove the rule")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least: nothing is at least {self.at_least:g} and at most {self.at_most:g}; swap them")
        return self


class Cohort(Declared):
    """Who is in the study."""

    include: tuple[Rule, ...] = ()


class Task(Declared):
    """What is to be learned, and how code variables become features."""

    kind: Literal["treatment_effect", "risk_prediction", "survival", "association"]
    coding: Literal["reference", "all_levels"] = "reference"


class MethodUse(Declared):
    """A method of an installed package, ``distribution:dotted.path.Class``, with its settings."""

    use: Annotated[str, AfterValidator(_installed_class)]
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)


class Parts(Declared):
    """How rows are divided when the table is built: not at all, in folds, in fractions, or by a variable."""

    kind: Literal["all", "folds", "fractions", "variable"] = "all"
    folds: int | None = None
    train: float | None = Field(default=None, gt=0, le=1)
    valid: float | None = Field(default=None, ge=0, lt=1)
    test: float | None = Field(default=None, ge=0, lt=1)
    variable: str | None = None
    valid_fraction: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.kind == "folds") != (self.folds is not None):
            raise ValueError("`folds: N` belongs to `kind: folds`, and is needed there")
        if self.folds is not None and not 2 <= self.folds <= 20:
            raise ValueError(
                f"folds: {self.folds} is not possible; choose 2 to 20, so that each has events at each site"
            )
        if (self.kind == "variable") != (self.variable is not None):
            raise ValueError("`variable: NAME` belongs to `kind: variable`, and is needed there")
        fractions = [self.train, self.valid, self.test]
        if self.kind == "fractions":
            if self.train is None or abs(sum(f or 0.0 for f in fractions) - 1) > 1e-9:
                raise ValueError("`train`, `valid` and `test` are fractions that add up to 1")
        elif any(f is not None for f in fractions):
            raise ValueError("`train`, `valid` and `test` belong to `kind: fractions`")
        if self.valid_fraction and self.kind != "variable":
            raise ValueError("`valid_fraction` belongs to `kind: variable`")
        return self


DELTA = 1e-5
LARGEST_EPSILON = 50.0
LARGEST_DELTA = 0.01


class Privacy(Declared):
    """How sums are protected. ``strongest``: as well as the installed engine can.

    epsilon, delta: differential privacy of every patient, added or removed, over all that a run releases at a site. With
    an epsilon every sum carries noise, and what can't is refused before the run. delta: 1e-5 where only epsilon is given.
    """

    sums: Literal["strongest", "plain"] = "strongest"
    minimum_cell: int = Field(default=10, ge=1)
    epsilon: float | None = Field(default=None, gt=0, le=LARGEST_EPSILON)
    delta: float | None = Field(default=None, gt=0, le=LARGEST_DELTA)

    @model_validator(mode="before")
    @classmethod
    def _with_delta(cls, declared: Any) -> Any:
        if isinstance(declared, Mapping) and declared.get("epsilon") is not None and declared.get("delta") is None:
            return {**declared, "delta": DELTA}
        return declared

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.epsilon is None and self.delta is not None:
            raise ValueError("delta: a delta needs an epsilon; give one, or remove the delta")
        return self


class Evaluation(Declared):
    """How the result is judged. bins: score bins for AUC and calibration."""

    design: Literal["none", "cross_validation", "leave_one_site_out", "holdout"] = "none"
    compare: tuple[Literal["local", "federated", "pooled"], ...] = ("federated",)
    variants: tuple[str, ...] = ()
    bins: int = Field(default=64, ge=4, le=1024)


class Sites(Declared):
    """Who is invited, how few may answer, and how long a call waits for one that is away."""

    invited: tuple[Name, ...]
    minimum: int = Field(default=2, ge=1)
    deadline_minutes: float = Field(default=10.0, gt=0, le=60 * 24 * 30)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.invited:
            raise ValueError("invited: nobody is invited; name the sites, as in [north, south]")
        return self

    @property
    def deadline_seconds(self) -> float:
        return 60.0 * self.deadline_minutes


class Limits(Declared):
    """Public bounds that size the ring of exact sums."""

    rows_per_site: int = Field(default=100_000, ge=1, le=1_000_000_000)


class Study(Declared):
    """One declared question. ``hash`` names it; a site approves the hash."""

    medfed: Literal[1]
    name: Name
    title: Text
    question: Text
    unit: str = Field(default="patient", min_length=1)
    protects: Literal["patient", "none"] = "patient"
    variables: dict[VariableName, Variable] = Field(min_length=1)
    cohort: Cohort = Cohort()
    task: Task
    method: MethodUse
    variants: dict[Name, MethodUse] = Field(default_factory=dict)
    parts: Parts = Parts()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    seed: int = Field(default=1, ge=0, lt=2**63)
    sites: Sites
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # A contradiction is told at the key that a reader would change: "key: sentence".
        if problems := contradictions(self):
            raise ValueError("\n".join(problems))
        return self

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the parsed study: comments and the order of keys don't change it.

        The order of variables and of a variable's codes does: it is that of the features and of their levels.
        """
        content = self.model_dump(mode="json")
        if self.privacy.epsilon is None:  # a study without noise keeps the hash that it had before there was any
            del content["privacy"]["epsilon"], content["privacy"]["delta"]
        return self._digest(content)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A changed study, checked as one from a file. Raises StudyError.

        Pydantic's own copies what was worked out before the change, the hash among it, and checks nothing.
        """
        return validate(type(self), self.model_dump() | dict(update or {}), {}, "study", StudyError)

    def _digest(self, content: dict[str, Any]) -> str:
        order = {name: list(variable.codes or ()) for name, variable in self.variables.items()}
        return hashlib.sha256(canonical_json([content, list(order.items())]).encode()).hexdigest()

    @cached_property
    def table_hash(self) -> str:
        """SHA-256 of what determines the study table, and of nothing else."""
        kept = self.model_dump(
            mode="json", include={"variables", "cohort", "unit", "protects", "parts", "seed", "task"}
        )
        return self._digest(kept)

    def _with_role(self, role: str) -> str | None:
        return next((name for name, variable in self.variables.items() if variable.role == role), None)

    @cached_property
    def outcome(self) -> str:
        """Name of the outcome."""
        return self._with_role("outcome") or ""

    @cached_property
    def arm(self) -> str | None:
        """Name of the treatment variable, if the study has one."""
        return self._with_role("arm")

    @cached_property
    def time(self) -> str | None:
        """Name of the time to the event or to the end of follow-up, in a survival study."""
        return self._with_role("time")

    @cached_property
    def weight(self) -> str | None:
        """Name of the variable that weights rows, if the study has one."""
        return self._with_role("weight")

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Names of the variables of which a sum may be a count: of features, outcome, arm, weights and offsets."""
        names = [column.variable for column in self.design.columns if column.variable]
        names += [name for name in (self.outcome, self.arm) if name]
        names += [name for name, variable in self.variables.items() if variable.role in ("weight", "offset")]
        return tuple(dict.fromkeys(names))

    @cached_property
    def covariates(self) -> tuple[str, ...]:
        """Names of the covariates, in the study's order."""
        return tuple(name for name, variable in self.variables.items() if variable.role == "covariate")

    @cached_property
    def design(self) -> Design:
        """The feature columns that the study's variables become."""
        columns = [Column("intercept", "", "intercept", None, 0.0, 1.0)]
        for name, variable in self.variables.items():
            if variable.role == "covariate" or (
                variable.role == "arm" and self.task.kind in ("treatment_effect", "survival")
            ):
                columns += _columns_of(name, variable, self.task.coding)
        return Design(tuple(columns))

    @cached_property
    def formulas(self) -> dict[str, Formula]:
        """Formulas that were parsed, by text: see ``formula``."""
        return {}

    def formula(self, variant: str | None = None) -> Formula:
        """The formula among the settings of the method, or of a variant; main effects of everything where none is.

        Raises StudyError for one that can't be understood.
        """
        text = str(self.settings_of(variant).get("formula") or default_formula(self.variables))
        if text not in self.formulas:
            self.formulas[text] = parse_formula(text, self.variables, self.outcome)
        return self.formulas[text]

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers that are described, in the study's order: the outcome and covariates.

        Of a cohort's and of times sites do not look whether their few values make sums counts.
        """
        return tuple(
            name
            for name, variable in self.variables.items()
            if variable.type == "number" and variable.role in ("outcome", "covariate")
        )

    @cached_property
    def levels(self) -> tuple[tuple[str, str, int], ...]:
        """(variable, code, index as stored) of every code of every coded variable; "" and -1: the code is missing."""
        return tuple(
            (name, code, index)
            for name, variable in self.variables.items()
            if variable.type == "code"
            for index, code in (*enumerate(variable.codes or ()), (-1, ""))
        )

    @cached_property
    def sizes(self) -> dict[str, int | tuple[int]]:
        """The study's sizes, by the names that steps use in shapes. (n,): chosen by an input, at most n.

        terms: columns of the formula; numbers, levels: variables and codes that are described; cells: ranges of
        numbers that are asked about at once; groups: arms, or outcomes in a study without arms.
        """
        sizes: dict[str, int | tuple[int]] = {
            "p": len(self.design.columns),
            "terms": (max(self._terms(variant) for variant in (None, *self.variants)),),
            "numbers": len(self.numbers),
            "levels": len(self.levels),
            "cells": (2048,),
            "groups": len(self.variables[self.arm].codes or ()) if self.arm else 2,
            "outcomes": 2,
            "bins": (self.evaluation.bins,),
            "folds": (max(self.parts.folds or 1, 1),),
            "described_codes": sum(len(variable.codes or ()) for variable in self.variables.values()),
            "described_numbers": sum(variable.type == "number" for variable in self.variables.values()),
        }
        if self.arm:
            sizes["arms"] = len(self.variables[self.arm].codes or ())
        if self.time:
            sizes |= self._survival_sizes(self.variables[self.time].intervals)
        return sizes

    def _survival_sizes(self, intervals: int) -> dict[str, int | tuple[int]]:
        """times: intervals of the declared grid; time_cells: neighbours of it merged; slopes: features but the intercept;
        indicators: those of them that are 0 or 1; compared: levels of the code variable that curves are compared by.
        """
        columns = self.design.columns
        levels = [len(variable.codes or ()) for variable in self.variables.values()]
        return {
            "times": intervals,
            "time_cells": (intervals,),
            "slopes": len(columns) - 1,
            "indicators": sum(column.kind == "indicator" for column in columns),
            "compared": (max([1, *levels]),),
        }

    def _terms(self, variant: str | None) -> int:
        """How many columns a formula has; of the one that stands where none is given, without building them."""
        if self.settings_of(variant).get("formula"):
            return len(self.formula(variant).columns)
        named = [variable for variable in self.variables.values() if variable.role in ("arm", "covariate")]
        return 1 + sum(len(v.codes or ()) - 1 + (v.missing == "unknown") if v.type == "code" else 1 for v in named)

    @property
    def rows_at_most(self) -> int:
        return self.limits.rows_per_site

    @property
    def sites_at_most(self) -> int:
        return len(self.sites.invited)

    @cached_property
    def test_models(self) -> int:
        """How many models evaluation may open on test rows: the method and its compared variants, local fits too."""
        methods = 1 + len(self.evaluation.variants)
        each = {"cross_validation": 2, "leave_one_site_out": 2 * len(self.sites.invited), "holdout": 2}
        return methods * each.get(self.evaluation.design, 1)

    @property
    def valid_models(self) -> int:
        """How many models may be put to validation rows: the method and every variant, in each fold."""
        return (1 + len(self.variants)) * (self.parts.folds or 1)

    def settings_of(self, variant: str | None = None) -> dict[str, bool | int | float | str]:
        """Settings of the method, or of a variant."""
        return dict(self.method.settings if variant is None else self.variants[variant].settings)

    @staticmethod
    def text(value: Text, lang: str = "en") -> str:
        """A text in a language, or in the one it was written in."""
        return text_in(value, lang)


def _columns_of(name: str, variable: Variable, coding: str) -> list[Column]:
    if variable.type == "number":
        low, high = variable.range or (0.0, 1.0)
        return [Column(name, name, "number", None, low, high)]
    levels = list(variable.codes or ())
    dropped = {variable.reference or levels[0]} if coding == "reference" or variable.role == "arm" else set()
    if variable.missing == "unknown":
        levels.append("unknown")
    return [Column(f"{name}={level}", name, "indicator", level, 0.0, 1.0) for level in levels if level not in dropped]


__all__ = ["Code", "Study", "Variable"]
