"""Statistics of a consortium in three lines: open it, ask, print.

    hospitals = open_consortium("hospitals", "hospitals/study.yaml")
    fit = hospitals.glm("pancreatitis ~ arm + age + risk")
    print(fit.summary())          # fit.to_frame(), fit.plot("forest.svg")

Each question is a study of its own, the given one with another method: sites approve it before it runs. The same question
asked again is read from its run. ``in_memory`` asks the same of tables in this process: a what-if, where nobody is apart.
"""

import importlib
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medfed.canonical import write_atomically
from medfed.data.table import StudyTable
from medfed.engines.nvflare.reasons import NO_STUDY
from medfed.engines.site_folders import NO_TABLE
from medfed.engines.what_if import what_if
from medfed.errors import FederationError, MappingError, StudyError
from medfed.evaluation.consortium_run import is_network, open_engine
from medfed.evaluation.statistics_results import KINDS, SURVIVAL, shown
from medfed.evaluation.study_run import StudyRun
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Listener, Runner
from medfed.study import Study, load_study, study_from_dict

Settings = Mapping[str, bool | int | float | str]
# Other names of KINDS are settings of these: one hazard for all sites is `cox` with stratified=false.
ASKED = ("glm", "table1", "describe", "compare", "effect", "meta", "cox", "km")
# Questions that read no weight and no offset; a weight of two values, whose sum is a count, does not stop them.
UNWEIGHTED = ("table1", "describe", "compare", "cox", "km")
# Why a site does not answer a question that it has not approved yet.
NOT_APPROVED = (NO_TABLE, NO_STUDY, "the site has not approved this version of the study")


def question(study: Study, kind: str, settings: Settings) -> Study:
    """The study with the method of a kind. The study itself, where it asks this already and no setting differs."""
    if kind not in KINDS:
        raise StudyError(f"there are no statistics {kind!r}; choose {', '.join(ASKED)}")
    if kind in SURVIVAL:
        study, settings = _survival(study, settings)
    if kind in UNWEIGHTED:
        study = _as_conditions(study, [n for n, v in study.variables.items() if v.role in ("weight", "offset")])
    use = f"medfed:{KINDS[kind][0]}"
    settings = _without_defaults(KINDS[kind][0], _as_text(KINDS[kind][0], settings))
    if study.method.use == use and (
        not settings or _without_defaults(KINDS[kind][0], study.method.settings) == settings
    ):
        return study
    privacy = study.privacy.model_dump()
    if kind == "meta":
        # It has no sums. Sites that sum securely give figures of their own only after a total; here no total is to come.
        privacy["sums"] = "plain"
    asked = study.model_copy(
        update={
            "privacy": privacy,
            "method": {"use": use, "settings": dict(settings)},
            "task": {**study.task.model_dump(), "kind": "survival" if study.time else "association"},
            "variants": {},
            "evaluation": {"design": "none"},
        }
    )
    find_method(asked)
    return asked


def _survival(study: Study, settings: Settings) -> tuple[Study, Settings]:
    """The study with the covariates that a setting ``formula`` names ("age + sex"; what is left of ~ is read over), and
    the other settings. StudyError for what is no sum of the study's covariates.
    """
    if study.time is None:
        raise StudyError(f"study {study.name!r}: times to an event are asked for; write `task: {{kind: survival}}`")
    rest = {name: value for name, value in settings.items() if name != "formula"}
    if not (text := str(settings.get("formula", "")).rpartition("~")[2].strip()):
        return study, rest
    named = [word.strip() for word in text.split("+")]
    known = [name for name, variable in study.variables.items() if variable.role in ("covariate", "arm")]
    if unknown := [name for name in named if name not in known]:
        raise StudyError(
            f"a survival model is a sum of covariates of the study, as in 'age + sex', without interactions; {unknown[0]!r} is "
            f"none of {', '.join(known)}"
        )
    return _as_conditions(study, [name for name in known if name not in named]), rest


def _as_conditions(study: Study, names: Sequence[str]) -> Study:
    """The study without these variables in its sums. A patient who lacks one stays left out, as of every other question."""
    if not names:
        return study
    declared = study.model_dump(mode="json", exclude_none=True)
    for name in names:
        declared["variables"][name] |= {"role": "cohort"}
        declared["variables"][name].pop("reference", None)
    return study_from_dict(declared)


