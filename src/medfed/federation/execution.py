"""Runs a step at sites: one by one, or all at once where the step has a twin. Nothing here decides what may leave."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.table import StudyTable, View
from medfed.errors import PolicyViolation
from medfed.federation import gate
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.packages import settings_of
from medfed.federation.policy import Policy
from medfed.federation.private import Meter, close, noise_shares
from medfed.federation.seal import SiteStore
from medfed.federation.site import Memo, Site, Sites, Stack, seed_of
from medfed.federation.step import Out, Step, shape_of
from medfed.study import Study

log = logging.getLogger("medfed.site")

STEP_RAISED = "the step stopped with an error; the site's own log has the details"


class Execution:
    """What a step runs on: tables, kept trees, memos and stacks of the sites behind one store."""

    def __init__(
        self,
        study: Study,
        tables: Mapping[str, StudyTable],
        policies: Mapping[str, Policy],
        store: SiteStore,
        *,
        twins: bool,
        secrets: Mapping[str, bytes],
    ) -> None:
        self.study = study
        self.tables = tables
        self.policies = policies
        self.store = store
        self.twins = twins
        self.secrets = secrets
        self._memos = {site: Memo() for site in tables}
        self._stack_memo = Memo()
        self._stacks: dict[str, Stack] = {}

    def view(self, site: str, part: str) -> View:
        """The rows of a part at a site."""
        return self.tables[site].on(part)

    def run(
        self, call: Call, step: Step, sizes: Mapping[str, Any], names: list[str], own: Mapping[str, Own]
    ) -> tuple[list[str], dict[str, Any], Any, list[Any], gate.RestsOn, dict[str, Answer | Failure]]:
        kept = [self._kept(site, call, step, own[site], sizes) for site in names] if step.keeps else None
        if self.twins and step.twin is not None and len(names) > 1 and not any(own[site].each for site in names):
            try:
                out = self.run_stacked(call, step, sizes, names, kept)
                release = {name: np.asarray(out.release[name], dtype=np.float64) for name in step.releases}
                for name, declared in step.releases.items():
                    if release[name].shape != (len(names), *shape_of(declared.shape, sizes)):
                        raise ValueError("wrong shape")
                return names, release, out.keep, [None] * len(names), _stacked(out), {}
            except Exception:  # one site's rows must not fail the others: they run one by one
                log.debug("twin of %s raised; sites run one by one", call.step, exc_info=True)
        return self.run_each(call, step, sizes, names, own, kept)

    def run_each(
        self,
        call: Call,
        step: Step,
        sizes: Mapping[str, Any],
        names: list[str],
        own: Mapping[str, Own],
        kept: list[Mapping[str, Any]] | None,
    ) -> tuple[list[str], dict[str, Any], Any, list[Any], gate.RestsOn, dict[str, Answer | Failure]]:
        settings = settings_of(self.study, call.variant)
        good: list[str] = []
        outs: list[Out] = []
        releases: list[dict[str, NDArray[Any]]] = []
        failed: dict[str, Answer | Failure] = {}
        writes = step.keeps is not None and step.keeps.writes
        for index, name in enumerate(names):
            view = self.view(name, call.part)
            meter = Meter(view, call.charge) if step.is_metered else None
            site = Site(
                view,
                meter=meter,
                parts=self._declared_parts(name, step),
                variant=call.variant,
                secret=self.secrets[name],
                study=self.study,
                settings=settings,
                sizes=sizes,
                kept=kept[index] if kept else None,
                minimum_cell=gate.minimum_cell(self.policies[name], self.study),
                seed=seed_of(self.study.seed, *call.seed_words, name),
                call_seed=seed_of(self.study.seed, *call.seed_words),
                memo=self._memos[name],
            )
            try:
                with np.errstate(all="ignore"):
                    out = step(site, **call.inputs, **own[name].each)
                arrays = gate.check_declared(step, out.release, sizes, view.rows)
                if step.is_bounded:
                    shares = noise_shares(call.protection, len(call.roster))
                    arrays = close(step, arrays, view, charge=call.charge, shares=shares, study=self.study)
                elif meter is not None:
                    meter.check_used_up()
                if writes:
                    self._check_keep(step, out.keep, sizes, site.table.rows)
            except gate.NotAsDeclared as problem:
                log.warning("site %s, %s: %s", name, call.step, problem)
                failed[name] = Failure("failed", gate.WRONG_SHAPE)
                continue
            except Exception:  # its text may quote a record: it stays in the site's log
                log.warning("site %s: step %s raised", name, call.step, exc_info=True)
                failed[name] = Failure("failed", STEP_RAISED)
                continue
            good.append(name)
            outs.append(out)
            releases.append(arrays)
        release = {name: np.stack([arrays[name] for arrays in releases]) for name in step.releases} if good else {}
        keep = [out.keep for out in outs] if writes else None
        return good, release, keep, [out.local for out in outs], _rests_on(outs), failed

    def _declared_parts(self, site: str, step: Step) -> Callable[[str], View]:
        def part(name: str) -> View:
            if name.partition(":")[0] not in step.reads:
                raise PolicyViolation(f"the step may not read the part {name!r}")
            return self.view(site, name)

        return part

    def run_stacked(
        self, call: Call, step: Step, sizes: Mapping[str, Any], names: list[str], kept: list[Mapping[str, Any]] | None
    ) -> Out:
        stack = self._stacks.get(call.part)
        if stack is None:
            stack = self._stacks[call.part] = Stack({site: self.view(site, call.part) for site in self.tables})
        pick = None
        if stack.names != tuple(names):
            where = {site: index for index, site in enumerate(stack.names)}
            pick = np.array([where[site] for site in names])
        stacked = None
        if kept is not None and step.keeps is not None:
            stacked = {name: np.stack([own[name] for own in kept]) for name in step.keeps.shapes}
        sites = Sites(
            stack,
            pick,
            study=self.study,
            settings=settings_of(self.study, call.variant),
            sizes=sizes,
            kept=stacked,
            call_seed=seed_of(self.study.seed, *call.seed_words),
            memo=self._stack_memo,
        )
        assert step.twin is not None
        with np.errstate(all="ignore"):
            return step.twin(sites, **call.inputs)

    def _kept(self, site: str, call: Call, step: Step, own: Own, sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        assert step.keeps is not None
        if own.kept is None:
            rows = self.view(site, call.part).rows
            return {
                name: np.zeros(shape_of(shape, {**sizes, "rows": rows})) for name, shape in step.keeps.shapes.items()
            }
        return self.store.kept(site, step.keeps.slot, own.kept, call)

    @staticmethod
    def _check_keep(step: Step, keep: Mapping[str, Any] | None, sizes: Mapping[str, Any], rows: int) -> None:
        assert step.keeps is not None
        wanted = {name: shape_of(shape, {**sizes, "rows": rows}) for name, shape in step.keeps.shapes.items()}
        if keep is None or {name: np.shape(value) for name, value in keep.items()} != wanted:
            raise gate.NotAsDeclared("the step keeps something else than it declares")


def _stacked(out: Out) -> gate.RestsOn:
    """What a twin states, of all of each site's patients."""
    effective = None
    if out.effective_patients is not None:
        stated = np.asarray(out.effective_patients, dtype=np.float64)
        effective = np.stack([stated, np.full(stated.shape, np.inf)], -1)[:, None]
    ordinary = None if out.ordinary_patients is None else np.asarray(out.ordinary_patients, dtype=np.float64)
    return gate.RestsOn(effective, ordinary)


def _rests_on(outs: Sequence[Out]) -> gate.RestsOn:
    """What steps state, of one site each."""
    effective, ordinary = None, None
    if any(out.effective_patients is not None for out in outs):
        effective = np.stack([_groups(out) for out in outs])
    if any(out.ordinary_patients is not None for out in outs):
        ordinary = np.array([np.inf if out.ordinary_patients is None else out.ordinary_patients for out in outs], float)
    return gate.RestsOn(effective, ordinary)


def _groups(out: Out) -> NDArray[np.float64]:
    """(groups, 2): effective patients, and of how many (infinity: the whole site)."""
    effective = np.atleast_1d(np.asarray(np.inf if out.effective_patients is None else out.effective_patients, float))
    of = np.full(effective.shape, np.inf) if out.effective_of is None else np.asarray(out.effective_of, float)
    return np.stack([effective, of.reshape(effective.shape)], -1)
