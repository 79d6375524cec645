"""What a report is made of: the JSON that a finished run leaves, checked here before a page is drawn from it.

Every figure that may be missing is None, and its neighbour says why where there is a reason of its own. Ends of an
interval that are infinite are None too, since JSON has no infinity. Keys that are not known here are kept, and go to
result.json with the rest.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medfed.errors import StudyError
from medfed.study.variables import Text

FEW_BINS = "fewer than 3 groups of scores reach the minimum cell"
NO_LOCAL_FIT = "the model can't be fitted on this site's rows alone"
NO_FINITE_SLOPE = "the calibration line has no finite estimate"
ROWS_APART = "the rows are not in one place"
SITES_HIDDEN = "the sites' policies do not allow figures of one site alone"
SITES_SUBTRACT = "taken off the total, they would show the one or two sites that are not to be seen by themselves"
NO_ANSWER = "the site did not answer"
NOT_REPORTED = "the run did not ask for it"


class Part(BaseModel):
    """A part of the report's data: frozen; unknown keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Interval(Part):
    """A value and the ends of its 95 % interval; reason: why there is no value. p: two-sided."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str | None = None


class ShownVariable(Part):
    """What a reader is told of a variable; a study's own declaration fits."""

    meaning: Text = ""
    unit: str | None = None
    codes: dict[str, Text] | None = None
    event: str | None = None


class StudyShown(Part):
    """The question. seed: of everything that was drawn. variables: by name, where labels better than names are wanted;
    outcome, arm: their names.
    """

    name: str
    title: Text
    question: Text
    hash: str
    unit: str = "patient"
    protects: Literal["patient", "none"] = "patient"
    seed: int | None = None
    variables: dict[str, ShownVariable] = Field(default_factory=dict)
    outcome: str | None = None
    arm: str | None = None


class SiteShown(Part):
    """An invited site: in the answer, or held back with a sentence of ours (English, the key of its translation)."""

    name: str
    title: Text
    counted: bool
    reason: str | None = None


class Arm(Interval):
    """A treatment arm: value is its risk."""

    name: str
    events: int
    patients: int


class Named(Interval):
    """A value that belongs to a feature column ("age", "arm=indomethacin")."""

    name: str


class SiteEffect(Interval):
    """The risk ratio at one site. counts: events and patients of the second arm, then of the reference."""

    site: str
    counts: tuple[int, int, int, int] | None = None


class Effect(Part):
    """A treatment's effect: arms (the reference first), ratios of the second arm to the first, adjusted odds ratios."""

    arms: list[Arm] = Field(min_length=2)
    risk_ratio: Interval
    risk_difference: Interval
    crude_odds_ratio: Interval | None = None
    adjusted: list[Named] = Field(default_factory=list)
    by_site: list[SiteEffect] = Field(default_factory=list)
    by_site_reason: str | None = None
    difference_from_pooled: float | None = None
    rounds: int | None = None


class Judged(Part):
    """Figures of one model on rows it did not see. site: None is all sites; ``where`` the model was fitted."""

    where: Literal["local", "federated", "pooled"]
    site: str | None = None
    n: int
    events: int | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    auc_groups: float | None = None
    brier: float | None = None
    accuracy: float | None = None
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None
    oe: float | None = None
    oe_low: float | None = None
    oe_high: float | None = None
    reason: str | None = None


class Joining(Part):
    """AUC of the federated model minus that of the site's own, on the site's rows."""

    site: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


class Group(Part):
    """Patients of similar predicted risk: predicted and observed risk, interval of the observed."""

    n: int
    predicted: float
    observed: float
    low: float
    high: float


class Calibration(Part):
    """Observed against predicted risk at a site (None: all sites)."""

    site: str | None = None
    groups: list[Group] = Field(default_factory=list)
    reason: str | None = None


class RocPoints(Part):
    """A ROC curve from binned scores, (0, 0) to (1, 1)."""

    where: Literal["local", "federated", "pooled"] = "federated"
    site: str | None = None
    false_positive_rate: list[float]
    true_positive_rate: list[float]


class NotShown(Part):
    """Why figures of one site are not there."""

    kind: str = "refused"
    reason: str


class MethodShown(Part):
    """One method or variant: main is the study's own. use: the method's class."""

    name: str
    use: str = ""
    results: list[Judged] = Field(default_factory=list)
    joining: list[Joining] = Field(default_factory=list)
    calibration: list[Calibration] = Field(default_factory=list)
    roc: list[RocPoints] = Field(default_factory=list)
    not_shown: dict[str, NotShown] = Field(default_factory=dict)


