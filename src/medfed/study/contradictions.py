"""What the parts of a study say against each other, all of it at once; each part alone is checked where it is declared.

Every finding is "key: sentence", the key being the one that a reader would change.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from medfed.errors import StudyError
from medfed.study.formula import parse_formula
from medfed.study.units import nearest

if TYPE_CHECKING:
    from medfed.study.schema import Study


def contradictions(study: "Study") -> list[str]:
    """Every contradiction, in the order of the file's keys; empty where there is none."""
    return [
        sentence
        for found in (_variables, _task, _formulas, _cohort, _parts, _privacy, _evaluation, _sites)
        for sentence in found(study)
    ]


def _variables(study: "Study") -> Iterator[str]:
    for name, variable in study.variables.items():
        # A study about the other covariates may keep its arm as a condition; there is no other arm then.
        if name in ("outcome", "arm") and variable.role not in (
            name,
            "cohort" if name == "arm" and not study.arm else name,
        ):
            yield f"variables.{name}: only the study's {name} can have this name; choose another"
        if study.time and name in ("time", "event") and variable.role != {"time": "time", "event": "outcome"}[name]:
            meant = "outcome" if name == "event" else "time"
            yield f"variables.{name}: in a survival study only the {meant} can have this name; choose another"
        alike = [other for other in study.variables if other != name and other.lower() == name.lower()]
        if alike and name > alike[0]:
            yield f"variables.{name}: it differs from {alike[0]} in upper and lower case only; choose another"
    for role in ("outcome", "arm", "part", "time", "weight"):
        named = [name for name, variable in study.variables.items() if variable.role == role]
        if len(named) > 1:
            yield f"variables.{named[1]}.role: {' and '.join(named)} both have the role {role!r}; a study has one"
    if not study.outcome:
        yield "variables: no variable has `role: outcome`; give one"
    elif study.variables[study.outcome].type == "code" and len(study.variables[study.outcome].codes or ()) != 2:
        yield f"variables.{study.outcome}.codes: an outcome of type code has two codes, the event and the other"
    elif (
        study.time
        and study.outcome == "event"
        and next(iter(study.variables["event"].codes or ())) == study.variables["event"].event
    ):
        yield "variables.event.codes: an outcome that is called event has its event last; turn the codes round, or give it another name"
    if study.arm and study.variables[study.arm].type != "code":
        yield f"variables.{study.arm}.type: an arm is of type code"


def _task(study: "Study") -> Iterator[str]:
    if study.task.kind == "survival":
        if study.time is None:
            yield "task.kind: a survival study needs a variable with `role: time`, the time to the event or to the end"
        if study.outcome and study.variables[study.outcome].type != "code":
            yield f"variables.{study.outcome}.type: a survival study needs an outcome of type code: event or not by then"
    elif study.time:
        yield f"variables.{study.time}.role: a time belongs to a survival study; write `task: {{kind: survival}}`"
    if study.task.kind == "treatment_effect":
        if study.arm is None:
            yield "task.kind: a treatment_effect needs a variable with `role: arm`"
        if study.outcome and study.variables[study.outcome].type != "code":
            yield f"variables.{study.outcome}.type: a treatment_effect needs an outcome of type code"
    elif study.task.kind == "risk_prediction" and not study.covariates:
        yield "variables: a risk_prediction needs at least one variable with `role: covariate`"
    if study.task.coding == "all_levels":
        for name in study.covariates:
            if study.variables[name].reference is not None:
                yield (
                    f"variables.{name}.reference: with `coding: all_levels` no level is left out; "
                    "remove the reference, or write `coding: reference`"
                )


def _formulas(study: "Study") -> Iterator[str]:
    if not study.outcome:
        return
    for key, use in (("method", study.method), *((f"variants.{name}", use) for name, use in study.variants.items())):
        text = use.settings.get("formula")
        if text is None:
            continue
        try:
            parse_formula(str(text), study.variables, study.outcome)
        except StudyError as problem:
            yield f"{key}.settings.formula: {problem}"


def _cohort(study: "Study") -> Iterator[str]:
    bounds = {name: variable.range for name, variable in study.variables.items() if variable.range}
    kept = {name: set(variable.codes) for name, variable in study.variables.items() if variable.codes}
    for index, rule in enumerate(study.cohort.include):
        where, name = f"cohort.include.{index}", rule.variable
        asked = study.variables.get(name)
        if asked is None:
            yield f"{where}.variable: there is no variable {name!r}{nearest(name, study.variables)}"
        elif rule.is_one_of is not None:
            codes = asked.codes or {}
            unknown = [code for code in rule.is_one_of if code not in codes]
            if unknown:
                yield f"{where}.is_one_of: {unknown[0]!r} is not a code of {name!r}{nearest(unknown[0], codes)}"
                continue
            kept[name] &= set(rule.is_one_of)
            if not kept[name]:
                yield f"{where}.is_one_of: this leaves nobody; the rules above keep none of these codes"
                kept[name] = set(codes)
        elif asked.type != "number":
            yield f"{where}: at_least and at_most need a number; {name!r} is of type {asked.type}"
        else:
            (lowest, highest), (low, high) = asked.range or (0.0, 0.0), bounds[name]
            for bound, value, nobody in (
                ("at_least", rule.at_least, rule.at_least is not None and rule.at_least > high),
                ("at_most", rule.at_most, rule.at_most is not None and rule.at_most < low),
            ):
                if nobody and (low, high) == (lowest, highest):
                    yield f"{where}.{bound}: {value:g} leaves nobody, the range of {name} is {low:g} to {high:g}"
                elif nobody:
                    yield f"{where}.{bound}: {value:g} leaves nobody, the rules above keep {low:g} to {high:g}"
                if nobody:
                    break
            else:
                low = low if rule.at_least is None else max(low, rule.at_least)
                high = high if rule.at_most is None else min(high, rule.at_most)
                bounds[name] = (low, high)


