"""Trees of arrays and JSON scalars as canonical safetensors bytes, and hashes of them.

A tree is a nested dict with string keys whose leaves are NumPy arrays or JSON values. The same tree gives the
same bytes on every machine, so bytes can be hashed, sealed and compared. Never pickle.
"""

import dataclasses
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medfed.errors import LedgerError

Tree = Mapping[str, Any]

_NAMES: dict[np.dtype[Any], str] = {
    np.dtype("<f8"): "F64",
    np.dtype("<f4"): "F32",
    np.dtype("<i8"): "I64",
    np.dtype("<i4"): "I32",
    np.dtype("<u8"): "U64",
    np.dtype("u1"): "U8",
    np.dtype("i1"): "I8",
    np.dtype("?"): "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
_LARGEST_HEADER = 16 * 2**20


def flatten(tree: Any, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Split a tree into arrays and scalars keyed by path ("a/b"). Keys may not contain a slash."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    arrays: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str) or "/" in key:
            raise ValueError(f"a key of a tree is text without a slash, not {key!r}")
        path = prefix + key
        if isinstance(value, Mapping) and value:
            inner_arrays, inner_scalars = flatten(value, path + "/")
            arrays |= inner_arrays
            scalars |= inner_scalars
        elif isinstance(value, np.ndarray | np.generic):
            array = np.asarray(value)
            if array.dtype not in _NAMES:
                raise ValueError(f"{path}: arrays of type {array.dtype} can't be stored")
            arrays[path] = array
        else:
            scalars[path] = value
    return arrays, scalars


@lru_cache(maxsize=512)
def _header(layout: tuple[tuple[str, str, tuple[int, ...]], ...], scalars: str) -> bytes:
    entries: dict[str, Any] = {}
    at = 0
    for name, kind, shape in layout:
        size = _TYPES[kind].itemsize
        for extent in shape:
            size *= extent
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    if scalars:
        entries["__metadata__"] = {"scalars": scalars}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def pack(tree: Any) -> bytes:
    """Canonical bytes of a tree (or of a dataclass of arrays and scalars): a valid safetensors file."""
    arrays, scalars = flatten(tree)
    names = sorted(arrays)
    layout = tuple((name, _NAMES[arrays[name].dtype], arrays[name].shape) for name in names)
    text = json.dumps(scalars, sort_keys=True, ensure_ascii=False, separators=(",", ":")) if scalars else ""
    return _header(layout, text) + b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in names)


def pack_rows(stacked: Mapping[str, np.ndarray]) -> list[bytes]:
    """Arrays with a leading axis S -> S byte strings, each equal to ``pack`` of that row's own tree."""
    names = sorted(stacked)
    layout = tuple((name, _NAMES[stacked[name].dtype], stacked[name].shape[1:]) for name in names)
    header = _header(layout, "")
    count = len(stacked[names[0]]) if names else 0
    joined = [np.ascontiguousarray(stacked[name]).tobytes() for name in names]
    widths = [len(data) // count if count else 0 for data in joined]
    return [
        header + b"".join(data[i * width : (i + 1) * width] for data, width in zip(joined, widths, strict=True))
        for i in range(count)
    ]


def unpack(data: bytes) -> dict[str, Any]:
    """The tree that ``pack`` wrote; arrays are read-only views of ``data``.

    Raises LedgerError when the bytes are truncated or are not a tree.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > min(len(data) - 8, _LARGEST_HEADER):
            raise ValueError("header passes the end")
        header = json.loads(data[8 : 8 + length])
        items = list(json.loads(header.pop("__metadata__", {}).get("scalars", "{}")).items())
        end = 8 + length
        for name, entry in header.items():
            dtype = _TYPES[entry["dtype"]]
            start, stop = entry["data_offsets"]
            if not 0 <= start <= stop <= len(data) - 8 - length:
                raise ValueError("array passes the end")
            array = np.frombuffer(data, dtype, offset=8 + length + start, count=(stop - start) // dtype.itemsize)
            items.append((name, array.reshape(entry["shape"])))
            end = max(end, 8 + length + stop)
        if end != len(data):
            raise ValueError("bytes behind the last array")
        tree: dict[str, Any] = {}
        for name, value in items:
            *path, last = name.split("/")
            node = tree
            for step in path:
                node = node.setdefault(step, {})
            if last in node:
                raise ValueError("a name stands twice")
            node[last] = value
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LedgerError(f"stored bytes are damaged or truncated ({error}); restore them from a backup") from None
    return tree


def digest(*parts: bytes | str) -> str:
    """SHA-256 (hex) of parts, each preceded by its length so that no two lists of parts collide."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value, the same text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write, sync and rename: a reader sees the old file or the whole new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner can look into; one that is there already is closed to others."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    return folder