def _as_text(method: str, settings: Settings) -> Settings:
    """Settings with numbers and lists written out where the method takes text: ``quantiles=0.5`` and ``[0.25, 0.5]``."""
    module, _, name = method.rpartition(".")
    text = {each.name for each in fields(getattr(importlib.import_module(module), name)) if each.type is str}
    written: dict[str, bool | int | float | str] = dict(settings)
    for key in text.intersection(written):
        value: Any = written[key]
        if isinstance(value, list | tuple):
            written[key] = ", ".join(map(str, value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            written[key] = str(value)
    return written


def _without_defaults(method: str, settings: Settings) -> Settings:
    """Settings that say something: the same question has the same hash, however it is put."""
    module, _, name = method.rpartition(".")
    defaults = {each.name: each.default for each in fields(getattr(importlib.import_module(module), name))}
    return {key: value for key, value in settings.items() if key not in defaults or defaults[key] != value}


@dataclass(frozen=True)
class Statistics:
    """What can be asked of a consortium about one study's variables. execute: runs a study and returns its result."""

    study: Study
    execute: Callable[[Study, str], Mapping[str, Any]] = field(repr=False)

    def ask(self, kind: str, **settings: bool | int | float | str) -> Any:
        """Any kind of statistics by name, with its method's settings."""
        if kind == "cox" and not settings.pop("stratified", True):
            kind = "cox_one_hazard"
        asked = question(self.study, kind, settings)
        return shown(kind, self.execute(asked, kind), asked)

    def glm(self, formula: str, family: str = "binomial", **settings: bool | int | float | str) -> Any:
        """A generalised linear model: a ``GlmFit``. Settings: see ``Glm``."""
        return self.ask("glm", formula=formula, family=family, **settings)

    def table1(self, **settings: bool | int | float | str) -> Any:
        """Table 1 by arm: a ``Table1``."""
        return self.ask("table1", **settings)

    def describe(self, **settings: bool | int | float | str) -> Any:
        """Every variable: a ``Description``."""
        return self.ask("describe", **settings)

    def compare(self, **settings: bool | int | float | str) -> Any:
        """Tests between arms: a ``Comparison``."""
        return self.ask("compare", **settings)

    def meta(self, measure: str = "log_odds_ratio", **settings: bool | int | float | str) -> Any:
        """Meta-analysis of the sites' own estimates: a ``MetaResult``."""
        return self.ask("meta", measure=measure, **settings)

    def cox(
        self,
        formula: str = "",
        *,
        ties: str = "efron",
        stratified: bool = True,
        **settings: bool | int | float | str,
    ) -> Any:
        """Hazard ratios of the covariates in ``formula`` ("age + sex"), or of all: a ``CoxFit``.

        stratified: each site has a hazard of its own, and the fit is exact; else one hazard for all, on the time grid.
        """
        return self.ask("cox", formula=formula, ties=ties, stratified=stratified, **settings)

    def km(self, by: str = "", **settings: bool | int | float | str) -> Any:
        """Kaplan-Meier curves, of the groups of a code variable or of all patients: a ``KaplanMeierFit``."""
        return self.ask("km", by=by, **settings)

    def effect(self, formula: str = "", **settings: bool | int | float | str) -> Any:
        """Average effect of the second arm, by a model or by the arm and all covariates: a ``CausalEffect``."""
        return self.ask("effect", formula=formula, **settings)


def open_consortium(folder: Path | str, study: Path | str | Study, listener: Listener | None = None) -> Statistics:
    """The consortium in a folder (sites and coordinator, here or over a network), asked about a study's variables."""
    folder = Path(folder)
    loaded = study if isinstance(study, Study) else load_study(study)
    return Statistics(loaded, lambda asked, kind: _answer(folder, loaded, asked, kind, listener))


def run_name(kind: str, study: Study) -> str:
    """The run in which a question is asked: the same question has the same one."""
    return f"{kind}-{study.hash[:12]}"


def _answer(folder: Path, given: Study, asked: Study, kind: str, listener: Listener | None) -> Mapping[str, Any]:
    file = None if asked.hash == given.hash else write_question(folder, asked, kind)
    engine = open_engine(folder, asked)
    try:
        with closing(
            Runner(folder / "coordinator", engine, asked, listener=listener, public_keys=engine.public_keys)
        ) as runner:
            name = run_name(kind, asked)
            finished = any(row["run"] == name and row["state"] == "finished" for row in runner.store.runs())
            stored = runner.store.result(name) if finished else None
            try:
                found: Mapping[str, Any] = (stored or runner.execute(StudyRun(asked), name))["fitted"]
            except FederationError as problem:
                if kind == "meta":
                    runner.abandon(name)  # what single sites did not give is asked anew next time
                if file is None or not any(reason in str(problem) for reason in NOT_APPROVED):
                    raise
                raise FederationError(_to_be_approved(folder, file, str(problem), asked)) from None
            return found
    finally:
        engine.close()


def _to_be_approved(folder: Path, file: Path, said: str, asked: Study) -> str:
    """What is to be done where sites have not approved a question. said: why the run stopped."""
    sites = asked.sites.invited
    missing = [
        site for site in sites if re.search(rf"\b{re.escape(site)}(?: \w+)?: (?:{'|'.join(NOT_APPROVED)})", said)
    ]
    who = (
        "no site has"
        if not missing or len(missing) == len(sites)
        else f"{', '.join(missing)} " + ("have not" if len(missing) > 1 else "has not")
    )
    send = f"Send it with `medfed consortium propose {file}`. " if is_network(folder) else ""
    return (
        f"{who} approved this question yet; it is the study {file}. {send}Each site builds its table and approves, as for any "
        "study (`medfed site build`, `medfed site approve`); then ask again"
    )


def write_question(folder: Path, study: Study, kind: str) -> Path:
    """The study file of a question, for sites to approve: coordinator/questions/KIND-HASH.yaml."""
    file = folder / "coordinator" / "questions" / f"{run_name(kind, study)}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    declared = study.model_dump(mode="json", exclude_none=True)
    text = yaml.safe_dump(declared, allow_unicode=True, sort_keys=False, width=120)
    write_atomically(file, text.encode())
    return file


def in_memory(
    tables: Mapping[str, pd.DataFrame],
    study: Path | str | Study,
    policy: Policy | Mapping[str, Policy] | None = None,
) -> Statistics:
    """A what-if: tables in this process as sites, column by variable; runs leave nothing behind.

    The tables are the study's sites, whomever it invites. StudyError for names that no site can have, MappingError for a table
    that does not fit the study.
    """
    loaded = study if isinstance(study, Study) else load_study(study)
    declared = loaded.model_dump(mode="json", exclude_none=True)
    sites = declared["sites"]
    declared["sites"] = sites | {"invited": list(tables), "minimum": min(sites["minimum"], max(len(tables), 1))}
    loaded = study_from_dict(declared)

    def execute(asked: Study, kind: str) -> Mapping[str, Any]:
        method = find_method(asked)
        built = {site: _table(asked, site, frame) for site, frame in tables.items()}
        with tempfile.TemporaryDirectory() as folder:
            engine, public = what_if(Path(folder) / "sites", built, asked, [method], policy=policy)
            runner = Runner(Path(folder) / "coordinator", engine, asked, durability="process", public_keys=public)
            with closing(runner):
                return dict(runner.execute(method))

    return Statistics(loaded, execute)


def _table(study: Study, site: str, frame: pd.DataFrame) -> StudyTable:
    """A data frame as a site's study table. MappingError, with the site's name, where it does not fit the study."""
    columns = {name: frame[name].to_numpy() for name in study.variables if name in frame}
    for name in columns:
        if study.variables[name].type == "number":
            _check_numbers(study, site, name, frame[name])
    if not len(frame):
        raise MappingError(f"site {site!r}: the table has no rows; leave it out")
    try:
        return StudyTable.from_columns(study, columns)
    except MappingError as problem:
        raise MappingError(f"site {site!r}: {problem}") from None


def _check_numbers(study: Study, site: str, name: str, column: "pd.Series[Any]") -> None:
    """MappingError for a value that is no number or lies outside the range that the study declares."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    if wrong := int((numbers.isna() & column.notna()).sum()):
        raise MappingError(
            f"site {site!r}, variable {name!r}: {wrong} of {len(column)} values are not numbers; mend them"
        )
    low, high = study.variables[name].range or (-math.inf, math.inf)
    if study.variables[name].role != "time" and (outside := int(((numbers < low) | (numbers > high)).sum())):
        raise MappingError(
            f"site {site!r}, variable {name!r}: {outside} of {len(column)} values lie outside the study's range, {low:g} to "
            f"{high:g}; leave those rows out, or declare another range"
        )
