"""What commands refuse is told in the language that was asked for; JSON stays as it is."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from consortium_folder import MAPPINGS, approve_all, contents, done, export, make_sites, medfed, patients_of, refused

from medfed.applications.statistics import question, write_question
from medfed.cli.main import app
from medfed.study import load_study

CHINESE = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites that have built their tables, and approved nothing."""
    folder = tmp_path_factory.mktemp("zh")
    study = make_sites(folder)
    for name in ("north", "south", "west"):
        done("site", "build", folder / "sites" / name, study)
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def told(*words: str | Path) -> str:
    """The Chinese sentence of a command that has to refuse, with no English one left in it."""
    shown = medfed(*words, "--lang", "zh")
    assert (shown.code, shown.out) == (2, ""), shown
    sentence = shown.err.strip()
    assert CHINESE.search(sentence), sentence
    bare = re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"|[\w.-]*/[\w./-]*", "", sentence, flags=re.ASCII)
    assert not re.search(r"[A-Za-z]+ [a-z]+ [a-z]+", bare), sentence
    return sentence


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("role: outcome", "rule: outcome", "study.yaml，第 9 行，variables.event.rule：这里没有键 'rule'；您是否想写 'role'？"),
        ("unit: kg", "unit: kgg", "第 22 行，variables.weight.unit：没有单位 'kgg'；您是否想写 'kg'？"),
        ("minimum: 2", "minimum: 4", "sites.minimum：需要 4 家机构，但只邀请了 3 家；请邀请更多，或降低 minimum"),
        ("minimum: 2", "minimum: 0", "sites.minimum：应大于或等于 1（现为：'0'）"),
        ("newton.Newton", "newton.Neuton", "'medfed:medfed.methods.newton.Neuton' 在已安装的软件包 'medfed' 中不存在；您是否想写"),
        ('.Newton"}', '.Newton", settings: {toleranse: 1}}', "method.settings：Newton 没有设置项 'toleranse'；您是否想写 'tolerance'？"),
        ('.Newton"}', '.Newton", settings: {l2: -1}}', "method.settings：l2 应为 0 或更大，tolerance 大于 0，most_rounds 至少为 1"),
        ("name: three-sites", "name: [three", "study.yaml，第 3 行：这不是有效的 YAML（"),
    ],
)  # fmt: skip
def test_a_bad_study_file_is_told_in_chinese(folder: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in told("study", "check", edited(folder / "study.yaml", old, new))


def test_several_problems_are_told_line_by_line(folder: Path) -> None:
    study = edited(folder / "study.yaml", "role: outcome", "rule: outcome")
    lines = told("study", "check", edited(study, "unit: kg", "unit: kgg")).split("\n")
    assert len(lines) == 3
    for words in (
        "variables.event：缺少键 'role'；请添加",
        "这里没有键 'rule'；您是否想写 'role'？",
        "没有单位 'kgg'",
    ):
        assert sum(words in line for line in lines) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("study check {f}/nowhere.yaml", "nowhere.yaml 不存在；`medfed study new FOLDER` 写出一个可供修改的研究"),
        ("study new {f}", "study.yaml 已存在；没有改动任何内容。请另选一个文件夹"),
        ("study new {f}/x --kind cohort", "--kind 应为 risk, treatment 或 survival，而不是 'cohort'"),
        ("site check {f}/sites/east {f}/study.yaml", "site.yaml 不存在；`medfed site init FOLDER --name NAME` 创建机构的文件夹"),
        ("site verify {f}/sites/north", "ledger.db 不存在；该机构还没有批准过任何研究"),
        ("site revoke {f}/sites/north three-sites", "机构 'north' 还没有批准过任何研究，因此没有可撤回的批准"),
        ("site approve {f}/sites/north {f}/study.yaml --hash 12345678", "而不是 12345678；它不是您所阅读的研究。没有批准"),
        ("site approve {f}/sites/north {f}/study.yaml --until tomorrow", "--until 应为日期，例如 2027-06-30，而不是 'tomorrow'"),
        ("site init {f}/sites/north --name north", "site.yaml 已存在；请编辑它，或另选一个文件夹。没有改动任何内容"),
        ("run {f}/study.yaml -c {f}/nowhere", "nowhere 中没有机构文件夹（sites/NAME/site.yaml）；请用 `medfed site init` 创建"),
        ("run {f}/study.yaml -c {f} --run a/b", "--run 'a/b' 不能用作运行的名称；名称由字母、数字、- 和 _ 组成"),
        ("run {f}/study.yaml -c {f}", "3 家机构中有 0 家应答，研究要求 2 家（north 拒绝：该机构没有批准本版研究 · south 拒绝"),
        ("status -c {f}", "coordinator: 这里从未开始过运行；请用 `medfed run` 开始"),
        ("resume -c {f}", "coordinator: 这里从未开始过运行"),
        ("abandon first -c {f}", "coordinator: 这里从未开始过运行"),
        ("stats table2 {f}/study.yaml -c {f}", "没有统计方法 'table2'；请选择"),
        ("stats glm {f}/study.yaml agee -c {f}", "没有变量 'agee'；您是否想写 'age'？"),
        ("stats describe {f}/study.yaml -c {f}", "还没有机构批准这一问题；它是研究"),
        ("stats km {f}/study.yaml -c {f}", "所问的是事件发生时间；请写 `task: {{kind: survival}}`"),
        ("privacy plan {f}/study.yaml --epsilon 0", "--epsilon 应大于 0 且不超过 50，而不是 0"),
        ("privacy plan {f}/study.yaml --epsilon 1", "study.yaml，ε 为 1 时：evaluation.design：cross_validation 会多次拟合和评估"),
        ("privacy budget {f}/sites/north --plot {f}/a.png", "图以 SVG 绘制；请给出以 .svg 结尾的文件名"),
        ("site apply {f}/sites/north {f}/study.yaml {f}/model.medfed", "model.medfed 不存在；`medfed run` 把模型文件写入协调方的文件夹"),
        ("consortium roster -c {f}", "不是网络的文件夹；`medfed consortium init` 可以把它设为网络文件夹"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_told_in_chinese(folder: Path, words: str, sentence: str) -> None:
    before = contents(folder / "sites")
    assert sentence.replace("{{", "{").replace("}}", "}") in told(*words.format(f=folder).split())
    assert contents(folder / "sites").keys() >= before.keys()


def test_a_site_s_own_data_are_told_in_chinese(folder: Path) -> None:
    site, study = folder / "sites" / "north", folder / "study.yaml"
    file = site / "data" / "export.csv"
    file.write_bytes(export("north").replace(b"AGE", b"AGGE", 1))
    assert "机构 'north'，变量 'age'：数据源中没有列 'AGE'；您是否想写 'AGGE'？请更正 site.yaml，第" in told(
        "site", "check", site, study
    )
    patients = patients_of("north")
    file.write_bytes(export("north", [patients[0] | {"age": "n/a"}, *patients[1:]]))
    shown = told("site", "build", site, study)
    assert "机构 'north'，变量 'age'：150 个值中有 1 个不是数字（\"n/a\"）。\n  请把它们加入 site.yaml，第" in shown
    file.unlink()
    assert "export.csv 不存在；请在 site.yaml，第" in told("site", "check", site, study)
    site_yaml = MAPPINGS["north"].replace("column: AGE, unit: year", "column: AGE, unit: yaer")
    (site / "site.yaml").write_text(f"site: north\n{site_yaml}", encoding="utf-8")
    file.write_bytes(export("north"))
    assert "没有单位 'yaer'；您是否想写 'year'？ 请更正 site.yaml，第" in told("site", "check", site, study)


def test_what_a_policy_or_the_invitation_refuses_is_told_in_chinese(folder: Path) -> None:
    site, study = folder / "sites" / "north", folder / "study.yaml"
    edited(study, "invited: [north, south, west]", "invited: [south, west]")
    assert "研究 'three-sites' 没有邀请机构 'north'；它邀请的是 south, west。没有批准" in told(
        "site", "approve", site, study
    )
    edited(study, "invited: [south, west]", "invited: [north, west, south]")
    shutil.rmtree(site / "tables")
    assert "机构 'north' 没有研究 'three-sites' 的数据表；请先运行 `medfed site build`" in told(
        "site", "preview", site, study
    )
    done("site", "build", site, study)
    edited(site / "policy.yaml", "medfed:medfed.methods.*", "medfed:medfed.other.*")
    assert "机构 'north' 的数据政策不允许步骤 medfed:medfed.methods." in told("site", "approve", site, study)
    edited(site / "policy.yaml", "minimum_cell: 10", "minimum_cell: 0")
    assert "policy.yaml，第 6 行，minimum_cell：应大于或等于 1" in told("site", "approve", site, study)


def test_a_separated_fit_and_a_fit_that_stops_are_told_in_chinese(folder: Path) -> None:
    study = folder / "study.yaml"
    for name in ("north", "south", "west"):
        patients = [p | {"event": p["age"] > 55} for p in patients_of(name)]
        (folder / "sites" / name / "data" / "export.csv").write_bytes(export(name, patients))
    for formula, settings, sentence in (
        ("event ~ age", {}, "'age' 把结局完全或几乎完全分离；请去掉它，合并其水平，或设置 l2 惩罚"),
        ("event ~ weight", {"most_rounds": 1}, "1 轮后仍未收敛（上次变化 "),
    ):
        asked = question(load_study(study), "glm", {"formula": formula, **settings})
        approve_all(folder, write_question(folder, asked, "glm"))
        words = [f"{name}={value}" for name, value in settings.items()]
        more = [word for text in words for word in ("--set", text)]
        assert sentence in told("stats", "glm", study, formula, "-c", folder, *more)


def test_a_damaged_store_and_a_system_s_error_are_told_in_chinese(folder: Path) -> None:
    (folder / "sites" / "north" / "ledger.db").write_bytes(b"this is no database" * 100)
    assert "无法打开台账（不是数据库文件）；请核查磁盘和文件的所有者" in told(
        "site", "ledger", folder / "sites" / "north"
    )
    (folder / "coordinator").write_text("a file where a folder should be")
    shown = told("run", folder / "study.yaml", "-c", folder)
    assert "没有留下写了一半的内容。请释放空间或修正权限，然后重新运行该命令" in shown


def test_json_is_the_same_in_every_language(folder: Path) -> None:
    for name in ("north", "south"):
        done("site", "approve", folder / "sites" / name, folder / "study.yaml")
    report = done("run", folder / "study.yaml", "-c", folder, "--run", "first", "--json", "--lang", "zh").json
    assert [site["reason"] for site in report["sites"]] == [
        None,
        None,
        "the site has not approved this version of the study",
    ]
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text("utf-8").replace("Three", "Other"), "utf-8")
    assert "研究要求 2 家" in told("run", folder / "study.yaml", "-c", folder, "--run", "second", "--json")
    status = done("status", "-c", folder, "--json", "--lang", "zh")
    assert status.out == done("status", "-c", folder, "--json").out
    assert "sites answered" in next(run["reason"] for run in status.json if run["run"] == "second")
    assert "研究要求 2 家" in done("status", "-c", folder, "--lang", "zh").out


def test_the_language_may_stand_in_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFED_LANG", "zh")
    assert "这里从未开始过运行" in refused("status", "-c", folder)
    assert "no run was ever started here" in refused("status", "-c", folder, "--lang", "en")
    monkeypatch.setenv("MEDFED_LANG", "fr")
    assert "there is no language 'fr'; choose en or zh" in refused("status", "-c", folder)


def test_a_language_is_checked_before_anything_is_done(tmp_path: Path) -> None:
    assert "choose en or zh" in refused("study", "new", tmp_path / "new", "--lang", "fr")
    assert not (tmp_path / "new").exists()


def test_every_command_takes_a_language() -> None:
    def without(command: Any, path: str) -> list[str]:
        if hasattr(command, "commands"):
            return [name for below, one in command.commands.items() for name in without(one, f"{path} {below}")]
        return [] if "lang" in [parameter.name for parameter in command.params] else [path]

    assert without(typer.main.get_command(app), "medfed") == []
