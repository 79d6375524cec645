"""The command ``medfed``."""

import sys
from typing import Annotated

import typer

from medfed import __version__
from medfed.cli import consortium, demo, demo_network, privacy, run, site, stats, status, study
from medfed.cli.console import guarded, out

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "Federated analysis of medical data: institutions answer a question together, and no record leaves any of them.\n\n"
        "A site: init, edit site.yaml and policy.yaml, check, build, preview, approve. The coordinator: run, status, resume. "
        "Between institutions: `medfed consortium init`, `medfed site join`. Start with `medfed demo` or `medfed demo-network`."
    ),
)
app.add_typer(study.app, name="study")
app.add_typer(site.app, name="site")
app.add_typer(privacy.app, name="privacy")
app.add_typer(consortium.app, name="consortium")
app.add_typer(consortium.coordinator_app, name="coordinator")
app.command("run")(run.run)
app.command("resume")(run.resume)
app.command("status")(status.status)
app.command("abandon")(run.abandon)
app.command("stats")(stats.stats)
app.command("demo")(demo.demo)
app.command("demo-network")(demo_network.demo_network)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        out.print(f"medfed {__version__}")
        raise typer.Exit


def run_command() -> None:
    """Entry point: typer's own exit codes, and ours for a refusal."""
    sys.exit(guarded(lambda: app(standalone_mode=True)))
