"""Refusals are found where they are raised, and known again once they are filled."""

import ast
import importlib
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medfed import errors
from medfed.errors import LISTED
from medfed.federation.small_cell import SmallCell
from medfed.language import read_catalog, translator
from medfed.raised import NOT_FOR_PEOPLE
from medfed.sentences import PACKAGE, Sentence, messages
from medfed.told import FEW_LETTERS, letters, retold, unclear

CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def sentences() -> dict[str, Sentence]:
    """Those of the package."""
    return messages()


# -- found in the source ---------------------------------------------------------------------------------------------


def found(tmp_path: Path, code: str, name: str = "any.py") -> set[str]:
    """The sentences in a package of one file."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    return set(messages(tmp_path))


@pytest.mark.parametrize(
    ("raised", "sentences"),
    [
        ('"a plain sentence"', {"a plain sentence"}),
        ('"in two " "pieces"', {"in two pieces"}),
        ('f"{path} does not exist"', {"{path} does not exist"}),
        ('f"{site.name!r} has {len(self.rows):,} rows of " f"{limit:g}"', {"{name} has {rows} rows of {limit}"}),
        ('f"{a.name} is not {b.name}, nor {name}"', {"{name} is not {name2}, nor {name3}"}),
        ("f\"the names {', '.join(sorted(twice))} stand twice\"", {"the names {twice} stand twice"}),
        ('f"{3 * 7} is too much"', {"{value} is too much"}),
        ('f"write `task: {{kind: {kind}}}`"', {"write `task: {{kind: {kind}}}`"}),
        ('f"write `task: {{kind: survival}}`"', {"write `task: {kind: survival}`"}),
        ('"this is one" if x else f"that is {other}"', {"this is one", "that is {other}"}),
        ('"it ends" + (" here" if x else "")', {"it ends here", "it ends"}),
        ("f\"it is {'too long' if x else 'too short'} here\"", {"it is too long here", "it is too short here"}),
        ('f"site {name!r}, variable {other}: {n} values are wrong"', {"{n} values are wrong"}),
        ('f"{path}, line {line}: the key is wrong"', {"the key is wrong"}),
        ('f"{key}: {problem}"', set()),
        ('f"the first line is wrong.\\n  Mend it in {where}"', {"the first line is wrong.", "Mend it in {where}"}),
        ("str(problem)", set()),
        ("REASON", set()),
    ],
)
def test_a_refusal_is_a_sentence_with_named_blanks(tmp_path: Path, raised: str, sentences: set[str]) -> None:
    assert found(tmp_path, f"def f():\n    raise StudyError({raised})\n") == sentences


def test_classes_below_ours_refuse_as_well_and_others_do_not(tmp_path: Path) -> None:
    code = (
        "class NoCells(FederationError): pass\nclass Fewer(NoCells): pass\nclass Other(ValueError): pass\n"
        'def f():\n    raise Fewer("there are fewer")\ndef g():\n    raise Other("not one of ours")\n'
    )
    assert found(tmp_path, code) == {"there are fewer"}


def test_what_a_variable_a_function_or_a_table_holds_is_written_out(tmp_path: Path) -> None:
    code = (
        "def near(word):\n    return f'; did you mean {word}?' if word else ''\n"
        "def f(x):\n"
        "    what = 'is late' if x else 'is early'\n"
        "    states = {'a': 'has ended', 'b': 'goes on'}\n"
        "    raise StudyError(f'{name} {what}')\n"
        "def g(x):\n    raise StudyError(f'there is no key {x}{near(x)}')\n"
        "def h(x):\n    states = {1: 'has ended', 2: 'goes on'}\n    raise StudyError(f'run {x} {states[x]} now')\n"
        "def i(problems):\n    raise StudyError(f'it failed: {problem}')\n"
    )
    assert found(tmp_path, code) == {
        "{name} is late", "{name} is early", "there is no key {x}; did you mean {word}?", "there is no key {x}",
        "run {x} has ended now", "run {x} goes on now", "it failed: {problem}",
    }  # fmt: skip


def test_what_comes_from_further_away_is_found_beside(tmp_path: Path) -> None:
    code = (
        "_WHY = {1: 'the first reason', 2: 'the second reason'}\n"
        "def refuse_all(what):\n    raise StudyError(f'{what} is wrong in {_WHY[n]}')\n"
        "def f():\n    refuse_all('the key list')\n    refuse_all(what='the survivor set')\n"
    )
    assert found(tmp_path, code) == {
        "{what} is wrong in {n}", "the first reason", "the second reason", "the key list", "the survivor set",
    }  # fmt: skip


def test_what_a_function_of_another_file_says_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "units.py").write_text(
        "_SAID = {1: 'write the first one'}\ndef problem(unit):\n    return f'there is no unit {unit}; {_SAID[unit]}'\n"
    )
    code = "def f(unit):\n    if said := problem(unit):\n        raise MappingError(said)\n"
    assert found(tmp_path, code) == {"there is no unit {unit}; {unit2}", "write the first one"}


def test_files_that_hand_on_what_is_wrong_are_read_whole(tmp_path: Path) -> None:
    code = (
        "def f(study):\n    yield f'variables.{name}: it has the role {role}'\n"
        "def g(x):\n    return 'no sentence' if x else None\n"
    )
    assert found(tmp_path, code, "study/contradictions.py") == {"it has the role {role}", "no sentence"}
    (tmp_path / "study" / "contradictions.py").unlink()
    assert found(tmp_path, code, "study/other.py") == set()
    assert found(tmp_path, "def f():\n    raise ValueError('a setting is wrong')\n", "methods/m.py") == {
        "a setting is wrong"
    }


def test_a_sentence_that_could_not_be_known_again_is_told(sentences: dict[str, Sentence]) -> None:
    assert unclear("{name}: {problem}") == "too few words of its own"
    assert unclear("it is {low}{unit} now") == "two blanks side by side"
    assert unclear("{site} late: {reason}") == ""
    assert not [text for text, sentence in sentences.items() if sentence.is_filled and unclear(text)]


# -- every refusal of the package ------------------------------------------------------------------------------------

FAMILY = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {"NoCells", "BadMessage"}
# Refusals whose blanks hold words of ours, which stand in the catalogue as whole sentences: one of each.
WRITTEN_OUT = (
    "data does not hold processed.va.data; docs/heart-disease.md says where to get it",
    "study.yaml, with epsilon 1: variables.a: there is no variable 'b'",
    "coordinator: run 'a' has finished. `medfed status` lists all runs",
    "coordinator: run 'a' is running, so it has no round to give up",
    "site 'a', variable 'b': the source has no column 'c'; it has: d, e. Correct site.yaml, line 3",
    "site 'a': a.csv has a single column when split at ','; it looks split at a tab: write `delimiter: \"\\t\"` in site.yaml",
    "site 'a': a.csv can't be read as rows (its quotes or rows do not match up); check `delimiter` in site.yaml, or export again",
    "medfed:medfed.methods.newton.f is not among the private calls that the method planned",
    "study 'a', method.settings: Newton has no setting 'b'; did you mean 'c'?",
    "study 'a': family 'binomial' needs an outcome of type code, and a is a number; choose another family",
    "the interaction 'a:b' makes a cell of fewer than 10 patients with or without the event; leave it out, or merge levels",
)
# What is raised with a text from elsewhere: that of another refusal, or of a function that puts it together.
FROM_ELSEWHERE = {
    "'\\n'.join(problems)",
    "'\\n'.join(problems[:MOST_PROBLEMS])",
    "'the run ended before anything was killed: ' + self.coordinator.finish(process, 'run')",
    "FEW_ANSWERED.format(step=short_name(step), reasons=reasons_of(failures), **words)",
    "_to_be_approved(folder, file, str(problem), asked)",
    "_too_few(step, self.sites, counted, failures, needed)",
    "_too_few(step, self.sites, found.sites, failures, needed)",
    "answer.reason",
    "found.sentence(short_name(call.step), minimum, lot)",
    "gone(one.call.step, missing, lost)",
    "missing_from(one.call.step, missing, lost)",
    "missing_from(one.call.step, set(one.asked) - set(sites), lost)",
    "missing_from(step.name, earlier[-1] - set(sealed), failures)",
    "not_without(one.call.step, set(one.roster.sites) - set(fixed), failures)",
    "problem",
    "reason",
    "sentence",
    "translator(lang)('this result has no chart; its numbers stand in the table')",
}


def raises() -> Iterator[tuple[str, ast.expr]]:
    """(file, first argument) of every raise of an error of ours."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and name not in NOT_FOR_PEOPLE:
                called = node.exc.func
                if (called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")) in FAMILY:
                    yield name, node.exc.args[0]


def filled(text: ast.expr, values: Iterator[str]) -> list[str]:
    """What a raised text looks like with these values in its blanks."""
    if isinstance(text, ast.Constant):
        return [str(text.value)]
    if isinstance(text, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else next(values) for v in text.values]
        return ["".join(map(str, parts))]
    if isinstance(text, ast.IfExp):
        return [*filled(text.body, values), *filled(text.orelse, values)]
    if isinstance(text, ast.BinOp):
        return ["".join(pair) for pair in itertools.product(filled(text.left, values), filled(text.right, values))]
    return []


def test_every_refusal_of_the_package_is_told_in_chinese() -> None:
    tell = translator("zh")
    english, elsewhere, count = [], set(), 0
    for file, text in raises():
        # A blank at the end of a sentence may be empty, as "; did you mean ...?" is.
        ways = [filled(text, (f"'x{n}'" for n in itertools.count())), filled(text, itertools.repeat(""))]
        if not ways[0]:
            elsewhere.add((file, ast.unparse(text)))
        for with_names, without in zip(*ways, strict=True):
            own = re.split("'x[0-9]+'", with_names)
            if not re.search("[a-z]{2} [a-z]", "".join(own)):
                continue
            count += 1
            alike = [example for example in WRITTEN_OUT if all(words in example for words in own)]
            if not any(is_told(way, tell(way)) for way in (with_names, without, *alike)):
                english.append((file, with_names, tell(with_names)))
    assert english == []
    assert count > 380
    constants = {(file, text) for file, text in elsewhere if text.rpartition(".")[2].isupper()}
    assert {text for _, text in elsewhere - constants} == FROM_ELSEWHERE
    for file, text in constants:
        module, _, name = text.rpartition(".")
        path = f"federation.{module}" if module else file.removesuffix(".py").replace("/", ".")
        sentence = getattr(importlib.import_module(f"medfed.{path}"), name)
        assert is_told(sentence, tell(sentence)), text


@pytest.mark.parametrize("text", WRITTEN_OUT)
def test_refusals_that_are_written_out_are_told(text: str) -> None:
    assert is_told(text, translator("zh")(text))


def is_told(english: str, told: str) -> bool:
    """Whether there is Chinese, and no four words in a row of the English sentence, outside of code."""
    told = re.sub("`[^`]*`", "", told)
    words = re.sub("`[^`]*`", "", english).split()
    return bool(CHINESE.search(told)) and not any(" ".join(words[n : n + 4]) in told for n in range(len(words) - 3))


def test_the_catalogue_holds_every_refusal_and_marks_what_is_filled(sentences: dict[str, Sentence]) -> None:
    catalog = read_catalog("zh")
    marked = {str(message.id) for message in catalog if "filled" in message.auto_comments}
    assert {text for text, sentence in sentences.items() if sentence.is_filled} == marked
    assert len(marked) > 450


# -- known again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "'o''neil'", '"quoted"', "{braces} and {0}", "100 %", "病案号", "with spaces", "a: b", "a; b, c",
        "line\nbreak", "does not exist", "(in) parentheses", "`code`", "\\d+.*", "…",
    ],
)  # fmt: skip
def test_a_sentence_is_known_with_whatever_fills_it(value: str) -> None:
    text = f"/data/{value}/study.yaml is not UTF-8 text; save it as UTF-8"
    assert translator("zh")(text) == f"/data/{value}/study.yaml 不是 UTF-8 文本；请保存为 UTF-8"


