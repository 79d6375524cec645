"""From study.yaml to a Study, with errors that name file and line and say what to do."""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medfed.errors import StudyError
from medfed.study.schema import Study

_MOST_PROBLEMS = 10


class _Loader(yaml.SafeLoader):
    """YAML 1.2 booleans only: `yes` and `no` are text, as in most code lists."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _plain(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int], source: str) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in out:
                raise StudyError(f"{source}, line {line}: the key {key!r} stands twice; remove one of them")
            out[key] = _plain(value_node, (*path, key), lines, source)
            lines[(*path, key)] = line
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, str(index)), lines, source) for index, item in enumerate(node.value)]
    value = _Loader("").construct_object(node)
    if node.tag == "tag:yaml.org,2002:str" and node.value in ("true", "false") and node.style is None:
        return node.value == "true"
    return value


def parse_study(text: str, source: str = "study.yaml") -> Study:
    """Parse a study. Raises StudyError that lists up to ten problems, each with its line and a suggestion."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        what = getattr(problem, "problem", None) or "it is not readable"
        raise StudyError(f"{source}{place}: this is not valid YAML ({what}); correct the line") from None
    if not isinstance(node, yaml.MappingNode):
        raise StudyError(f"{source}: a study is a list of `key: value` lines; `medfed study new` writes one to start from")
    lines: dict[tuple[str, ...], int] = {}
    raw = _plain(node, (), lines, source)
    try:
        return Study.model_validate(raw)
    except ValidationError as problem:
        raise StudyError("\n".join(_sentences(problem, lines, source))) from None


def load_study(path: Path | str) -> Study:
    """Read a study file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist; `medfed study new FOLDER` writes a study to start from") from None
    except IsADirectoryError:
        return load_study(path / "study.yaml")
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    return parse_study(text, str(path))


def study_from_dict(declared: Mapping[str, Any]) -> Study:
    """A study from a program. Raises StudyError."""
    try:
        return Study.model_validate(declared)
    except ValidationError as problem:
        raise StudyError("\n".join(_sentences(problem, {}, "study"))) from None


def study_from_json(text: str) -> Study:
    """A study from the JSON that ``model_dump_json`` wrote (a run's record)."""
    return study_from_dict(json.loads(text))


def _sentences(problem: ValidationError, lines: Mapping[tuple[str, ...], int], source: str) -> Iterator[str]:
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
            close = difflib.get_close_matches(path[-1], _keys_at(path[:-1]), 1)
            message = f"there is no key {path[-1]!r} here" + (f"; did you mean {close[0]!r}?" if close else "; remove it")
        elif error["type"] == "missing":
            message = f"the key {path[-1]!r} is missing; add it"
        elif error["type"] == "literal_error":
            message = f"{error['input']!r} is not possible here; choose {error['ctx']['expected']}"
            close = difflib.get_close_matches(str(error["input"]), error["ctx"]["expected"].replace("'", "").split(" or "), 1)
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
        sentence = f"{place}, {'.'.join(path) or 'study'}: {message}"
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def _keys_at(path: list[str]) -> list[str]:
    """The keys that a study may have at a path, for suggestions."""
    model: Any = Study
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
