"""An epsilon in a study file: what it rules out is told with its line; delta is 1e-5 unless another is given."""

import contextlib

import pytest
from study_text import TEXT

from medfed.errors import StudyError
from medfed.study import parse_study


def with_privacy(privacy: str, **changes: str) -> str:
    text = "\n".join(line for line in TEXT.splitlines() if not line.startswith(("privacy", "evaluation", "variants")))
    for old, new in changes.items():
        text = text.replace(old, new)
    return f"{text}\nprivacy: {privacy}\n"


def problem(text: str) -> str:
    with pytest.raises(StudyError) as found:
        parse_study(text)
    return str(found.value)


def test_delta_is_stated_even_where_it_is_not_written() -> None:
    study = parse_study(with_privacy("{epsilon: 3}"))
    assert (study.privacy.epsilon, study.privacy.delta) == (3.0, 1e-5)
    assert parse_study(with_privacy("{epsilon: 3, delta: 1e-7}")).privacy.delta == 1e-7
    assert parse_study(with_privacy("{sums: plain}")).privacy.epsilon is None


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ("{epsilon: 0}", "privacy.epsilon: "),
        ("{epsilon: 200}", "privacy.epsilon: "),
        ("{epsilon: 1, delta: 0.5}", "privacy.delta: "),
        ("{delta: 1e-5}", "privacy.delta: a delta needs an epsilon"),
        ("{epsilon: much}", "privacy.epsilon: a number is expected here"),
    ],
)
def test_what_is_no_epsilon_is_told_with_its_key(privacy: str, said: str) -> None:
    assert said in problem(with_privacy(privacy))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("parts: {kind: folds, folds: 3}\nevaluation: {design: cross_validation}", "evaluation.design: cross_validation fits"),
        ("evaluation: {design: none, compare: [local, federated]}", "evaluation.compare: figures of one site"),
        ("protects: none", "privacy.epsilon: `protects: none`"),
    ],
)  # fmt: skip
def test_what_an_epsilon_rules_out_is_told(line: str, said: str) -> None:
    text = with_privacy("{epsilon: 3}")
    kept = [each for each in text.splitlines() if not any(each.startswith(k.split(":")[0]) for k in line.splitlines())]
    assert said in problem("\n".join([*kept, line]))
    without = "\n".join([*kept, line]).replace("{epsilon: 3}", "{sums: strongest}")
    with contextlib.suppress(StudyError):
        parse_study(without)
        return
    assert said not in problem(without)
