"""What the commands share: the consoles, languages, JSON, and one way to say no."""

import json
import sqlite3
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from medfed.errors import MedfedError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

REFUSED, STOPPED = 2, 130

Language = Annotated[str, typer.Option("--lang", help="Language of what is shown: en or zh.", envvar="MEDFED_LANG")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead, for programs.")]


def print_json(value: Any) -> None:
    """JSON on standard output and nothing else."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=_plain) + "\n")


def say(text: str, **values: object) -> None:
    """A sentence for people, its blanks filled; a long one is left to the terminal to wrap."""
    out.print(text.format(**values), markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return str(value)


def guarded(run: Callable[[], Any]) -> int:
    """Run a command; a refusal of ours becomes its sentence on standard error and exit code 2."""
    try:
        run()
    except MedfedError as problem:
        err.print(str(problem), style="bold red", markup=False, soft_wrap=True)
        return REFUSED
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        err.print(
            f"{where}{problem.strerror or problem}; nothing half-written is left. Free space or mend the permissions, and "
            "run the command again",
            style="bold red", markup=False, soft_wrap=True,
        )  # fmt: skip
        return REFUSED
    except sqlite3.Error as problem:
        err.print(
            f"a database of medfed can't be used ({problem}); restore its folder from a backup",
            style="bold red", markup=False, soft_wrap=True,
        )  # fmt: skip
        return REFUSED
    except KeyboardInterrupt:
        err.print("Stopped.", markup=False)
        return STOPPED
    return 0