def _parts(study: "Study") -> Iterator[str]:
    by_role = [name for name, variable in study.variables.items() if variable.role == "part"]
    if study.parts.kind != "variable":
        for name in by_role:
            yield (
                f"variables.{name}.role: nothing divides rows by {name}; write "
                f"`parts: {{kind: variable, variable: {name}}}`, or remove the variable"
            )
        return
    named = study.parts.variable or ""
    part = study.variables.get(named)
    if part is None or part.role != "part":
        hint = nearest(named, by_role) if part is None else f"; write `role: part` at {named}"
        yield f"parts.variable: {named!r} is no variable with `role: part`{hint}"
        return
    codes = set(part.codes or ())
    if not {"train", "test"} <= codes <= {"train", "valid", "test"}:
        yield f"variables.{named}.codes: a part variable has the codes train, test (and valid)"
    if study.parts.valid_fraction and "valid" in codes:
        yield f"parts.valid_fraction: {named} has a code `valid` of its own; remove one of the two"


def _privacy(study: "Study") -> Iterator[str]:
    """With an epsilon everything that leaves is paid for: what would be paid for many times, or can't be, is refused."""
    if study.privacy.epsilon is None:
        return
    if study.protects == "none":
        yield "privacy.epsilon: `protects: none` says that there is nobody to protect; declare one of the two only"
    if study.evaluation.design in ("cross_validation", "leave_one_site_out"):
        yield (
            f"evaluation.design: {study.evaluation.design} fits and judges many times, and an epsilon is charged each "
            "time; with privacy.epsilon write `design: holdout` or `design: none`"
        )
    if study.evaluation.variants:
        yield "evaluation.variants: each would be fitted and charged apart; with privacy.epsilon make it a study of its own"
    if set(study.evaluation.compare) != {"federated"}:
        yield (
            "evaluation.compare: figures of one site, or of pooled rows, carry no noise; "
            "with privacy.epsilon write `compare: [federated]`"
        )
    if study.task.kind == "treatment_effect":
        yield "task.kind: a treatment_effect is counted exactly, without noise; leave privacy.epsilon out"


def _evaluation(study: "Study") -> Iterator[str]:
    evaluation, design = study.evaluation, study.evaluation.design
    for variant in evaluation.variants:
        if variant not in study.variants:
            yield f"evaluation.variants: there is no variant {variant!r}{nearest(variant, study.variants)}"
    for key, named in (("variants", evaluation.variants), ("compare", evaluation.compare)):
        if len(set(named)) < len(named):
            yield f"evaluation.{key}: one of these stands twice; remove it"
    if design == "none":
        if evaluation.variants:
            yield "evaluation.variants: `design: none` judges nothing; remove the variants here, or choose a design"
        return
    if study.task.kind == "treatment_effect":
        yield "evaluation.design: a treatment_effect is estimated, and predicts nobody's risk; write `design: none`"
    elif study.task.kind == "survival":
        yield "evaluation.design: a survival study has its own checks in the method; write `design: none`"
    elif study.outcome and study.variables[study.outcome].type == "number":
        yield "evaluation.design: risks of an event are judged, and this outcome is a number; write `design: none`"
    if design == "cross_validation" and study.parts.kind != "folds":
        yield "evaluation.design: cross_validation needs `parts: {kind: folds, folds: N}`"
    if design == "holdout" and study.parts.kind not in ("variable", "fractions"):
        yield "evaluation.design: holdout needs parts with a test part (fractions, or a variable)"
    if design == "holdout" and study.parts.kind == "fractions" and not study.parts.test:
        yield "parts.test: holdout needs a test part above 0"
    if design == "leave_one_site_out" and len(study.sites.invited) < 3:
        yield "evaluation.design: leave_one_site_out needs at least 3 invited sites"


def _sites(study: "Study") -> Iterator[str]:
    if len(set(study.sites.invited)) < len(study.sites.invited):
        yield "sites.invited: a site is named twice; remove one"
    if study.sites.minimum > len(study.sites.invited):
        yield (
            f"sites.minimum: {study.sites.minimum} sites are needed but only {len(study.sites.invited)} are invited; "
            "invite more, or lower the minimum"
        )
