"""From study.yaml to a Study, with errors that name file and line and say what to do."""

import json
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
    path = Path(path)
    if path.is_dir():
        path = path / "study.yaml"
    return parse_study(read_text(path, StudyError, "`medfed study new FOLDER` writes a study to start from"), str(path))


def study_from_dict(declared: Mapping[str, Any]) -> Study:
    """A study from a program. Raises StudyError."""
    return validate(Study, declared, {}, "study", StudyError)


def study_from_json(text: str) -> Study:
    """A study from the JSON that ``model_dump_json`` wrote (a run's record)."""
    return study_from_dict(json.loads(text))
