"""What is asked: study files, their variables and the features these become. Plain declarations."""

from medfed.study.design import Column, Design
from medfed.study.load import load_study, parse_study, placed, study_from_dict, study_from_json
from medfed.study.schema import Study
from medfed.study.variables import Variable, text_in

__all__ = [
    "Column",
    "Design",
    "Study",
    "Variable",
    "load_study",
    "parse_study",
    "placed",
    "study_from_dict",
    "study_from_json",
    "text_in",
]
