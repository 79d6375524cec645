"""medfed study: write, check, show and name study files."""

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from medfed.canonical import write_atomically
from medfed.cli.console import AsJson, Language, out, print_json, say
from medfed.errors import StudyError
from medfed.evaluation.study_run import StudyRun, step_names
from medfed.federation.packages import find_method
from medfed.federation.private import charges_of
from medfed.language import translator
from medfed.study import Study, Variable, load_study, placed

app = typer.Typer(
    no_args_is_help=True,
    help="Study files: the one question that sites approve by its hash. Begin with `new`, edit the file, `check` it "
    "until it says well formed, read it as a site will with `show`, and send the file and its `hash` to the sites.",
)

StudyFile = Annotated[Path, typer.Argument(help="A study.yaml, or a folder that holds one.")]

_TEMPLATE = """\
# A study asks one question. Sites read this file, approve its hash, or refuse.
medfed: 1
name: {name}
title: {{en: "A short title", zh: "简短标题"}}
question: {{en: "Who develops the outcome, and how well can it be predicted?", zh: "哪些患者会出现结局？预测效果如何？"}}
unit: patient                  # what a row of the study table is
protects: patient              # whom privacy is for: patient, or none for rows that are aggregated already
variables:
  outcome:
    meaning: {{en: "What is to be predicted", zh: "待预测的结局"}}
    type: code                 # number | code | date | text
    role: outcome              # outcome | arm | time | covariate | part | cohort
    codes: {{"no": {{en: "No", zh: 否}}, "yes": {{en: "Yes", zh: 是}}}}
    event: "yes"
{arm}  age:
    meaning: {{en: Age, zh: 年龄}}
    type: number
    role: covariate
    unit: year                 # sites record it as they like; it is converted to this
    range: [18, 110]           # values outside it count as missing
    missing: drop              # drop the row | mean (numbers) | unknown (codes)
cohort:
  include:
    - {{variable: age, at_least: 18}}
task: {{kind: {kind}, coding: reference}}
method:
  use: "{method}"
  settings: {{}}
parts: {parts}
privacy: {{sums: strongest, minimum_cell: 10}}
evaluation: {evaluation}
seed: 1
sites: {{invited: [site-a, site-b, site-c], minimum: 2}}
limits: {{rows_per_site: 100000}}
"""

