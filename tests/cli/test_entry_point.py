"""The installed command as a program meets it: streams, exit codes, nothing of Python on either."""

import json
import subprocess
import sys
from pathlib import Path

from consortium_folder import make_sites

MEDFED = Path(sys.executable).parent / "medfed"
COMMAND = (
    [str(MEDFED)]
    if MEDFED.exists()
    else [sys.executable, "-c", "from medfed.cli.main import run_command; run_command()"]
)


def medfed(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, encoding="utf-8")


def test_json_is_alone_on_standard_output_and_a_refusal_alone_on_standard_error(tmp_path: Path) -> None:
    study = make_sites(tmp_path, ["west"])
    site = tmp_path / "sites" / "west"
    built = medfed("site", "build", site, study, "--json")
    assert (built.returncode, built.stderr) == (0, "")
    assert json.loads(built.stdout)["rows_kept"] == 150
    (site / "data" / "export.csv").write_text("病案号|结局|年龄|体重\n1|否|五十|70\n", encoding="gbk")
    refused = medfed("site", "build", site, study, "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("site 'west', variable 'age': 1 of 1 values are not numbers (\"五十\").")
    assert refused.stderr.count("\n") == 2


def test_a_word_that_is_no_command_is_exit_code_2_with_its_usage() -> None:
    wrong = medfed("site", "aprove")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "aprove" in wrong.stderr
    assert "Traceback" not in wrong.stderr
