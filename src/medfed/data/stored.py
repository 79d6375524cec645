"""A study table on the site's disk: Parquet, with version, lineage and quality beside it; whole or not there at all.

The folder tables/<first 12 of the study's hash> is replaced in one go. What is read back is compared with the version
that was built: a damaged or changed table is refused.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from medfed.data.quality import Quality
from medfed.data.site_folder import SiteFolder, load_site
from medfed.data.table import PIECE, StudyTable
from medfed.errors import MappingError
from medfed.study import Study

_TABLE, _DESCRIPTION = "table.parquet", "table.json"
_DTYPES: dict[str, Any] = {"number": np.float64, "code": np.int64}


class ParquetColumns:
    """A table's variables in its Parquet file: a column is read when it is first wanted, pieces are never kept."""

    def __init__(self, study: Study, path: Path) -> None:
        self._study = study
        self._path = path
        self._file = path.open("rb")
        self._stamp = self._seen()
        # Opened by the same descriptor, so that it is the file whose stamp is watched. Read ahead, a file that is larger
        # than memory would be held in memory; a file object of Python's own would be read through its lock.
        self._parquet = pa_parquet.ParquetFile(pa.OSFile(f"/dev/fd/{self._file.fileno()}"), pre_buffer=False)
        self._whole: dict[str, NDArray[Any]] = {}

    def _seen(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _unchanged(self) -> None:
        if self._seen() != self._stamp:
            raise MappingError(
                f"{self._path} was changed while it was in use; run `medfed site build`, then approve again"
            )

    def head(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Pseudonyms and parts (n,)."""
        stored = self._parquet.read(columns=["pseudonym", "part"])
        return _array(stored.column("pseudonym"), np.uint64), _array(stored.column("part"), np.int64)

    def __contains__(self, name: object) -> bool:
        return name in self._study.variables

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._whole:
            self._unchanged()
            column = _array(self._parquet.read(columns=[f"v_{name}"]).column(0), self._dtype(name))
            column.setflags(write=False)
            self._whole[name] = column
        return self._whole[name]

    def _dtype(self, name: str) -> Any:
        return _DTYPES.get(self._study.variables[name].type, np.str_)

    def pieces(self, names: Sequence[str], size: int = PIECE) -> Iterator[dict[str, NDArray[Any]]]:
        """The columns in consecutive pieces of ``size`` rows, the last one shorter."""
        self._unchanged()
        wanted = [f"v_{name}" for name in names]
        for batch in self._parquet.iter_batches(batch_size=size, columns=wanted, use_threads=False):
            yield {name: _array(batch.column(f"v_{name}"), self._dtype(name)) for name in names}


def _array(column: Any, dtype: Any) -> NDArray[Any]:
    if dtype is np.str_:
        return np.array(column.to_pylist(), dtype=np.str_)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=dtype)  # not copied where Arrow holds it like this


def open_table(site: SiteFolder | Path | str, study: Study) -> StudyTable:
    """The table that was built for a study. MappingError where there is none, or it is not what was built."""
    if not isinstance(site, SiteFolder):
        site = load_site(site)
    folder = site.table_folder(study.hash)
    if _old(folder).exists():
        with _alone(folder.parent):
            _finish_replacement(folder)
    described = folder / _DESCRIPTION
    if not described.exists():
        raise MappingError(f"site {site.name!r} has no table for study {study.name!r}; run `medfed site build` first")
    damaged = MappingError(
        f"site {site.name!r}: the table in {folder} is damaged or was changed; run `medfed site build`, then check and approve again"
    )
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        version, lineage = content["version"], dict(content["lineage"])
        columns = ParquetColumns(study, folder / _TABLE)
        pseudonyms, part = columns.head()
        table = StudyTable(study, columns, pseudonyms, part, lineage=lineage)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        raise damaged from None
    if table.version != version:
        raise damaged
    return table


def write_table(site: SiteFolder, study: Study, table: StudyTable, quality: Quality) -> None:
    """Write a table into its folder. MappingError where it can't be written; what was there before then stays."""
    folder = site.table_folder(study.hash)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent):
            _finish_replacement(folder)
            _remove_unfinished(folder)
            try:
                temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_unfinished(folder)))
                _write_files(temporary, study, table, quality)
                if folder.exists():
                    folder.rename(_old(folder))
                temporary.rename(folder)
                _sync(folder.parent)
            except (OSError, pa.ArrowException):
                _remove_unfinished(folder)
                if not folder.exists():
                    _finish_replacement(folder)
                raise
            shutil.rmtree(_old(folder), ignore_errors=True)
    except (OSError, pa.ArrowException) as problem:
        reason = os.strerror(problem.errno) if isinstance(problem, OSError) and problem.errno else str(problem)
        raise MappingError(
            f"site {site.name!r}: the table can't be written to {folder} ({reason}); nothing was changed. "
            "Free space or mend the permissions, and build again"
        ) from None


def _write_files(folder: Path, study: Study, table: StudyTable, quality: Quality) -> None:
    stored = {
        "pseudonym": pa.array(table.row_pseudonyms, pa.uint64()),
        "part": pa.array(table.part_index, pa.int64()),
        **{f"v_{name}": pa.array(table.columns[name]) for name in study.variables},
    }
    # A dictionary of measurements is longer than they are, and slower to read.
    repeated = [f"v_{name}" for name, variable in study.variables.items() if variable.type != "number"]
    pa_parquet.write_table(pa.table(stored), folder / _TABLE, row_group_size=PIECE, use_dictionary=repeated)
    content = {"version": table.version, "lineage": table.lineage, "quality": quality.to_dict()}
    described = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / _DESCRIPTION).write_text(described, encoding="utf-8")
    for path in (folder / _TABLE, folder / _DESCRIPTION, folder):
        _sync(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process replaces a table of this site. A killed process lets go by itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unfinished(folder: Path) -> str:
    """How the name of a folder that is being written begins."""
    return f".building-{folder.name}-"


def _remove_unfinished(folder: Path) -> None:
    for left in folder.parent.glob(f"{_unfinished(folder)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".old-{folder.name}")


def _finish_replacement(folder: Path) -> None:
    """After a crash between the two renames of a replacement, put the old table back; drop what is left of others."""
    old = _old(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
