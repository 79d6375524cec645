"""What people read, in their language: English sentences in the code are the keys, a .po file holds the others.

A sentence is written ``_("{site} keeps its rows").format(site=...)`` with ``_ = translator(lang)``. The catalogue is
read as it stands, so nothing is compiled; ``python -m medfed.language update`` brings it in step with the code.
Numbers are written here too, so that every page writes them alike.
"""

import io
import math
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from medfed.errors import MedfedError
from medfed.sentences import messages, placeholders
from medfed.told import retold, unclear

LANGUAGES = ("en", "zh")
ENVIRONMENT = "MEDFED_LANG"
Translate = Callable[[str], str]

_PACKAGE = Path(__file__).parent
# Stands beside the sentences of a catalogue that are filled before they are translated.
_FILLED = "filled"
_NOT_KNOWN = "–"


def environment_language() -> str:
    """The language that MEDFED_LANG names; English where it names none that medfed speaks."""
    lang = os.environ.get(ENVIRONMENT, "")
    return lang if lang in LANGUAGES else "en"


def check_language(lang: str) -> None:
    """MedfedError for a language that medfed does not speak."""
    if lang not in LANGUAGES:
        raise MedfedError(f"there is no language {lang!r}; choose {' or '.join(LANGUAGES)}")


@cache
def translator(lang: str) -> Translate:
    """The function that turns an English sentence into ``lang``; a sentence without translation stays English.

    A refusal or a reason that was filled in elsewhere ("... the deadline of 10 minutes has passed") is known again by its
    words (``told``). Raises MedfedError for a language that medfed does not speak.
    """
    check_language(lang)
    if lang == "en":
        return str
    catalog = [message for message in read_catalog(lang) if message.id and message.string]
    texts = {str(message.id): str(message.string) for message in catalog}
    return retold(texts, {str(m.id): str(m.string) for m in catalog if _FILLED in m.auto_comments})


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


def problems(lang: str) -> list[str]:
    """What is wrong with a catalogue: sentences missing, empty, unsure, or with other placeholders than the English.

    And refusals that can't be known again once they are filled.
    """
    catalog, found = read_catalog(lang), []
    for text, sentence in messages().items():
        message = catalog.get(text)
        where = f"{text!r} ({', '.join(sentence.places)})"
        if sentence.is_filled and (problem := unclear(text)):
            found.append(f"{problem}: {where}")
        if message is None or not message.string:
            found.append(f"not translated: {where}")
        elif message.fuzzy:
            found.append(f"marked as fuzzy: {where}")
        elif placeholders(text) != placeholders(str(message.string)):
            found.append(f"other placeholders than in English: {where}")
    return found


def update(lang: str) -> tuple[int, int]:
    """Bring a catalogue in step with the code: new sentences are added untranslated, unused ones go.

    Returns how many sentences there are, and how many of them still need a translation.
    """
    before = read_catalog(lang)
    after = Catalog(locale=lang, project="medfed", version="1", fuzzy=False, header_comment="# medfed")
    waiting = 0
    for text, sentence in messages().items():
        known = before.get(text)
        translated = str(known.string) if known is not None and known.string else ""
        waiting += not translated
        flags = {"fuzzy"} if known is not None and known.fuzzy else set()
        comments = [_FILLED] if sentence.is_filled else []
        places = [(place, 0) for place in sentence.places]
        after.add(text, translated, places, flags=flags, auto_comments=comments)
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