def test_lines_places_lists_and_sentences_in_sentences_are_told() -> None:
    tell = translator("zh")
    assert tell(
        "a/study.yaml, line 3, variables.age.unit: there is no unit 'yaer'; did you mean 'year'?\n"
        "a/study.yaml, line 9, seed: a whole number is expected here (found: 'x y')"
    ) == (
        "a/study.yaml，第 3 行，variables.age.unit：没有单位 'yaer'；您是否想写 'year'？\n"
        "a/study.yaml，第 9 行，seed：这里应是整数（现为：'x y'）"
    )
    assert tell(
        "site 'north', variable 'age': 3 of 151 values are not numbers (\"n/a\", \"?\").\n"
        "  Add them to missing_codes in site.yaml, line 14, or fix the export."
    ) == (
        "机构 'north'，变量 'age'：151 个值中有 3 个不是数字（\"n/a\", \"?\"）。\n"
        "  请把它们加入 site.yaml，第 14 行 的 missing_codes，或更正导出数据。"
    )
    assert tell("site 'north', variable 'age': 3 of 151 values are not numbers (\"the \"n a\" code\").") == (
        "机构 'north'，变量 'age'：151 个值中有 3 个不是数字（\"the \"n a\" code\"）。"
    )
    assert tell("ties is 'breslow' or 'efron', not 'exact'") == "ties 应为 'breslow' 或 'efron'，而不是 'exact'"
    reasons = LISTED.join(["north started anew", "south refused: secure sum: a term is missing"])
    assert tell(f"glm: the total could not be opened: the shares do not belong to one secret ({reasons}). Nothing of it "
                "was seen; mend what keeps them away, then `medfed resume`") == (
        "glm: 无法打开合计：这些份额不属于同一个密值（north 已重新启动 · south 拒绝：安全求和：缺少一项）。没有看到其中任何内容；"
        "请解决妨碍它们的问题，然后运行 `medfed resume`"
    )  # fmt: skip


