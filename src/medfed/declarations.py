"""YAML declarations read with their line numbers, and checked against a pydantic model: errors that say what, where, what to do."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medfed.errors import MedfedError

Model = TypeVar("Model", bound=BaseModel)
Lines = Mapping[tuple[str, ...], int]
_MOST_PROBLEMS = 10


class _Loader(yaml.SafeLoader):
    """YAML 1.2 booleans only: `yes` and `no` are text, as in most code lists."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _plain(
    node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], source: str, error: type[MedfedError]
) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in out:
                raise error(f"{source}, line {line}: the key {key!r} stands twice; remove one of them")
            out[key] = _plain(value_node, (*path, key), lines, source, error)
            lines[(*path, key)] = line
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, str(index)), lines, source, error) for index, item in enumerate(node.value)]
    value = _Loader("").construct_object(node)
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if plain and node.value in ("true", "false"):
        return node.value == "true"
    return value


def read_yaml(text: str, source: str, error: type[MedfedError]) -> tuple[dict[str, Any], Lines]:
    """Plain values and the line of every key path. Raises ``error`` where the text is not a YAML mapping."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        what = getattr(problem, "problem", None) or "it is not readable"
        raise error(f"{source}{place}: this is not valid YAML ({what}); correct the line") from None
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


def validate(model: type[Model], raw: Mapping[str, Any], lines: Lines, source: str, error: type[MedfedError]) -> Model:
    """The checked model, or ``error`` with up to ten sentences, each with file, line, key and a suggestion."""
    try:
        return model.model_validate(raw)
    except ValidationError as problem:
        raise error("\n".join(_sentences(problem, lines, source, model))) from None


def _sentences(problem: ValidationError, lines: Lines, source: str, model: type[BaseModel]) -> Iterator[str]:
    seen = set()
    for error in problem.errors()[:_MOST_PROBLEMS]:
        path = [str(word) for word in error["loc"]]
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "value_error":
            head, _, rest = message.partition(": ")
            below = [*path, *head.split(".")]
            if rest and (tuple(below) in lines or " " not in head):
                path, message = below, rest
        elif error["type"] == "extra_forbidden":
            close = difflib.get_close_matches(path[-1], _keys_at(model, path[:-1]), 1)
            message = f"there is no key {path[-1]!r} here" + (
                f"; did you mean {close[0]!r}?" if close else "; remove it"
            )
        elif error["type"] == "missing":
            message = f"the key {path[-1]!r} is missing; add it"
        elif error["type"] == "literal_error":
            message = f"{error['input']!r} is not possible here; choose {error['ctx']['expected']}"
            close = difflib.get_close_matches(
                str(error["input"]), error["ctx"]["expected"].replace("'", "").split(" or "), 1
            )
            message += f" (did you mean {close[0]!r}?)" if close else ""
        elif error["type"] == "string_pattern_mismatch":
            message = f"{error['input']!r} does not have the form {error['ctx']['pattern']}"
        else:
            message = f"{message[:1].lower()}{message[1:]} (found: {str(error['input'])[:60]!r})"
        # pydantic adds the union branch to the path ("title.str"); a reader knows the YAML's own keys only.
        while path and lines and tuple(path) not in lines and len(path) > 1:
            path.pop()
        line = lines.get(tuple(path))
        place = f"{source}, line {line}" if line else source
        sentence = f"{place}, {'.'.join(path) or model.__name__.lower()}: {message}"
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def _keys_at(root: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that a declaration may have at a path, for suggestions."""
    model: Any = root
    for word in path:
        fields = getattr(model, "model_fields", {})
        if word not in fields:
            continue
        model = fields[word].annotation
        for inner in [model, *get_args(model)]:
            found = [t for t in [inner, *get_args(inner)] if isinstance(t, type) and issubclass(t, BaseModel)]
            if found:
                model = found[0]
                break
    return list(getattr(model, "model_fields", {}))
