"""The study table on the site's disk: whole or not there, refused when it is not what was built; keys kept to oneself."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pa_parquet
import pytest
from clinic import STUDY, contents, make_clinic, refusal, rows, study_with

from medfed.data import stored
from medfed.data.build import build_table, check, open_table
from medfed.data.site_folder import SiteFolder
from medfed.errors import MappingError


def table_folder(site: SiteFolder) -> Path:
    return site.table_folder(study_with().hash)


def refused(site: SiteFolder) -> str:
    with pytest.raises(MappingError) as problem:
        open_table(site, study_with())
    return str(problem.value)


def test_what_is_opened_is_what_was_built(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    built, quality = build_table(site, study_with())
    opened = open_table(site, study_with())
    assert opened.version == built.version == quality.version == check(site, study_with()).version
    for mine, theirs in zip(
        built.on("all").arrays("features", "outcome"), opened.on("all").arrays("features", "outcome"), strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()
    described = json.loads((table_folder(site) / "table.json").read_text("utf-8"))
    assert described["quality"] == json.loads(json.dumps(quality.to_dict()))
    assert described["lineage"]["rows_read"] == 40


def test_lineage_follows_the_exports_bytes_and_the_mapping(tmp_path: Path) -> None:
    first = check(make_clinic(tmp_path), study_with())
    patients = rows()
    patients[0]["AGE"] = str(int(patients[0]["AGE"]) + 1)
    edited = check(make_clinic(tmp_path, patients), study_with())
    assert edited.lineage["sources"] != first.lineage["sources"]
    assert edited.lineage["mapping"] == first.lineage["mapping"]
    assert edited.version != first.version
    remapped = check(make_clinic(tmp_path, missing_codes='["", "NA", "."]'), study_with())
    assert remapped.lineage["mapping"] != first.lineage["mapping"]
    assert (remapped.lineage["sources"], remapped.version) == (first.lineage["sources"], first.version)


def test_a_table_holds_no_identifier_and_no_other_column(tmp_path: Path) -> None:
    patients = [row | {"NAME": f"Name{index}"} for index, row in enumerate(rows())]
    site = make_clinic(tmp_path, patients)
    build_table(site, study_with())
    columns = pa_parquet.read_schema(table_folder(site) / "table.parquet").names
    assert columns == ["pseudonym", "part", *(f"v_{name}" for name in STUDY["variables"])]
    written = b"".join(content or b"" for content in contents(table_folder(site)).values())
    assert b"P1003" not in written
    assert b"Name" not in written


def test_without_a_table_the_sentence_says_to_build_one(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    assert "has no table for study 'example'; run `medfed site build` first" in refused(site)
    build_table(site, study_with())
    with pytest.raises(MappingError, match="has no table"):
        open_table(site, study_with(seed=2))


@pytest.mark.parametrize("name", ["table.parquet", "table.json"])
def test_a_truncated_or_missing_file_is_damage(tmp_path: Path, name: str) -> None:
    site = make_clinic(tmp_path)
    build_table(site, study_with())
    path = table_folder(site) / name
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 4, 0):
        path.write_bytes(whole[:length])
        assert "is damaged or was changed; run `medfed site build`, then check and approve again" in refused(site)
    path.unlink()
    assert "medfed site build" in refused(site)
    build_table(site, study_with())
    open_table(site, study_with())


def test_one_changed_value_in_a_valid_file_is_noticed(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    build_table(site, study_with())
    path = table_folder(site) / "table.parquet"
    table = pa_parquet.read_table(path).to_pandas()
    for column in ("v_weight", "v_event", "part", "pseudonym"):
        changed = table.copy()
        changed.loc[7, column] = changed.loc[7, column] + 1
        changed.to_parquet(path)
        assert "was changed" in refused(site)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB. Needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    mounted = mount is not None and os.geteuid() == 0 and not subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=False, capture_output=True
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, small_disk: Path) -> None:
    site = make_clinic(tmp_path / "clinic")
    (site.folder / "tables").symlink_to(small_disk)
    built = build_table(site, study_with())[0]
    before = contents(small_disk)
    site = make_clinic(tmp_path / "clinic", rows(20_000))
    with pytest.raises(MappingError, match="No space left on device.*nothing was changed. Free space"):
        build_table(site, study_with())
    assert contents(small_disk) == before
    assert open_table(site, study_with()).version == built.version


@pytest.mark.parametrize("broken", ["write_table", "rename", "fsync"])
def test_an_error_at_any_point_of_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The same without a disk of one's own: the call fails as it does when the disk is full."""
    site = make_clinic(tmp_path)
    built = build_table(site, study_with())[0]
    before = contents(site.folder / "tables")
    changed = make_clinic(tmp_path, rows(41))
    calls = 0

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    rename = Path.rename

    def full_at_second(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        return rename(self, target) if calls != 2 else full() or target

    with monkeypatch.context() as patched:
        if broken == "write_table":
            patched.setattr(stored.pa_parquet, "write_table", full)
        elif broken == "fsync":
            patched.setattr(os, "fsync", full)
        else:
            patched.setattr(Path, "rename", full_at_second)
        with pytest.raises(MappingError, match="No space left on device.*nothing was changed"):
            build_table(changed, study_with())
    assert contents(site.folder / "tables") == before
    assert open_table(site, study_with()).version == built.version


class Killed(BaseException):
    """The process ends here: nothing of ours runs any more."""


@pytest.mark.parametrize("at", range(1, 3))
def test_a_kill_between_the_renames_leaves_the_old_table_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    site = make_clinic(tmp_path)
    old = build_table(site, study_with())[0].version
    changed = make_clinic(tmp_path, rows(41))
    new = check(changed, study_with()).version
    rename, calls = Path.rename, 0

    def killed_after(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        moved = rename(self, target)
        if calls == at:
            raise Killed
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed_after)
        with pytest.raises(Killed):
            build_table(changed, study_with())
    assert open_table(site, study_with()).version == (old if at == 1 else new)
    assert build_table(changed, study_with())[0].version == new
    assert [path.name for path in (site.folder / "tables").iterdir()] == [table_folder(site).name]


def test_a_pseudonym_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    key = site.keys / "pseudonym.key"
    for mode in (0o640, 0o604, 0o644, 0o620):
        key.chmod(mode)
        with pytest.raises(MappingError, match=r"can be read by other users of this machine; run: chmod 600 "):
            check(site, study_with())
    key.chmod(0o600)
    check(site, study_with())


def test_a_missing_or_damaged_key_is_refused_and_none_is_made_in_passing(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    key = site.keys / "pseudonym.key"
    for damage in ("", "zz", "ab"):
        key.write_text(damage)
        with pytest.raises(MappingError, match="is not a key made by `medfed site init`; restore it from a backup"):
            check(site, study_with())
    key.unlink()
    with pytest.raises(MappingError, match=r"pseudonym\.key is missing; `medfed site init`"):
        check(site, study_with())
    assert not key.exists()


def test_a_file_stands_where_the_tables_should(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    (site.folder / "tables").write_text("")
    refusal(site, "the table can't be written to .*nothing was changed")
