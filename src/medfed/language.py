"""What people read, in their language: English sentences in the code are the keys, a .po file holds the others.

A sentence is written ``_("{site} keeps its rows").format(site=...)`` with ``_ = translator(lang)``. The catalogue is
read as it stands, so nothing is compiled; ``python -m medfed.language update`` brings it in step with the code.
Numbers are written here too, so that every page writes them alike.
"""

import ast
import io
import math
import re
import string
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from medfed.errors import LISTED, MedfedError

LANGUAGES = ("en", "zh")
Translate = Callable[[str], str]

_PACKAGE = Path(__file__).parent
# Files whose public constants are sentences for people, kept apart from the place where they are translated.
_CONSTANTS_IN = (
    "applications/network/party.py",
    "applications/network/walkthrough.py",
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
)
# Calls whose first argument is a sentence that is translated where it is shown: what a walkthrough tells.
_TITLED = ("Step", "Said")
# What may fill the blank of a sentence; the blank {reasons} holds a list.
_BLANK, _LIST = f"(?:(?!{LISTED}).)+?", ".+?"
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*")
_NOT_KNOWN = "–"


@cache
def translator(lang: str) -> Translate:
    """The function that turns an English sentence into ``lang``; a sentence without translation stays English.

    A reason that was filled in elsewhere ("... the deadline of 10 minutes has passed") is known again by its constant.
    Raises MedfedError for a language that medfed does not speak.
    """
    if lang not in LANGUAGES:
        raise MedfedError(f"there is no language {lang!r}; choose {' or '.join(LANGUAGES)}")
    if lang == "en":
        return str
    catalog = [message for message in read_catalog(lang) if message.id and message.string]
    texts = {str(message.id): str(message.string) for message in catalog}
    # Longest first: a sentence about a site's reason also looks like "{site} refused: {reason}".
    filled = [
        (_pattern(str(message.id)), str(message.string))
        for message in sorted(catalog, key=lambda message: -len(str(message.id)))
        if placeholders(str(message.id)) and any(place in _CONSTANTS_IN for place, _ in message.locations)
    ]

    def tell(text: str) -> str:
        if text in texts:
            return texts[text]
        for pattern, translated in filled:
            if found := pattern.fullmatch(text):
                return translated.format(**{name: tell(value) for name, value in found.groupdict().items()})
        parts = text.split(LISTED)
        return LISTED.join(map(tell, parts)) if len(parts) > 1 else text

    return tell


def _pattern(sentence: str) -> re.Pattern[str]:
    """What a sentence looks like once its blanks are filled: it may come from another process, as text."""
    found = ""
    for text, name, _, _ in string.Formatter().parse(sentence):
        found += re.escape(text) + (f"(?P<{name}>{_LIST if name == 'reasons' else _BLANK})" if name else "")
    return re.compile(found)


def catalogue_path(lang: str) -> Path:
    """Where a language's .po file lies."""
    return _PACKAGE / "locale" / lang / "LC_MESSAGES" / "medfed.po"


def read_catalog(lang: str) -> Catalog:
    """The catalogue of a language, empty where there is no file yet. Raises MedfedError where it can't be read."""
    path = catalogue_path(lang)
    if not path.exists():
        return Catalog(locale=lang)
    try:
        return read_po(io.BytesIO(path.read_bytes()), locale=lang, abort_invalid=True)
    except Exception as problem:  # Babel raises its own, Unicode and value errors
        raise MedfedError(f"{path}: the translations can't be read ({problem}); mend the file") from None


def messages(package: Path = _PACKAGE) -> dict[str, tuple[str, ...]]:
    """Every sentence to translate -> the files it stands in, file by file.

    Found are ``_("...")`` in Python and Jinja templates, the constants (also in dicts and sets) of the files that keep
    sentences apart, and
    the first line of every step's docstring, which tells a site what leaves it.
    """
    found: dict[str, list[str]] = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("templates/*.html")]):
        name = path.relative_to(package).as_posix()
        source = path.read_text(encoding="utf-8")
        read = _of_python(source, name) if path.suffix == ".py" else _of_template(source)
        for text in read:
            places = found.setdefault(text, [])
            if name not in places:
                places.append(name)
    return {text: tuple(places) for text, places in found.items()}


def _of_python(source: str, name: str) -> Iterator[str]:
    tree = ast.parse(source, name)
    if name in _CONSTANTS_IN:
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and _CONSTANT.fullmatch(target.id):
                yield from _sentences(node.value)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("_", *_TITLED):
            argument = call.args[0] if call.args else None
            choices = (argument.body, argument.orelse) if isinstance(argument, ast.IfExp) else (argument,)
            for choice in choices:
                if isinstance(choice, ast.Constant) and isinstance(choice.value, str):
                    yield choice.value
            if isinstance(argument, ast.JoinedStr) and call.func.id == "_":
                raise MedfedError(f"{name}, line {call.lineno}: an f-string can't be translated; use .format after _()")
        elif isinstance(call, ast.FunctionDef) and any(_is_step(word) for word in call.decorator_list):
            yield meaning_of(ast.get_docstring(call))


