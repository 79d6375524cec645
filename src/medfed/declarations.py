"""YAML declarations read with their line numbers, and checked against a pydantic model: errors that say what, where, what to do."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from medfed.errors import MedfedError

Model = TypeVar("Model", bound=BaseModel)
Lines = Mapping[tuple[str, ...], int]
_MOST_PROBLEMS = 10
NO_REFERENCES = "`&`, `*` and `!` have a meaning that is not used here; write the value out, or quote it"
# The problems that PyYAML finds most often.
OF_YAML = (
    "could not find expected ':'",
    "mapping values are not allowed here",
    "found character {character} that cannot start any token",
    "expected <block end>, but found {found}",
    "found unexpected end of stream",
    "but found another document",
)
# What pydantic says of a number or a length, as it stands in our sentences: for the catalogue.
OF_PYDANTIC = (
    "input should be greater than {bound}",
    "input should be greater than or equal to {bound}",
    "input should be less than {bound}",
    "input should be less than or equal to {bound}",
    "{kind} should have at least {least} item after validation, not {found}",
    "{kind} should have at least {least} items after validation, not {found}",
    "string should have at least {least} character",
    "string should have at most {most} character",
    "string should have at most {most} characters",
)


# YAML 1.2: `yes` and `no` are text, as in most code lists; so is 007, a code that a number would lose.
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


class _Loader(yaml.BaseLoader):
    """Nodes with their lines; values are read by ``_scalar``."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        # One value in two places can grow without end, or contain itself; a declaration has no need of it.
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None or getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, NO_REFERENCES, event.start_mark)
        return super().compose_node(parent, index)


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.style is not None:
        return node.value
    if node.value in _WORDS:
        return _WORDS[node.value]
    if _WHOLE.fullmatch(node.value) and len(node.value) < 100:
        return int(node.value)
    return float(node.value) if _NUMBER.fullmatch(node.value) else node.value


def _plain(
    node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], source: str, error: type[MedfedError]
) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise error(f"{source}, line {line}: a key is a word, not a list; correct the line")
            key = str(key_node.value)
            if key in out:
                raise error(f"{source}, line {line}: the key {key!r} stands twice; remove one of them")
            out[key] = _plain(value_node, (*path, key), lines, source, error)
            lines[(*path, key)] = line
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, str(index)), lines, source, error) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def read_yaml(text: str, source: str, error: type[MedfedError]) -> tuple[dict[str, Any], Lines]:
    """Plain values and the line of every key path. Raises ``error`` where the text is not a YAML mapping."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        what = getattr(problem, "problem", None) or "it holds a character that no text has"
        raise error(
            f"{source}{place}: this is not valid YAML ({what}); correct the line, or put its text in quotes"
        ) from None
    except RecursionError:
        raise error(f"{source}: this is nested too deeply for a declaration; correct the brackets") from None
    if not isinstance(node, yaml.MappingNode):
        raise error(f"{source}: a file of `key: value` lines is expected here; start from the one that medfed writes")
    lines: dict[tuple[str, ...], int] = {}
    return _plain(node, (), lines, source, error), lines


def read_text(path: Path, error: type[MedfedError], missing: str) -> str:
    """The text of a declaration file, UTF-8 with or without a byte-order mark. ``missing``: the sentence's end."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path} does not exist; {missing}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as problem:
        raise error(f"{path} can't be read ({problem.strerror}); give the path of a file that you may read") from None


def validate(model: type[Model], raw: Mapping[str, Any], lines: Lines, source: str, error: type[MedfedError]) -> Model:
    """The checked model, or ``error`` with up to ten sentences, each with file, line, key and a suggestion."""
    try:
        return model.model_validate(raw)
    except ValidationError as problem:
        raise error("\n".join(islice(_sentences(problem, lines, source, model), _MOST_PROBLEMS))) from None