def test_names_stay_what_they_are() -> None:
    tell = translator("zh")
    assert tell("counted") != "counted"
    assert tell("site 'counted' has no table for study 'running'; run `medfed site build` first") == (
        "机构 'counted' 没有研究 'running' 的数据表；请先运行 `medfed site build`"
    )
    assert "counted" in tell(
        "the counts came from counted, the adjusted fit from running; start a new run when all of them answer"
    )
    assert (
        tell("the model has no variable 'no patient identifier'; it has age")
        == "模型中没有变量 'no patient identifier'；它有 age"
    )


TEXTS = {"it was lost": "丢失了", "nothing is left": "没有剩余"}
FILLED = {
    "{name}: {problem}": "错：{name}{problem}",
    "{a} late: {b}": "{a} 迟：{b}",
    "{word} is bad": "{word} 坏",
    "{unit} is no such unit; {hint}": "{unit} 不是单位；{hint}",
    "{unit} is no such unit; did you mean {close}?": "{unit} 不是单位；是 {close} 吗？",
    "{problem} Correct {where}": "{problem} 请更正 {where}",
    "{word} is certainly no code of {variable}": "{word} 不是 {variable} 的编码",
    "{word} is certainly no code of study {study}": "{word} 不是研究 {study} 的编码",
    "{site} failed since {cause} in the end": "{site} 最终因 {cause} 失败",
    "the disk of {site} is full": "{site} 的磁盘已满",
    "the disk of {site} is full and it was {state}": "{site} 的磁盘已满，且 {state}",
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # A pattern without words of its own is none.
        ("anything: at all", "anything: at all"),
        # One with few words takes names and known sentences, and no others.
        ("north late: it was lost", "north 迟：丢失了"),
        ("nobody knows why this is late: it is", "nobody knows why this is late: it is"),
        ("the whole thing is bad", "the whole thing is bad"),
        ("'x y' is bad", "'x y' 坏"),
        ("'x', y and z is bad", "'x', y and z 坏"),
        # The one with more words comes first, and one that leaves nothing over before one that does.
        ("the disk of north is full and it was burnt", "north 的磁盘已满，且 burnt"),
        ("x is certainly no code of study y", "x 不是研究 y 的编码"),
        ("q is no such unit; did you mean p?", "q 不是单位；是 p 吗？"),
        ("q is no such unit; did you mean p? Correct site.yaml", "q 不是单位；是 p 吗？ 请更正 site.yaml"),
        ("q is no such unit; ask somebody", "q 不是单位；ask somebody"),
        # A list is no single sentence.
        ("a failed since x in the end · b failed since y in the end", "a 最终因 x 失败 · b 最终因 y 失败"),
        # What stands before a sentence is no part of it.
        ("some/file: the disk of north is full", "some/file: north 的磁盘已满"),
        ("an: unknown: nothing is left", "an: unknown: 没有剩余"),
        ("an unknown sentence: that is not ours", "an unknown sentence: that is not ours"),
    ],
)  # fmt: skip
def test_a_short_sentence_never_swallows_another(text: str, told: str) -> None:
    assert retold(TEXTS, FILLED)(text) == told


