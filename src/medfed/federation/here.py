"""A federation of one table, without a door: the local baseline inside a step, the pooled what-if outside.

Nothing leaves, so nothing is checked. The same method file runs here and across sites.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.table import PIECE, View
from medfed.federation.call import Failure
from medfed.federation.federation import Total
from medfed.federation.packages import Method, settings_of
from medfed.federation.private import Meter, close
from medfed.federation.ring import on_grid
from medfed.federation.site import Memo, Site, seed_of
from medfed.federation.step import Reply, Step, bind, shape_of
from medfed.study import Study


class PooledView:
    """The rows of several sites' views as one, in a seeded order (what-ifs only: it holds everybody's rows)."""

    def __init__(self, views: Sequence[View], seed: int = 0) -> None:
        self._views = tuple(views)
        self.rows = sum(view.rows for view in views)
        self.patients = sum(view.patients for view in views)
        self._order = np.random.default_rng(seed).permutation(self.rows)
        # Pseudonyms are a site's own: the same one at two sites is two people.
        units = [np.unique(view.row_pseudonyms, return_inverse=True)[1].reshape(-1) for view in views]
        offset = np.cumsum([0, *(view.patients for view in views)])
        joined = np.concatenate([own + first for own, first in zip(units, offset, strict=False)])
        self.row_pseudonyms = joined[self._order].astype(np.uint64)
        self._columns: dict[str, NDArray[Any]] = {}

    def arrays(self, *names: str) -> tuple[NDArray[Any], ...]:
        for name in names:
            if name not in self._columns:
                column = np.concatenate([view.arrays(name)[0] for view in self._views])[self._order]
                column.setflags(write=False)
                self._columns[name] = column
        return tuple(self._columns[name] for name in names)

    def batches(self, names: Sequence[str], size: int = PIECE) -> Iterator[tuple[NDArray[Any], ...]]:
        """The same columns in pieces of ``size`` rows, the last one shorter."""
        columns = self.arrays(*names)
        for start in range(0, self.rows, size):
            yield tuple(column[start : start + size] for column in columns)


@dataclass(frozen=True)
class Here:
    """One site's rows as a federation. ``views`` gives the rows of a part ("train", "test:2")."""

    views: Any
    study: Study
    variant: str | None = None
    part: str | None = None
    fold_number: int | None = None
    sites: tuple[str, ...] = ("here",)
    round: int = 0
    is_secure: bool = False
    _slots: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    _calls: list[int] = field(default_factory=lambda: [0], repr=False)
    _memo: Memo = field(default_factory=Memo, repr=False)

    def on(self, part: str) -> "Here":
        return replace(self, part=part)

    def fold(self, number: int) -> "Here":
        return replace(self, fold_number=number)

    def sample(self, fraction: float) -> "Here":
        return self

    def roster(self, sites: Sequence[str]) -> "Here":
        return self

    def child(self, name: str, method: Method, variant: str | None = None) -> Mapping[str, Any]:
        return fit(method, replace(self, part=None, variant=variant if variant is not None else self.variant))

    def sum(self, step: Step, **inputs: Any) -> Total:
        values = self._run(step, inputs)
        return Total({name: on_grid(value) for name, value in values.items()}, self.sites, {})

    def gather(
        self, step: Step, each: Mapping[str, Mapping[str, Any]] | None = None, **inputs: Any
    ) -> dict[str, Mapping[str, Any] | Failure]:
        own = (each or {}).get("here", {})
        return {"here": self._run(step, {**inputs, **own})}

    def _run(self, step: Step, inputs: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
        part = self.part or step.reads[0]
        if self.fold_number is not None and part != "all":
            part = f"{part}:{self.fold_number}"
        view = self.views(part)
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        sizes = {**bind(step.takes, arrays, self.study.sizes), "rows": view.rows}
        slot = step.keeps.slot if step.keeps else None
        kept = self._slots.get(slot) if slot else None
        if kept is None and step.keeps:
            kept = {name: np.zeros(shape_of(shape, sizes)) for name, shape in step.keeps.shapes.items()}
        self._calls[0] += 1
        seed = seed_of(self.study.seed, "here", self._calls[0])
        site = Site(
            view,
            parts=self.views,
            variant=self.variant,
            study=self.study,
            settings=settings_of(self.study, self.variant),
            sizes=sizes,
            kept=kept,
            minimum_cell=1,
            seed=seed,
            call_seed=seed,
            memo=self._memo,
            meter=Meter(view, None) if step.is_metered else None,
        )
        with np.errstate(all="ignore"):
            out = step(site, **arrays)
        if slot and step.keeps and step.keeps.writes and out.keep is not None:
            self._slots[slot] = out.keep
        released = {name: np.asarray(out.release[name], dtype=np.float64) for name in step.releases}
        if step.is_bounded:
            return close(step, released, view, charge=None, shares=1, study=self.study)
        if not any(isinstance(kind, Reply) for kind in step.releases.values()):
            for name, value in released.items():
                if not np.isfinite(value).all():
                    raise FloatingPointError(f"{step.name}: {name!r} is not finite")
        return released


def fit(method: Method, federation: Any) -> Mapping[str, Any]:
    """Run a method to its end on a federation that needs no runner (``Here``)."""
    state = method.start(federation.study)
    round_ = 0
    while not method.done(state):
        round_ += 1
        state = method.advance(replace(federation, round=round_), state)
    return method.result(state)
