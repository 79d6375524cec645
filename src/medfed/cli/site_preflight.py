"""medfed site preflight: is this site ready to take part over the network, and if not, what is there to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.cli.console import AsJson, Language, out, print_json
from medfed.cli.network import need_network
from medfed.cli.site_network import study_of
from medfed.data.site_folder import load_site
from medfed.evaluation.study_run import step_names
from medfed.language import Translate, translator
from medfed.study import load_study

if TYPE_CHECKING:
    from medfed.engines.nvflare.finding import Finding

SiteFolderPath = Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")]

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def register(app: typer.Typer) -> None:
    """Add the command to ``medfed site``."""
    app.command("preflight")(preflight)


def preflight(
    folder: SiteFolderPath,
    study: Annotated[
        str, typer.Option(help="A study.yaml, or its name or hash in the inbox: is the site ready for it?")
    ] = "",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Check everything that a run over the network needs, and say what to do about each failure. Exit code 1 if any failed.

    It connects to the coordinator and to nobody else; nothing listens, nothing is sealed, no data leaves.
    """
    need_network()
    from medfed.engines.nvflare import preflight as checks

    _ = translator(lang)
    loaded = None
    if study:
        loaded = load_study(Path(study)) if Path(study).exists() else study_of(load_site(folder), study)
    findings = []
    for finding in checks.preflight(folder, study=loaded, steps_of=step_names):
        findings.append(finding)
        if not json:
            _show(finding, _)
    failed = sum(finding.state == "failed" for finding in findings)
    if json:
        shown = [
            {"name": found.name, "state": found.state, "what": found.sentence(_), "remedy": found.advice(_)}
            for found in findings
        ]
        print_json({"ready": not failed, "findings": shown})
    elif failed:
        out.print(_("{count} checks failed.").format(count=failed), style="bold red", markup=False)
    else:
        out.print(_("No check failed."), style="bold green", markup=False)
    if failed:
        raise typer.Exit(1)


def _show(finding: "Finding", _: Translate) -> None:
    """One line with state, check and sentence; the remedy below it."""
    states = {"ok": _("ok"), "warning": _("warning"), "failed": _("failed"), "skipped": _("skipped")}
    out.print(states[finding.state].ljust(8), style=_COLOURS[finding.state], markup=False, end="")
    out.print(f"{_title(finding.name, _)}: {finding.sentence(_)}", markup=False, soft_wrap=True)
    if finding.remedy:
        out.print(f"        → {finding.advice(_)}", markup=False, soft_wrap=True)


def _title(name: str, _: Translate) -> str:
    return {
        "joined": _("Membership"),
        "permissions": _("File permissions"),
        "keys": _("Keys"),
        "disk": _("Disk space"),
        "package": _("Installed medfed"),
        "policy": _("Policy"),
        "mapping": _("Mapping"),
        "ledger": _("Ledger"),
        "halted": _("Halt"),
        "step": _("Test step"),
        "name": _("Coordinator's name"),
        "port": _("Coordinator's port"),
        "tls": _("TLS"),
        "chain": _("Certificate's issuer"),
        "host-name": _("Certificate's host name"),
        "accepted": _("Own certificate accepted"),
        "certificate-own": _("Own certificate's dates"),
        "certificate-server": _("Coordinator certificate's dates"),
        "certificate-root": _("Root certificate's dates"),
        "service": _("Site's service"),
        "heard": _("Heard from the coordinator"),
        "clock": _("Clock"),
    }.get(name, name)
