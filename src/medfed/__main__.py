"""``python -m medfed``: the command ``medfed``."""

from medfed.cli.main import run_command

run_command()
