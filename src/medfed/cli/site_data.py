"""medfed site check and build: a site looks at its own data before anything runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from medfed.canonical import write_atomically
from medfed.cli.console import AsJson, Language, out, print_json
from medfed.data.quality import Quality
from medfed.data.site_folder import load_site
from medfed.evaluation.quality_page import reason_text, render
from medfed.language import number, translator
from medfed.study import Study, load_study

SiteFolderPath = Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")]
StudyFile = Annotated[Path, typer.Argument(help="The study.yaml that was proposed.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    app.command("check")(check)
    app.command("build")(build)


def check(
    folder: SiteFolderPath,
    study: StudyFile,
    html: Annotated[Path | None, typer.Option(help="Also write the quality page here.")] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Run the mapping and show what would be kept and why rows would be dropped. Writes no table; nothing leaves."""
    from medfed.data.build import check as check_data  # half a second, for those who build only

    site, loaded = load_site(folder), load_study(study)
    quality = check_data(site, loaded)
    if html is not None:
        write_atomically(html, render(quality.to_dict(), loaded, site.title(lang), lang).encode())
    if json:
        print_json(quality.to_dict())
    else:
        show_quality(quality, loaded, lang)


def build(folder: SiteFolderPath, study: StudyFile, lang: Language = "en", json: AsJson = False) -> None:
    """Build the study table in the site's folder and print its version, which an approval names."""
    from medfed.data.build import build_table

    site, loaded = load_site(folder), load_study(study)
    table, quality = build_table(site, loaded)
    if json:
        print_json({"version": table.version, **quality.to_dict()})
        return
    show_quality(quality, loaded, lang)
    _ = translator(lang)
    out.print(f"{_('Table version')}: {table.version}", soft_wrap=True)


def show_quality(quality: Quality, study: Study, lang: str) -> None:
    """The quality page's figures, for a terminal."""
    _ = translator(lang)
    out.print(
        f"[bold]{quality.site}[/bold] · {escape(Study.text(study.title, lang))} ({quality.study})", soft_wrap=True
    )
    out.print(f"{_('Rows read')}: {quality.rows_read}   {_('Rows kept')}: {quality.rows_kept}")
    for reason, count in quality.dropped.items():
        out.print(f"  {_('dropped')}: {count}  ({reason_text(reason, _)})", markup=False, soft_wrap=True)
    table = Table(show_edge=False)
    table.add_column(_("Variable"), overflow="fold")
    for heading in (_("Known"), _("Missing"), _("Out of range")):
        table.add_column(heading, justify="right")
    table.add_column(_("Values"), overflow="fold")
    for name, variable in quality.variables.items():
        if variable.levels:
            values = ", ".join(f"{level}: {count}" for level, count in variable.levels.items())
        elif variable.mean is not None:
            unit = study.variables[name].unit
            values = f"{number(variable.mean, 1)} ± {number(variable.deviation, 1)}{f' {unit}' if unit != '1' else ''}"
        else:
            values = ""
        cells = (name, str(variable.known), str(variable.missing), str(variable.out_of_range), values)
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)
    for warning in quality.warnings:
        out.print(f"! {reason_text(warning, _)}", style="yellow", markup=False, soft_wrap=True)