def _sentences(problem: ValidationError, lines: Lines, source: str, model: type[BaseModel]) -> Iterator[str]:
    told: set[tuple[str, ...]] = set()
    infinite = {error["loc"][:-1] for error in problem.errors() if error["type"] == "finite_number"}
    for error in problem.errors():
        path = [str(word) for word in error["loc"]]
        if error["type"] != "finite_number" and error["loc"][:-1] in infinite and path[-1] in _KINDS:
            continue  # of all kinds of value that were possible here, it is a number
        if error["type"] == "string_type" and isinstance(error["input"], dict) and path[-1].endswith("str"):
            continue  # a text or a group of keys was possible, and these are keys: only what is wrong with them is told
        for message in error["msg"].removeprefix("Value error, ").split("\n"):
            below, sentence = path, message
            if error["type"] == "value_error":
                head, _, rest = message.partition(": ")
                key = [*path, *head.split(".")]
                if rest and (tuple(key) in lines or re.fullmatch(r"[\w.]+", head)):
                    below, sentence = key, rest
            else:
                sentence = _suggestion(error, path, model)
            place = _keys_of(below, lines)
            if tuple(place) in told and error["type"] not in ("value_error", "missing"):
                continue
            told.add(tuple(place))
            line = lines.get(tuple(place))
            where = f"{source}, line {line}" if line else source
            yield f"{where}, {'.'.join(place) or model.__name__.lower()}: {sentence}"


def _keys_of(path: Sequence[str], lines: Lines) -> list[str]:
    """The keys of the file in a path: pydantic also names the kind of value that it tried ("title.str")."""
    if not lines:
        return list(path[:-1] if path and path[-1] in _KINDS else path)
    keys: list[str] = []
    for word in path:
        if (*keys, word) in lines:
            keys.append(word)
    return keys


_KINDS = ("bool", "int", "float", "str")
_EXPECTED = {
    "string_type": "text is expected here; put it in quotes",
    "tuple_type": "a list is expected here; put it in square brackets",
    "list_type": "a list is expected here; put it in square brackets",
    "dict_type": "`key: value` lines are expected here",
    "model_type": "`key: value` lines are expected here",
    "float_type": "a number is expected here",
    "float_parsing": "a number is expected here",
    "finite_number": "a number is expected here, and neither infinity nor nan is one",
    "int_type": "a whole number is expected here",
    "int_parsing": "a whole number is expected here",
    "int_from_float": "a whole number is expected here",
    "bool_type": "true, false, a number or text is expected here",
}


def _suggestion(error: Any, path: list[str], model: type[BaseModel]) -> str:
    """What is wrong with one value, and what to write instead."""
    kind, found, message = error["type"], error["input"], error["msg"]
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], _keys_at(model, path[:-1]), 1)
        return f"there is no key {path[-1]!r} here" + (f"; did you mean {close[0]!r}?" if close else "; remove it")
    if kind == "missing":
        return f"the key {path[-1]!r} is missing; add it"
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        close = difflib.get_close_matches(str(found), re.split(", | or ", expected.replace("'", "")), 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{found!r} is not possible here; choose {expected}{hint}"
    if kind == "string_pattern_mismatch":
        return f"{found!r} does not have the form {error['ctx']['pattern']}"
    expected = _EXPECTED.get(kind, f"{message[:1].lower()}{message[1:]}")
    return expected if found is None or isinstance(found, dict) else f"{expected} (found: {str(found)[:60]!r})"


def _keys_at(root: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that a declaration may have at a path, for suggestions."""
    model: Any = root
    named_freely = False
    for word in path:
        fields = getattr(model, "model_fields", {})
        if named_freely or word not in fields:
            named_freely = False
            continue
        model = fields[word].annotation
        named_freely = get_origin(model) is dict  # a variable may be called as one of a variable's own keys
        for inner in [model, *get_args(model)]:
            found = [t for t in [inner, *get_args(inner)] if isinstance(t, type) and issubclass(t, BaseModel)]
            if found:
                model = found[0]
                break
    return list(getattr(model, "model_fields", {}))
