"""What the commands share: the consoles, languages, JSON, and one way to say no."""

import json
import sqlite3
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from rich.console import Console

from medfed.errors import MedfedError
from medfed.language import ENVIRONMENT, Translate, check_language, environment_language, translator

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

REFUSED, STOPPED = 2, 130

# The language of the command that runs, for what is said where the command has ended: its refusals.
_shown_in: ContextVar[str] = ContextVar("shown_in", default="en")


def _chosen(lang: str) -> str:
    check_language(lang)
    _shown_in.set(lang)
    return lang


Language = Annotated[
    str,
    typer.Option(
        "--lang", help="Language of what is shown: en or zh.", envvar=ENVIRONMENT, callback=_chosen, is_eager=True
    ),
]
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
    """Run a command; a refusal of ours becomes its sentence on standard error, in the command's language, and exit code 2."""
    _shown_in.set(environment_language())
    try:
        run()
    except MedfedError as problem:
        return _refused(_translate()(str(problem)))
    except OSError as problem:
        _ = _translate()
        said = _(
            "{problem}; nothing half-written is left. Free space or mend the permissions, and run the command again"
        ).format(problem=problem.strerror or problem)
        return _refused(
            _("{place}: {sentence}").format(place=problem.filename, sentence=said) if problem.filename else said
        )
    except sqlite3.Error as problem:
        _ = _translate()
        said = _("a database of medfed can't be used ({problem}); restore its folder from a backup")
        return _refused(said.format(problem=problem))
    except KeyboardInterrupt:
        _ = _translate()
        err.print(_("Stopped."), markup=False)
        return STOPPED
    return 0


def _translate() -> Translate:
    """Into the command's language; into none where the catalogue itself can't be read, which is then what is told."""
    try:
        return translator(_shown_in.get())
    except MedfedError:
        return str


def _refused(sentence: str) -> int:
    err.print(sentence, style="bold red", markup=False, soft_wrap=True)
    return REFUSED