class LeftOut(Judged):
    """The model fitted without a site, judged at that site; difference_from_pooled: of the AUC, where it is known."""

    where: Literal["local", "federated", "pooled"] = "federated"
    method: str = "main"
    difference_from_pooled: float | None = None


class Recalibrated(Part):
    """A model whose intercept was updated on some of a site's patients: observed over expected afterwards, over draws.

    median; low, high: 5th and 95th percentile; before: without the update; needed: patients for 90 % of draws
    within 0.9 to 1.1.
    """

    site: str
    patients: int
    draws: int
    before: float | None = None
    median: float | None = None
    low: float | None = None
    high: float | None = None
    needed: int | None = None
    reason: str | None = None


class Prediction(Part):
    """A risk model: methods side by side, sites left out, recalibration, coefficients (log odds per unit)."""

    methods: list[MethodShown] = Field(default_factory=list)
    left_out: list[LeftOut] = Field(default_factory=list)
    recalibration: list[Recalibrated] = Field(default_factory=list)
    coefficients: list[Named] = Field(default_factory=list)
    difference_from_pooled: float | None = None


class TrainingCurve(Part):
    """A value by round, as the loss of a method."""

    name: str
    measure: str = "log-loss"
    rounds: list[float] = Field(min_length=1)
    values: list[float] = Field(min_length=1)


class AlarmShown(Part):
    """A site that stands apart: sentence is the key of a translation, parameters fill it."""

    site: str
    sentence: str
    kind: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class ReleaseShown(Part):
    """What left a site by one step: calls, values in a call, bytes in all, values for each patient in a call.

    meaning, kinds: what the step does and which kinds of release it makes; found in the installed package if absent.
    """

    site: str
    step: str
    calls: int
    values: int
    bytes: int
    values_per_patient: float | None = None
    meaning: str = ""
    kinds: list[str] = Field(default_factory=list)


class ApprovalShown(Part):
    """A site's yes: hash of the study, last day, version of the table."""

    site: str
    hash: str
    until: str
    table_version: str = ""


class LedgerShown(Part):
    """A site's ledger: rows, hash of the last one, whether the chain holds, epsilon spent."""

    site: str
    rows: int
    head: str
    verified: bool
    epsilon: float = 0.0


class ModelShown(Part):
    """The model file beside the report."""

    file: str
    hash: str


class StatisticsTable(Part):
    """A table of a statistics method as its summary prints it: facts (name, value), columns, rows of text."""

    facts: list[tuple[str, str]]
    columns: list[str]
    rows: list[list[str]]


class StatisticsDrawn(Part):
    """A chart with the table of its numbers."""

    svg: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]


class StatisticsShown(Part):
    """Results of a statistics method, by language. patients: how many they rest on."""

    kind: str
    patients: float
    tables: dict[str, list[StatisticsTable]]
    figures: dict[str, list[StatisticsDrawn]] = Field(default_factory=dict)


class ReportData(Part):
    """A finished run. kind says which of ``effect``, ``prediction`` and ``statistics`` answers the question.

    sites_compared: how many sites' own figures the alarms looked at; None where all counted ones were.
    """

    study: StudyShown
    kind: Literal["treatment_effect", "risk_prediction", "survival", "association"]
    run: str = ""
    started: str = ""
    ended: str = ""
    medfed: str = ""
    what_if: bool = False
    what_if_note: Text = ""
    protection: Literal["plain", "secure"] = "plain"
    plain_because: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    minimum_cell: int = 10
    sites: list[SiteShown]
    effect: Effect | None = None
    prediction: Prediction | None = None
    statistics: StatisticsShown | None = None
    training: list[TrainingCurve] = Field(default_factory=list)
    alarms: list[AlarmShown] | None = None
    sites_compared: int | None = None
    releases: list[ReleaseShown] = Field(default_factory=list)
    approvals: list[ApprovalShown] = Field(default_factory=list)
    ledgers: list[LedgerShown] = Field(default_factory=list)
    model: ModelShown | None = None


def read_report_data(result: Mapping[str, Any]) -> ReportData:
    """The checked data of a report. StudyError names the first key that does not fit."""
    try:
        return ReportData.model_validate(plain(result))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(word) for word in first["loc"])
        raise StudyError(f"the run's result does not fit a report: {where}: {first['msg']}") from None


def plain(value: Any) -> Any:
    """JSON values: arrays become lists, NumPy's numbers Python's, dataclasses dicts; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