def _sentences(value: ast.expr) -> Iterator[str]:
    """The sentences of a constant: a text, or those in a set, a tuple, or a dict's values."""
    if isinstance(value, ast.Constant):
        if isinstance(value.value, str) and " " in value.value:
            yield value.value
    elif isinstance(value, ast.Dict):
        for one in value.values:
            yield from _sentences(one)
    elif isinstance(value, ast.Set | ast.Tuple | ast.List):
        for one in value.elts:
            yield from _sentences(one)


def _is_step(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "step"


def meaning_of(docstring: str | None) -> str:
    """First sentence of a step's docstring: what people are told that the step does."""
    return (docstring or "").strip().split("\n")[0]


def _of_template(source: str) -> Iterator[str]:
    from jinja2.ext import babel_extract

    for _line, _function, text, _comments in babel_extract(io.BytesIO(source.encode()), ["_"], [], {"silent": "false"}):
        yield str(text)


def problems(lang: str) -> list[str]:
    """What is wrong with a catalogue: sentences missing, empty, unsure, or with other placeholders than the English."""
    catalog, found = read_catalog(lang), []
    for text, places in messages().items():
        message = catalog.get(text)
        where = f"{text!r} ({', '.join(places)})"
        if message is None or not message.string:
            found.append(f"not translated: {where}")
        elif message.fuzzy:
            found.append(f"marked as fuzzy: {where}")
        elif placeholders(text) != placeholders(str(message.string)):
            found.append(f"other placeholders than in English: {where}")
    return found


def placeholders(text: str) -> set[str]:
    """Names in braces that ``format`` fills, with their format; text that is no format string has none."""
    try:
        return {f"{name}:{spec}" for _, name, spec, _ in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return set()


def update(lang: str) -> tuple[int, int]:
    """Bring a catalogue in step with the code: new sentences are added untranslated, unused ones go.

    Returns how many sentences there are, and how many of them still need a translation.
    """
    before = read_catalog(lang)
    after = Catalog(locale=lang, project="medfed", version="1", fuzzy=False, header_comment="# medfed")
    waiting = 0
    for text, places in messages().items():
        known = before.get(text)
        translated = str(known.string) if known is not None and known.string else ""
        waiting += not translated
        flags = {"fuzzy"} if known is not None and known.fuzzy else set()
        after.add(text, translated, [(place, 0) for place in places], flags=flags)
    buffer = io.BytesIO()
    write_po(buffer, after, width=100, omit_header=False, include_lineno=False)
    lines = [line for line in buffer.getvalue().decode().split("\n") if not _DATED.match(line)]
    path = catalogue_path(lang)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text("\n".join(lines), encoding="utf-8")
    path.with_suffix(".new").replace(path)
    return len(after), waiting


# Headers that would change with the clock, Babel's version or the person, and say nothing.
_DATED = re.compile(r'"(POT-Creation-Date|PO-Revision-Date|Last-Translator|Language-Team|Generated-By|Report-Msgid)')


def number(value: float | None, digits: int = 2) -> str:
    """A number with thousands separators and a real minus sign; a dash where there is none."""
    if value is None or math.isnan(value):
        return _NOT_KNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent: 0.173 -> 17.3%."""
    return _NOT_KNOWN if value is None or math.isnan(value) else f"{number(100 * value, digits)}%"


def power_of_ten(value: float) -> str:
    """A tiny number as people write it: 2.6e-14 -> "2.6 × 10^−14", with spaces that don't break; 0 as it is.

    Pages set the exponent raised.
    """
    if value == 0:
        return "0"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}\u00a0×\u00a010^{str(int(power)).replace('-', '−')}"


def byte_count(value: float) -> str:
    """Bytes as people read them: 940 B, 12.4 kB, 3.1 MB (powers of 1,000)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{number(value / size, 1)} {unit}"
    return f"{number(value, 0)} B"


def _main(arguments: list[str]) -> int:
    if arguments not in (["update"], ["check"]):
        print("use: python -m medfed.language update|check", file=sys.stderr)
        return 2
    complaints = []
    for lang in LANGUAGES[1:]:
        if arguments == ["update"]:
            count, waiting = update(lang)
            print(f"{lang}: {count} sentences, {waiting} to translate in {catalogue_path(lang)}")
        complaints += [f"{lang}: {problem}" for problem in problems(lang)]
    print("\n".join(complaints) or "every sentence is translated")
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
