"""Everything that a coordinator ever had of a run, as bytes, and every number that a site sealed, to be searched for in it."""

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from secure_faults import Proxy

from medfed.canonical import pack, unpack
from medfed.federation.call import Answer
from medfed.federation.ring import FRACTION_BITS
from medfed.federation.units import UNITS

# Small words and short numbers stand everywhere by chance: lengths, ordinals, "3.0", "0.5". Attacks look after counts.
_LEAST = 2**24


def sealed_words(path: Path, site: str) -> np.ndarray:
    """All numbers of patients' data that a site has sealed, coded for the ring and too large to stand somewhere by chance.

    The words of a count of units are lots, which are small, and random numbers, of which a total may be one.
    """
    db = sqlite3.connect(path)
    rows = db.execute(
        "select l.bytes from ledger l join call c on c.id=l.call where l.site=? and l.kind='release' and c.step<>?"
        " and l.bytes is not null", (site, UNITS),
    ).fetchall()  # fmt: skip
    db.close()
    words = [array.ravel() for (data,) in rows for array in unpack(data).values() if array.dtype == np.int64]
    found = np.unique(np.concatenate(words))
    return found[(np.abs(found.astype(np.float64)) > _LEAST) & (found % 2 ** (FRACTION_BITS // 2) != 0)]


def forms(word: int) -> Iterable[bytes]:
    """A sealed number as it might be written down: coded, as a float, as text."""
    value = float(word) * 2.0**-FRACTION_BITS
    yield np.int64(word).tobytes()
    yield np.float64(value).tobytes()
    yield repr(value).encode()
    yield str(word).encode()


def traffic_of(proxy: Proxy) -> bytes:
    """Every call, request and answer that went through the coordinator's hands."""
    parts = []
    for call, _, own, answer in proxy.heard:
        parts += [pack(call.inputs), own.message or b"", call.opening.shown if call.opening else b""]
        parts.append(bytes(answer.data) if isinstance(answer, Answer) else answer.reason.encode())
    return b"\n".join(parts)


def store_of(folder: Path) -> bytes:
    """Every file of the coordinator's folder."""
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def found_in(data: bytes, words: np.ndarray) -> list[int]:
    """The sealed numbers that stand somewhere in these bytes."""
    return [int(word) for word in words if any(form in data for form in forms(int(word)))]


def terms_seen(data: bytes, stores: Mapping[str, Path]) -> dict[str, list[int]]:
    """By site, the numbers of its own that stand in these bytes."""
    return {site: seen for site, path in stores.items() if (seen := found_in(data, sealed_words(path, site)))}