_KINDS = {
    "risk": {
        "kind": "risk_prediction",
        "method": "medfed:medfed.methods.newton.Newton",
        "parts": "{kind: folds, folds: 5}",
        "evaluation": "{design: cross_validation, compare: [local, federated, pooled]}",
        "arm": "",
    },
    "treatment": {
        "kind": "treatment_effect",
        "method": "medfed:medfed.methods.treatment_effect.TreatmentEffect",
        "parts": "{kind: all}",
        "evaluation": "{design: none}",
        "arm": (
            "  arm:\n    meaning: {en: Treatment, zh: 治疗}\n    type: code\n    role: arm\n"
            "    codes: {control: {en: Control, zh: 对照}, treated: {en: Treated, zh: 治疗}}\n    reference: control\n"
        ),
    },
    "survival": {
        "kind": "survival",
        "method": "medfed:medfed.methods.cox.Cox",
        "parts": "{kind: all}",
        "evaluation": "{design: none}",
        "arm": (
            '  time:\n    meaning: {en: "Time to the outcome or to the end of follow-up", zh: "至结局或随访结束的时间"}\n'
            "    type: number\n    role: time\n    unit: month\n    range: [0, 240]            # a time outside it is refused\n"
            "    interval: 1                # the grid's intervals, which are merged so that no small count is seen\n"
            "    horizon: 60                # follow-up ends here: who is followed longer is censored\n"
        ),
    },
}


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Folder to write study.yaml into.")],
    kind: Annotated[
        str, typer.Option(help="risk: predict an outcome; treatment: compare two arms; survival: time to it.")
    ] = "risk",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Write a commented study file to start from. It passes `medfed study check` as it is."""
    path = folder / "study.yaml"
    if kind not in _KINDS:
        raise StudyError(f"--kind is {', '.join(list(_KINDS)[:-1])} or {list(_KINDS)[-1]}, not {kind!r}")
    if path.exists():
        raise StudyError(f"{path} exists already; nothing was changed. Choose another folder")
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:50] or "my-study"
    name = name if name[0].isalpha() else f"study-{name}"
    write_atomically(path, _TEMPLATE.format(name=name, **_KINDS[kind]).encode())
    if json:
        print_json({"file": str(path), "name": name, "hash": load_study(path).hash})
    else:
        _ = translator(lang)
        say(_("{path} is written; edit it, then: medfed study check {path}"), path=path)


@app.command()
def check(study: StudyFile, lang: Language = "en", json: AsJson = False) -> None:
    """Read a study and say what is wrong in it, with file, line and a suggestion."""
    loaded = load_study(study)
    if problems := list(_method_problems(study, loaded)):
        raise StudyError("\n".join(problems))
    if json:
        print_json(
            {"name": loaded.name, "hash": loaded.hash, "steps": step_names(loaded), "features": loaded.design.names}
        )
    else:
        _ = translator(lang)
        say(_("{study}: the study is well formed. Hash {hash}"), study=loaded.name, hash=loaded.hash)


def _method_problems(path: Path, study: Study) -> Iterator[str]:
    """What is wrong with the method and its variants as they are installed here, each with its line."""
    found = False
    for variant in (None, *study.variants):
        try:
            find_method(study, variant)
        except StudyError as problem:
            declared = study.method if variant is None else study.variants[variant]
            told = str(problem).removeprefix(f"study {study.name!r}, ")
            found = True
            yield placed(path, told + (_other_method(declared.use) if " does not exist " in told else ""))
    if found:
        return
    try:
        charges_of(study, StudyRun(study))
    except StudyError as problem:
        yield placed(path, str(problem))


# As they stand beside the sentence of the package: for the catalogue.
OTHER_METHOD = (
    "{name} does not exist in the installed package {package}; did you mean {method}?",
    "{name} does not exist in the installed package {package}; install a version that has it",
)


def _other_method(use: str) -> str:
    """The method of the same module that is nearest in name, as the end of a sentence."""
    package, _, dotted = use.partition(":")
    module, _, name = dotted.rpartition(".")
    methods = [word for word, found in vars(sys.modules.get(module, object)).items() if hasattr(found, "advance")]
    close = difflib.get_close_matches(name, methods, 1)
    return f"; did you mean '{package}:{module}.{close[0]}'?" if close else "; install a version that has it"


@app.command()
def show(study: StudyFile, lang: Language = "en", json: AsJson = False) -> None:
    """Show a study as a person reads it: question, variables, method, protection, what would be asked of a site."""
    loaded = load_study(study)
    if json:
        print_json({**loaded.model_dump(mode="json"), "hash": loaded.hash, "steps": step_names(loaded)})
        return
    _ = translator(lang)
    out.print(loaded.text(loaded.title, lang), style="bold", markup=False)
    out.print(loaded.text(loaded.question, lang), markup=False)
    out.print(f"{_('Hash')}: {loaded.hash}", soft_wrap=True)
    table = Table(title=_("Variables"), title_justify="left")
    for heading in (_("Name"), _("Meaning"), _("Role"), _("Type"), _("Unit, range or codes"), _("If missing")):
        table.add_column(heading, overflow="fold")
    for name, variable in loaded.variables.items():
        cells = (
            name, loaded.text(variable.meaning, lang), variable.role, variable.type, _values(variable, lang), variable.missing,
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    out.print(table)
    for key, words in _declared(loaded):
        out.print(f"{key}: {words}", markup=False, soft_wrap=True)
    out.print(f"{_('Method')}: {loaded.method.use} {loaded.method.settings or ''}", markup=False, soft_wrap=True)
    for name, variant in loaded.variants.items():
        out.print(f"  {name}: {variant.use} {variant.settings or ''}", markup=False, soft_wrap=True)
    out.print(f"{_('Sites invited')}: {', '.join(loaded.sites.invited)} ({_('at least')} {loaded.sites.minimum})")
    out.print(f"{_('Smallest count that may be seen')}: {loaded.privacy.minimum_cell}")
    out.print(f"{_('Steps asked of a site')}:")
    for step in step_names(loaded):
        out.print(f"  {step}")


def _values(variable: Variable, lang: str) -> str:
    """Unit and range, or the codes with their texts where these say more, and which is the event or the reference."""
    if variable.type == "number" and variable.range:
        grid = f"; interval: {variable.interval:g}; horizon: {variable.last_time:g}" if variable.interval else ""
        return f"{variable.unit}, {variable.range[0]:g} – {variable.range[1]:g}{grid}"
    texts = {code: Study.text(text, lang) for code, text in (variable.codes or {}).items()}
    shown = ", ".join(code if text.lower() == code.lower() else f"{code} ({text})" for code, text in texts.items())
    named = [f"; {key}: {code}" for key, code in (("event", variable.event), ("reference", variable.reference)) if code]
    return shown + "".join(named)


def _declared(study: Study) -> Iterator[tuple[str, str]]:
    """What else the file declares, under the file's own keys, which are the same in every language."""
    yield "unit", f"{study.unit}, protects {study.protects}"
    rules = []
    for rule in study.cohort.include:
        low = "" if rule.at_least is None else f"{rule.at_least:g} ≤ "
        high = "" if rule.at_most is None else f" ≤ {rule.at_most:g}"
        codes = "" if rule.is_one_of is None else f" = {' | '.join(rule.is_one_of)}"
        rules.append(f"{low}{rule.variable}{high}{codes}")
    yield "cohort", "; ".join(rules) or "–"
    yield "task", f"{study.task.kind}, coding {study.task.coding}"
    given = study.parts.model_dump(exclude={"kind"}, exclude_none=True, exclude_defaults=True)
    yield "parts", ", ".join([study.parts.kind, *(f"{key} {value}" for key, value in given.items())])
    spends = f", epsilon {study.privacy.epsilon:g}, delta {study.privacy.delta:g}" if study.privacy.epsilon else ""
    yield "privacy", f"sums {study.privacy.sums}{spends}"
    judged = study.evaluation
    if judged.design == "none":
        yield "evaluation", "none"
    else:
        variants = f", variants {' | '.join(judged.variants)}" if judged.variants else ""
        yield "evaluation", f"{judged.design}, compare {' | '.join(judged.compare)}{variants}"
    yield "seed", str(study.seed)
    yield "limits", f"rows_per_site {study.rows_at_most}"


@app.command("hash")
def show_hash(study: StudyFile, lang: Language = "en", json: AsJson = False) -> None:
    """Print the hash that sites approve; comments and the order of keys don't change it."""
    loaded = load_study(study)
    if json:
        print_json({"name": loaded.name, "hash": loaded.hash, "table_hash": loaded.table_hash})
    else:
        out.print(loaded.hash)
