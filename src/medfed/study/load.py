"""From study.yaml to a Study, with errors that name file and line and say what to do."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfed.declarations import read_text, read_yaml, validate
from medfed.errors import StudyError
from medfed.study.schema import Study


def parse_study(text: str, source: str = "study.yaml") -> Study:
    """Parse a study. Raises StudyError that lists up to ten problems, each with its line and a suggestion."""
    raw, lines = read_yaml(text, source, StudyError)
    return validate(Study, raw, lines, source, StudyError)


def load_study(path: Path | str) -> Study:
    """Read a study file, or study.yaml in a folder."""
    file = _file(path)
    return parse_study(_text(file), str(file))


def study_from_dict(declared: Mapping[str, Any]) -> Study:
    """A study from a program. Raises StudyError."""
    return validate(Study, declared, {}, "study", StudyError)


def study_from_json(text: str) -> Study:
    """A study from the JSON that ``model_dump_json`` wrote (a run's record)."""
    return study_from_dict(json.loads(text))


def placed(path: Path | str, sentence: str) -> str:
    """A sentence about a key ("method.settings: ...") with the file and the line of that key before it.

    A key that the sentence quotes and that stands below is the place to look at: there is the line.
    """
    file = _file(path)
    lines = read_yaml(_text(file), str(file), StudyError)[1]
    key = tuple(sentence.partition(": ")[0].split("."))
    for word in re.findall(r"'([^']*)'", sentence):
        if (*key, word) in lines:
            key = (*key, word)
            break
    while key and key not in lines:
        key = key[:-1]
    return f"{file}, line {lines.get(key, 1)}, {sentence}"


def _file(path: Path | str) -> Path:
    path = Path(path)
    return path / "study.yaml" if path.is_dir() else path


def _text(file: Path) -> str:
    return read_text(file, StudyError, "`medfed study new FOLDER` writes a study to start from")
