"""Sentences that are filled before they are translated, known again by the words around their blanks.

A refusal is raised in English, with names and numbers in it: it is written into stores, sent between processes and
compared there. Whoever shows it hands it to ``retold``. A text is taken apart as refusals are put together: lines, each
with a place before it ("study.yaml, line 3, seed: "), a list of sites' reasons in parentheses, a sentence in a blank.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from string import Formatter

from medfed.errors import LISTED

# What may stand before a sentence, or in a blank.
PLACES = (
    "site {name}",
    "study {name}",
    "variable {name}",
    "line {number}",
    "row {number}",
    "formula {text}",
    "ledger of site {name}",
    "with epsilon {value}",
)
# The reasons that an operating system and SQLite give most often.
OF_SYSTEM = (
    "No such file or directory",
    "No space left on device",
    "Permission denied",
    "Read-only file system",
    "Is a directory",
    "Not a directory",
    "File exists",
    "database or disk is full",
    "database disk image is malformed",
    "database is locked",
    "disk I/O error",
    "file is not a database",
    "unable to open database file",
    "attempt to write a readonly database",
)
# A sentence with fewer letters of its own could be found in many a text: then its blanks hold no other sentence, unless
# that one is known as well.
FEW_LETTERS = 12
# With fewer it can't be known again at all.
FEWEST_LETTERS = 3
# So many places to cut a line into head and sentence are tried: a text may come from elsewhere.
_MOST_HEADS = 8
_DEEPEST = 4
_WORD = re.compile(r"'[^']*'|\"[^\"]*\"|\S+")
# A list of names such as "'a', b and c"; no path, which may have such words in it and stays what it is.
_ITEM = r"('[^']*'|\"[^\"]*\"|[\w.:=()*-]+)"
_ITEMS = re.compile(f"{_ITEM}((, | and | or ){_ITEM})*")
_BETWEEN = re.compile(r"'[^']*'|\"[^\"]*\"| and | or ")
# Names one after the other. Each is read in one way only: a text may come from elsewhere, and must not take long.
_ENDS = r"(?=, | and | or |\Z)"
_PLACE = "|".join(place.partition("{")[0] for place in PLACES)
_NAME = rf"(?>({_PLACE})?('[^']*'{_ENDS}|\"[^\"]*\"{_ENDS}|\S+?{_ENDS}))"
_NAMES = re.compile(rf"{_NAME}((, | and | or ){_NAME})*")


def letters(sentence: str) -> int:
    """How many letters a sentence has outside its blanks."""
    return sum(len(re.findall("[A-Za-z]", text)) for text, *_ in Formatter().parse(sentence))


def unclear(sentence: str) -> str:
    """Why a sentence can't be known again once its blanks are filled; "" where it can."""
    words = Pattern.of(sentence, "").words
    if letters(sentence) < FEWEST_LETTERS:
        return "too few words of its own"
    return "two blanks side by side" if "" in words[1:-1] else ""


@dataclass(frozen=True)
class Pattern:
    """A sentence with blanks. words: what stands before, between and after them; longest: the longest of these."""

    words: tuple[str, ...]
    blanks: tuple[str, ...]
    translated: str
    letters: int
    longest: str

    @classmethod
    def of(cls, sentence: str, translated: str) -> "Pattern":
        """Of a sentence in English and its translation, with the same blanks."""
        words, blanks = [""], []
        for text, name, _, _ in Formatter().parse(sentence):
            words[-1] += text
            if name is not None:
                blanks.append(name)
                words.append("")
        return cls(tuple(words), tuple(blanks), translated, letters(sentence), max(words, key=len))

    def values(self, text: str) -> list[str] | None:
        """What stands in the blanks of a text, nowhere nothing but in parentheses; None where it is another sentence.

        Each blank ends where the words after it first stand, so that time is linear in the text.
        """
        first, *between, last = self.words
        at, end, found = len(first), len(text) - len(last), list[str]()
        if at >= end or not text.startswith(first) or not text.endswith(last):
            return None
        for blank, words in enumerate(between):
            stop = text.find(words, at if self.holds_list(blank) else at + 1, end)
            if stop < 0:
                return None
            found.append(text[at:stop])
            at = stop + len(words)
        return [*found, text[at:end]] if at < end else None

    def holds_list(self, blank: int) -> bool:
        """Whether a blank may hold a list, as of the sites' reasons: such a one stands in parentheses."""
        return self.words[blank].endswith("(")


def retold(texts: Mapping[str, str], filled: Mapping[str, str]) -> Callable[[str], str]:
    """What translates a text: a sentence of ``texts`` as it stands, or one of ``filled`` with its blanks filled.

    Both are translations by the English sentence. What is not known stays as it is.
    """
    return _Told(texts, filled).text


