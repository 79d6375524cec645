"""medfed stats: Table 1, descriptions, models and tests over a consortium, printed as a statistician reads them."""

from pathlib import Path
from typing import Annotated

import typer

from medfed.canonical import write_atomically
from medfed.cli.console import AsJson, Language, out, print_json
from medfed.cli.run import Consortium, LiveView
from medfed.errors import StudyError
from medfed.study import load_study


def stats(
    kind: Annotated[str, typer.Argument(help="What to ask: glm, table1, describe, compare, meta or effect.")],
    study: Annotated[Path, typer.Argument(help="The study.yaml whose variables are asked about.")],
    consortium: Consortium = Path(),
    formula: Annotated[str, typer.Option(help='A model, as in "event ~ arm * age + offset(log(years))".')] = "",
    family: Annotated[str, typer.Option(help="binomial, gaussian, poisson, gamma or negative_binomial.")] = "",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, NAME=VALUE; may be repeated.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the result's table to this file as well.")] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Ask a consortium for statistics and print them; the same question asked again is read from its run.

    A question other than the study's own is a study of its own, written below coordinator/questions, which sites approve
    before it runs.
    """
    from medfed.applications.statistics import open_consortium  # pandas: half a second that no other command needs

    loaded = load_study(study)
    chosen: dict[str, bool | int | float | str] = dict(map(_named, setting or []))
    chosen |= {name: text for name, text in (("formula", formula), ("family", family)) if text}
    with LiveView(lang, quiet=json) as live:
        found = open_consortium(consortium, loaded, live).ask(kind, **chosen)
    if csv is not None:
        write_atomically(csv, found.to_frame().to_csv().encode())
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
