"""medfed stats: Table 1, descriptions, models and tests over a consortium, printed as a statistician reads them."""

from pathlib import Path
from typing import Annotated

import typer

from medfed.canonical import write_atomically
from medfed.cli.console import AsJson, Language, out, print_json
from medfed.cli.run import Consortium, LiveView
from medfed.errors import StudyError
from medfed.study import load_study

WITH_FORMULA = ("glm", "effect", "meta", "cox")


def stats(
    kind: Annotated[str, typer.Argument(help="glm, table1, describe, compare, effect, meta, cox or km.")],
    study: Annotated[Path, typer.Argument(help="The study.yaml whose variables are asked about.")],
    formula: Annotated[str, typer.Argument(help='Of glm, effect or meta: a model, as in "event ~ arm * age".')] = "",
    consortium: Consortium = Path(),
    family: Annotated[str, typer.Option(help="Of glm: binomial, gaussian, poisson, gamma or negative_binomial.")] = "",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, NAME=VALUE; may be repeated.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the result's table to this file as well.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this SVG file as well.")] = None,
    as_formula: Annotated[str, typer.Option("--formula", hidden=True)] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Ask a consortium for statistics and print them: what pooled rows would give, and no row leaves a site.

    \b
    glm       a generalised linear model        --plot: ratios as a forest
    table1    every variable by arm             --plot: standardised differences
    describe  means, quantiles, counts          --plot: histograms
    compare   tests between the arms
    effect    average effect, IPW and AIPW      --plot: balance and overlap
    meta      of the sites' own estimates       --plot: a forest
    cox       hazard ratios                     --plot: a forest
    km        survival curves, log-rank test    --plot: curves, at risk

    Examples:

    \b
    medfed stats table1 study.yaml -c hospitals
    medfed stats glm study.yaml "event ~ arm * age + offset(log(years))" -c hospitals
    medfed stats glm study.yaml "event ~ arm + age" -c hospitals --set covariance=HC0 --plot forest.svg
    medfed stats describe study.yaml -c hospitals --set quantiles=0.1,0.5,0.9 --csv numbers.csv
    medfed stats compare study.yaml -c hospitals --set ranks=false
    medfed stats effect study.yaml "event ~ arm + age" -c hospitals --plot balance.svg
    medfed stats meta study.yaml -c hospitals --set measure=log_risk_ratio
    medfed stats cox study.yaml "age + sex" -c hospitals --set stratified=false
    medfed stats km study.yaml -c hospitals --set by=sex --plot curves.svg

    A question is a study of its own, the given one with another method: it is written below coordinator/questions, sites
    approve it, and the same question asked again is read from its run.
    """
    from medfed.applications.statistics import open_consortium  # pandas: half a second that no other command needs

    chosen: dict[str, bool | int | float | str] = dict(map(_named, setting or []))
    chosen |= {name: text for name, text in (("formula", formula or as_formula), ("family", family)) if text}
    if "formula" in chosen and kind in ("table1", "describe", "compare", "km"):
        raise StudyError(f"{kind} is of all variables of the study and takes no formula; {', '.join(WITH_FORMULA)} do")
    if kind == "meta" and "formula" in chosen:
        chosen.setdefault("measure", "coefficient")
    if plot is not None and plot.suffix.lower() != ".svg":
        raise StudyError(f"--plot {plot}: charts are drawn as SVG; give the file a name that ends in .svg")
    if plot is not None and kind == "compare":
        raise StudyError("compare has no chart; leave --plot out")
    loaded = load_study(study)
    with LiveView(lang, quiet=json) as live:
        found = open_consortium(consortium, loaded, live).ask(kind, **chosen)
    if csv is not None:
        write_atomically(csv, found.to_frame().to_csv().encode())
    if plot is not None:
        found.plot(plot, lang)
    if json:
        print_json(found.values)
    else:
        out.print(found.summary(lang), markup=False, soft_wrap=True)


def _named(text: str) -> tuple[str, bool | int | float | str]:
    """NAME=VALUE with the value as a study file would have it."""
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise StudyError(f"--set {text!r}: write NAME=VALUE, as in --set covariance=HC0")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