class _Told:
    """depth, in all of these: how many sentences the one at hand stands in. A text may come from elsewhere."""

    def __init__(self, texts: Mapping[str, str], filled: Mapping[str, str]) -> None:
        def _(text: str) -> str:
            return texts.get(text, text)

        self.texts = texts
        found = (Pattern.of(sentence, translated) for sentence, translated in filled.items())
        # The most words first: a sentence about a site's reason also looks like "{site} refused: {reason}".
        self.patterns = sorted((p for p in found if p.letters >= FEWEST_LETTERS), key=lambda p: -p.letters)
        self.headed, self.places = _("{place}: {sentence}"), _("{place}, {next}")
        self.ended, self.words = _("{sentence}."), {" and ": _(" and "), " or ": _(" or ")}
        self.known = lru_cache(maxsize=4096)(self._known)

    def text(self, text: str, depth: int = 0) -> str:
        """A text of one line or several, or a list of reasons."""
        whole = self.known(text, depth)
        if "\n" in text:
            lines = text.split("\n")
            if whole is not None and self.known(lines[0].strip(), depth) is None:
                return whole  # it is a value that breaks the line
            return "\n".join(line[: -len(line.lstrip()) or None] + self.text(line.strip(), depth) for line in lines)
        if whole is None and LISTED in text:
            return LISTED.join(self.text(part, depth) for part in text.split(LISTED))
        return text if whole is None else whole

    def _known(self, text: str, depth: int) -> str | None:
        """A sentence in the other language, with or without a place before it; None where it is not known."""
        if depth > _DEEPEST:
            return None
        colons = [found.start() for found in re.finditer(": ", text)][:_MOST_HEADS]
        for sure in (True, False):
            if (whole := self.sentence(text, depth, sure)) is not None:
                return whole
            for colon in colons:
                if LISTED not in text[:colon] and (rest := self.sentence(text[colon + 2 :], depth, sure)) is not None:
                    return self.below(text[:colon], rest, depth)
        if text.endswith(".") and (sentence := self.known(text[:-1], depth)) is not None:
            return self.ended.format(sentence=sentence)
        return self.sentence(text, depth, False, anything=True)

    def sentence(self, text: str, depth: int, sure: bool, *, anything: bool = False) -> str | None:
        """sure: only where all that its blanks hold is known: another sentence is longer than it looks, else.

        anything: also where the first blank would hold what looks like the place before a sentence.
        """
        if text in self.texts:
            return self.texts[text]
        for pattern in self.patterns:
            values = pattern.values(text) if pattern.longest in text else None
            if values is None or not self.fits(pattern, values, depth, sure, anything):
                continue
            told = {name: self.value(value, depth) for name, value in zip(pattern.blanks, values, strict=True)}
            parts = Formatter().parse(pattern.translated)
            return "".join(words + (told[name] if name is not None else "") for words, name, _, _ in parts)
        return None

    def fits(self, pattern: Pattern, values: list[str], depth: int, sure: bool, anything: bool) -> bool:
        """Whether values can be what stands in a pattern's blanks."""
        if any(LISTED in value and not pattern.holds_list(blank) for blank, value in enumerate(values)):
            return False
        if not pattern.words[0] and ": " in values[0] and not anything and not _WORD.fullmatch(values[0]):
            return False
        few = pattern.letters < FEW_LETTERS
        ends = few and not pattern.words[-1]
        if ends and not pattern.words[-2].endswith(": ") and not _NAMES.fullmatch(values[-1]):
            return False
        inner = values[:-1] if ends and not sure else values
        return not (few or sure) or all(self.is_known(part, depth + 1) for v in inner for part in v.split(LISTED))

    def is_known(self, value: str, depth: int) -> bool:
        """Names, or a sentence of ours."""
        return bool(_NAMES.fullmatch(value)) or self.known(value, depth) is not None

    def value(self, text: str, depth: int) -> str:
        """What stands in a blank. A single word, or one in quotes, is a name, also where it is one of our words."""
        if _WORD.fullmatch(text):
            return text
        found = self.text(text, depth + 1)
        if found == text and _ITEMS.fullmatch(text) and any(word in text for word in self.words):
            return _BETWEEN.sub(lambda part: self.words.get(part[0], part[0]), text)
        return found if found != text else self.place(text, depth + 1)

    def below(self, head: str, told: str, depth: int) -> str:
        """A place before what is told. One that is not known may be a path with a colon in it, and stays as it is."""
        place = self.place(head, depth)
        return f"{head}: {told}" if place == head else self.headed.format(place=place, sentence=told)

    def place(self, head: str, depth: int) -> str:
        """What stands before a sentence, or in its blank: "site.yaml, line 14"."""
        before, colon, after = head.rpartition(": ")
        if head.count(": ") > _MOST_HEADS:
            return head
        if colon:
            return self.below(before, self.place(after, depth), depth)
        parts = head.split(", ")
        told = [part if _WORD.fullmatch(part) else self.text(part, depth + 1) for part in parts]
        if told == parts:
            return head
        return reduce(lambda place, then: self.places.format(place=place, next=then), told)