def test_few_sentences_are_short(sentences: dict[str, Sentence]) -> None:
    short = [text for text, sentence in sentences.items() if sentence.is_filled and letters(text) < FEW_LETTERS]
    assert len(short) < 40


@pytest.mark.parametrize(
    "text",
    ["x is above 0 " * 800, "site 'a' signed " * 600, "a: " * 3000, "1 of 2 values are " * 500, "(" * 5000,
     "the model has no variable 'q'; it has " + ", ".join(["'a'"] * 60) + " and no more there are",
     "ties is " + ", ".join(["'a', \"b\" or c and site 'd'"] * 40) + " x y z, not 'e'",
     "/data/" + "a: " * 3000 + "is not UTF-8 text; save it as UTF-8",
     LISTED.join(["north refused: secure sum: it was lost"] * 300), "\n".join(["site 'a': it was lost"] * 300)],
    ids=["few words", "places", "colons", "blanks", "brackets", "names", "more names", "a path", "a list", "lines"],
)  # fmt: skip
def test_a_text_that_was_made_to_be_slow_is_not(text: str) -> None:
    tell = translator("zh")
    start = time.perf_counter()
    tell(text)
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize(
    ("few", "names"),
    [
        ("patients", ()),
        ("missing", ("x1",)),
        ("missing", ("x1", "x2")),
        ("known", ("x1",)),
        ("values", ("x1",)),
        ("cell", ("x1", "x2")),
    ],
)
def test_what_is_too_few_for_a_secure_sum_is_told_in_chinese(few: Any, names: tuple[str, ...]) -> None:
    said = SmallCell(few, names).sentence("glm_terms", 10, 4)
    assert is_told(said, translator("zh")(said))
