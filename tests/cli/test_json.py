"""Every command has --json (but for the ones that only print one word or a page)."""

import subprocess
import sys

import pytest

COMMANDS = [
    "study new", "study check", "study show", "study hash", "site init", "site check", "site build", "site preview",
    "site approve", "site revoke", "site packages", "site ledger", "site verify", "site apply", "site feedback",
    "site drift", "site preflight", "privacy plan", "privacy budget", "run", "resume", "status", "abandon", "demo",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_offers_json(command: str) -> None:
    from typer.testing import CliRunner

    from medfed.cli.main import app

    shown = CliRunner().invoke(
        app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    )
    assert shown.exit_code == 0
    assert "--json" in shown.output


def test_the_version_is_printed() -> None:
    run = [sys.executable, "-c", "from medfed.cli.main import run_command; run_command()", "--version"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.startswith("medfed ")
