"""What a step sees of its site: one site (``Site``), or many stacked (``Sites``) for a batched twin. Read-only."""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest, pack
from medfed.data.table import View
from medfed.federation.private import Meter
from medfed.study import Study

T = TypeVar("T")
_MEMO_ENTRIES = 32


def seed_of(*words: str | int) -> int:
    """A 64-bit seed from words; statistics only, never privacy noise."""
    text = "|".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mixed(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea, Flood 2014): a counter becomes a reproducible random integer, in one vector call."""
    with np.errstate(over="ignore"):
        z = counter + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
        return mixed


def _block_orders(call_seed: int, count: int, epochs: int) -> Iterator[NDArray[np.intp]]:
    """The order of blocks in each epoch. Drawn once a call: a smaller site's order is the same one, restricted."""
    base = np.uint64(call_seed)
    for epoch in range(epochs):
        with np.errstate(over="ignore"):
            counter = base + (np.uint64(epoch) << np.uint64(32)) + np.arange(count, dtype=np.uint64)
        yield np.argsort(mixed(counter), kind="stable")


class Memo:
    """Derived things of one site (standardised features, sort orders). May be lost at any time."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int, str], tuple[Any, Any]] = {}

    def get(self, name: str, owner: Any, inputs: Mapping[str, Any], compute: Callable[[], T]) -> T:
        key = (name, id(owner), digest(pack(inputs)) if inputs else "")
        entry = self._entries.get(key)
        if entry is None or entry[0] is not owner:
            if len(self._entries) >= _MEMO_ENTRIES:
                del self._entries[next(iter(self._entries))]
            entry = self._entries[key] = (owner, compute())
        value: T = entry[1]
        return value


class Site:
    """One site, as a step sees it: no clock, file, socket or ledger."""

    __slots__ = (
        "_memo",
        "_meter",
        "_parts",
        "_secret",
        "_seed",
        "call_seed",
        "kept",
        "minimum_cell",
        "settings",
        "sizes",
        "study",
        "table",
        "variant",
    )

    def __init__(
        self,
        table: View,
        *,
        parts: Callable[[str], View],
        study: Study,
        settings: Mapping[str, Any],
        sizes: Mapping[str, Any],
        kept: Mapping[str, Any] | None,
        minimum_cell: int,
        seed: int,
        call_seed: int,
        memo: Memo,
        variant: str | None = None,
        secret: bytes = b"",
        meter: Meter | None = None,
    ) -> None:
        self._secret = secret
        self._meter = meter
        self.table = table
        self.variant = variant
        self._parts = parts
        self.study = study
        self.settings = settings
        self.sizes = sizes
        self.kept = kept or {}
        self.minimum_cell = minimum_cell
        self.call_seed = call_seed
        self._seed = seed
        self._memo = memo

    @property
    def rng(self) -> np.random.Generator:
        """A generator from study seed, call and site: the same at every restart."""
        return np.random.Generator(np.random.Philox(key=self._seed))

    @property
    def private_rng(self) -> np.random.Generator:
        """The same at every restart, and unknown to the coordinator: for draws of rows."""
        seed = hmac.new(self._secret, str(self._seed).encode(), hashlib.sha256).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:8], "little")))

    def noisy_sum(self, rows: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
        """Sum (*shape,) of a row of terms for each row of the table (n, *shape), each unit's L2 norm cut at ``bound``.

        With this site's full noise in a study with an epsilon; metered releases are made from these sums alone.
        """
        if self._meter is None:
            raise RuntimeError("only a step with metered releases makes noisy sums")
        return self._meter.noisy_sum(rows, bound)

    def part(self, name: str) -> View:
        """The rows of another part that the step declares ("train:2" where it reads train)."""
        return self._parts(name)

    def blocks(self, size: int, epochs: int) -> Iterator[slice]:
        """Row slices of ``epochs`` passes in mini-batches of ``size``; the order of blocks is drawn per call."""
        rows = self.table.rows
        for order in _block_orders(self.call_seed, -(-rows // size), epochs):
            for block in order:
                yield slice(int(block) * size, min((int(block) + 1) * size, rows))

    def memo(self, name: str, inputs: Mapping[str, Any], compute: Callable[[], T]) -> T:
        """``compute()``, remembered for this name, these inputs and this part of the table."""
        return self._memo.get(name, self.table, inputs, compute)


class Stack:
    """Many sites' columns side by side: arrays (S, n, ...) padded with zeros, a mask (S, n) and rows (S,)."""

    def __init__(self, views: Mapping[str, View]) -> None:
        self.views = dict(views)
        self.names = tuple(views)
        self.rows = np.array([view.rows for view in views.values()], dtype=np.int64)
        self.most = int(self.rows.max())
        self.mask = np.arange(self.most)[None] < self.rows[:, None]
        self._columns: dict[str, NDArray[Any]] = {}

    def column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            parts = [view.arrays(name)[0] for view in self.views.values()]
            stacked = np.zeros((len(parts), self.most, *parts[0].shape[1:]), parts[0].dtype)
            for target, part in zip(stacked, parts, strict=True):
                target[: len(part)] = part
            stacked.setflags(write=False)
            self._columns[name] = stacked
        return self._columns[name]


class Sites:
    """Many sites at once, for a twin: the same names as ``Site``, with a leading axis of sites."""

    __slots__ = ("_memo", "_pick", "_stack", "call_seed", "kept", "mask", "names", "rows", "settings", "sizes", "study")

    def __init__(
        self,
        stack: Stack,
        pick: NDArray[np.intp] | None,
        *,
        study: Study,
        settings: Mapping[str, Any],
        sizes: Mapping[str, Any],
        kept: Mapping[str, Any] | None,
        call_seed: int,
        memo: Memo,
    ) -> None:
        self._stack, self._pick, self._memo = stack, pick, memo
        self.study, self.settings, self.sizes = study, settings, sizes
        self.kept = kept or {}
        self.call_seed = call_seed
        self.names = stack.names if pick is None else tuple(stack.names[i] for i in pick)
        self.mask = stack.mask if pick is None else stack.mask[pick]
        self.rows = stack.rows if pick is None else stack.rows[pick]

    def arrays(self, *names: str) -> tuple[NDArray[Any], ...]:
        """Stacked columns (S, n, ...); rows beyond a site's own are zeros and masked out."""
        columns = (self._stack.column(name) for name in names)
        return tuple(column if self._pick is None else column[self._pick] for column in columns)

    def blocks(self, size: int, epochs: int) -> Iterator[slice]:
        """Row slices shared by all sites; a smaller site finds its mask empty where it has no rows."""
        for order in _block_orders(self.call_seed, -(-self.mask.shape[1] // size), epochs):
            for block in order:
                yield slice(int(block) * size, min((int(block) + 1) * size, self.mask.shape[1]))

    def memo(self, name: str, inputs: Mapping[str, Any], compute: Callable[[Any], T]) -> T:
        """``compute(all_sites)``, remembered for the whole stack; then the sampled sites are picked."""
        everyone = self if self._pick is None else _everyone(self)
        value = self._memo.get("stacked " + name, self._stack, inputs, lambda: compute(everyone))
        if self._pick is None:
            return value
        if isinstance(value, tuple):
            return tuple(part[self._pick] for part in value)  # type: ignore[return-value]
        picked: T = value[self._pick]  # type: ignore[index]
        return picked


def _everyone(sites: Sites) -> Sites:
    return Sites(
        sites._stack,
        None,
        study=sites.study,
        settings=sites.settings,
        sizes=sites.sizes,
        kept=None,
        call_seed=sites.call_seed,
        memo=sites._memo,
    )
