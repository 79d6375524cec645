"""The sentences that a catalogue has to translate, found in the source: nothing of it is run.

Most stand as ``_("...")``. Refusals don't: ``raise StudyError(f"{path} does not exist")`` is filled where it is raised, and
translated where it is shown. Of these the sentence with named blanks is found here, "{path} does not exist"; ``told`` knows
it again when it is filled.
"""

import ast
import io
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medfed.errors import MedfedError
from medfed.raised import Refusals

PACKAGE = Path(__file__).parent
# Files whose public constants are sentences for people, kept apart from the place where they are translated.
_CONSTANTS_IN = (
    "applications/network/party.py",
    "applications/network/walkthrough.py",
    "cli/study.py",
    "data/build.py",
    "data/fit_checks.py",
    "declarations.py",
    "engines/nvflare/certificates.py",
    "engines/nvflare/coordinator_service.py",
    "engines/nvflare/engine.py",
    "engines/nvflare/guard.py",
    "engines/nvflare/proposals.py",
    "engines/nvflare/reasons.py",
    "engines/site_folders.py",
    "engines/standing.py",
    "evaluation/alarms.py",
    "evaluation/drift.py",
    "evaluation/monitor.py",
    "evaluation/report_data.py",
    "federation/admission.py",
    "federation/budget.py",
    "federation/execution.py",
    "federation/federation.py",
    "federation/gate.py",
    "federation/opening.py",
    "federation/openings.py",
    "federation/preview.py",
    "federation/private.py",
    "federation/secure.py",
    "federation/secure_sentences.py",
    "federation/secure_site.py",
    "methods/meta_analysis.py",
    "methods/private_describe.py",
    "methods/private_glm.py",
    "told.py",
)
# Calls whose first argument is a sentence that is translated where it is shown: what a walkthrough tells.
_TITLED = ("Step", "Said")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True)
class Sentence:
    """One sentence to translate. places: files; is_filled: whether its blanks are filled before it is translated."""

    places: tuple[str, ...]
    is_filled: bool = False


def messages(package: Path = PACKAGE) -> dict[str, Sentence]:
    """Every sentence to translate, with the files that it stands in.

    Found are ``_("...")`` in Python and Jinja templates, the constants (also in dicts and sets) of the files that keep
    sentences apart, the first line of every step's docstring, which tells a site what leaves it, and refusals.
    """
    found: dict[str, Sentence] = {}
    sources = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    trees = {name: ast.parse(path.read_text(encoding="utf-8"), name) for name, path in sources.items()}
    refusals = Refusals(trees)
    for path in sorted([*sources.values(), *package.rglob("templates/*.html")]):
        name = path.relative_to(package).as_posix()
        if name in trees:
            read = [*_of_python(trees[name], name), *refusals.of_file(name)]
        else:
            read = [(text, False) for text in _of_template(path.read_text(encoding="utf-8"))]
        for text, is_filled in read:
            known = found.get(text, Sentence(()))
            places = known.places if name in known.places else (*known.places, name)
            found[text] = Sentence(places, known.is_filled or is_filled)
    return found


def placeholders(text: str) -> set[str]:
    """Names in braces that ``format`` fills, with their format; text that is no format string has none."""
    try:
        return {f"{name}:{spec}" for _, name, spec, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return set()


def _of_python(tree: ast.Module, name: str) -> Iterator[tuple[str, bool]]:
    if name in _CONSTANTS_IN:
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and _CONSTANT.fullmatch(target.id):
                yield from ((text, bool(placeholders(text))) for text in _constants(node.value))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("_", *_TITLED):
            argument = call.args[0] if call.args else None
            choices = (argument.body, argument.orelse) if isinstance(argument, ast.IfExp) else (argument,)
            for choice in choices:
                if isinstance(choice, ast.Constant) and isinstance(choice.value, str):
                    yield choice.value, False
            if isinstance(argument, ast.JoinedStr) and call.func.id == "_":
                raise MedfedError(f"{name}, line {call.lineno}: an f-string can't be translated; use .format after _()")
        elif isinstance(call, ast.FunctionDef) and any(_is_step(word) for word in call.decorator_list):
            yield meaning_of(ast.get_docstring(call)), False


def _constants(value: ast.expr) -> Iterator[str]:
    """The sentences of a constant: a text, or those in a set, a tuple, or a dict's values."""
    if isinstance(value, ast.Constant):
        if isinstance(value.value, str) and " " in value.value:
            yield value.value
    elif isinstance(value, ast.Dict):
        for one in value.values:
            yield from _constants(one)
    elif isinstance(value, ast.Set | ast.Tuple | ast.List):
        for one in value.elts:
            yield from _constants(one)


def _is_step(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "step"


def meaning_of(docstring: str | None) -> str:
    """First sentence of a step's docstring: what people are told that the step does."""
    return (docstring or "").strip().split("\n")[0]


def _of_template(source: str) -> Iterator[str]:
    from jinja2.ext import babel_extract

    for _line, _function, text, _comments in babel_extract(io.BytesIO(source.encode()), ["_"], [], {"silent": "false"}):
        yield str(text)
