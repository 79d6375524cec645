"""How many patients the sites of a roster have together, in which cells: counted before any secure sum is opened.

A secure sum is seen as a total only, so the rules for counts are judged on totals. The count that shows whether they hold
must not itself show a count under the minimum. So every site counts in lots, rounded down, so coarse that a total of
zero lots may still stand for the minimum and more; and whether a cell is empty everywhere is told by a number that is
random unless it is. Layout and lot follow from the study and the roster alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from math import ceil, prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest
from medfed.data.table import View
from medfed.federation.gate import FEW_PATIENTS, SMALL_CELL
from medfed.federation.number_levels import ENOUGH, patients_who_vary
from medfed.federation.openings import distinct
from medfed.federation.remembered import patient_of_row, patients_by_level
from medfed.federation.site import Site
from medfed.federation.small_cell import SmallCell
from medfed.federation.step import Count, Out, step
from medfed.privacy.roster import quorum
from medfed.study import Study

IntArray = NDArray[np.int64]
UNITS = "medfed:medfed.federation.units.count_units"


@step(reads="all", releases={"units": Count("1")})
def count_units(site: Site) -> Out:
    """How many patients there are, by outcome, arm and every pair of codes, in lots and over all sites: what allows the sums."""
    raise NotImplementedError("the door computes this itself: it takes the site's key and ledger")


@dataclass(frozen=True)
class Factor:
    """A variable whose cells are counts. told: an empty cell tells everybody's result (outcome, arm).

    Levels of a code: its codes, then missing. Of a number: other, zero, missing; of one between 0 and 1: between, zero,
    one, missing.
    """

    name: str
    kind: Literal["code", "number", "binary"]
    levels: int
    told: bool

    def codes(self, values: NDArray[np.float64]) -> IntArray:
        """The level (n,) of each stored value."""
        known = np.isfinite(values) & ((values >= 0) | (self.kind != "code"))
        level = np.full(len(values), self.levels - 1, dtype=np.int64)
        if self.kind == "code":
            level[known] = values[known].astype(np.int64)
            return level
        level[known] = np.where(values[known] == 0, 1, 0)
        if self.kind == "binary":
            level[known & (values == 1)] = 2
        return level

    def has_few_values(self, varied: int, present: NDArray[np.bool_], minimum: int) -> bool:
        """Whether sums of a number's values are counts: of two values, or of all but a few patients', whatever the values are.

        varied: at least so many patients have neither of their site's two commonest values. Of 0 and 1 alone the levels say it.
        """
        if self.kind == "code" or not present[: self.levels - 1].any():
            return False
        return varied < minimum and not (self.kind == "binary" and not present[0])

    def groups(self, at_least: IntArray, present: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Which levels are judged together, (groups, levels) of 0 and 1, and which groups may not be empty.

        A number's values are counts where it has two of them, or where most are zero and the others are few.
        """
        if self.kind == "code":
            return np.eye(self.levels, dtype=np.int64), np.arange(self.levels) < (self.levels - 1) * self.told
        known = [1] * (self.levels - 1) + [0]
        missing = [0] * (self.levels - 1) + [1]
        rows = [known, missing]
        if at_least[1] >= at_least[0]:
            rows.append([int(level in (0, 2)) for level in range(self.levels - 1)] + [0])
        if self.kind == "binary" and not present[0]:
            rows += [[0, 1, 0, 0], [0, 0, 1, 0]]
        return np.array(rows, dtype=np.int64), np.zeros(len(rows), dtype=bool)

    def is_missing(self, group: int) -> bool:
        """Whether a group of ``groups`` is of those whose value is missing."""
        return group == (self.levels - 1 if self.kind == "code" else 1)

    def few(self, group: int) -> SmallCell:
        """What a small group of ``groups`` is called."""
        if self.is_missing(group):
            return SmallCell("missing", (self.name,))
        if self.kind == "code" or group > 2:
            return SmallCell("cell", (self.name,))
        return SmallCell("known" if group == 0 else "values", (self.name,))


def factors_of(study: Study) -> tuple[Factor, ...]:
    """Every variable whose products are counts, in the study's order."""
    found = []
    for name in study.counted:
        variable = study.variables[name]
        told = name in (study.outcome, study.arm)
        if variable.type == "code":
            found.append(Factor(name, "code", len(variable.codes or ()) + 1, told))
        elif variable.range == (0, 1):
            found.append(Factor(name, "binary", 4, False))
        else:
            found.append(Factor(name, "number", 3, False))
    if study.time:  # of two times, the sum of follow-up is a count
        found.append(Factor("time", "number", 3, False))
    return tuple(found)


def lots_of(minimum: int, sites: int) -> IntArray:
    """The lots in which so many sites count, largest first: (sites,).

    With no lot at any site there may still be ``minimum`` in all, also for a third of the sites that put together what
    they know of each other's: whatever a quorum of them rounds off adds up to the minimum. Only as many sites as this
    takes count in the larger lot, so that a total is not taken for much less than it is.
    """
    if minimum <= 1:
        return np.ones(sites, dtype=np.int64)
    lot = 1 + ceil(minimum / sites)
    needed = quorum(sites)
    larger = min(max(sites - needed + minimum - needed * (lot - 2), 0), sites)
    return np.where(np.arange(sites) < larger, lot, lot - 1)


def lot_at(minimum: int, names: Sequence[str], site: str) -> int:
    """The lot in which ``site`` counts among the sites of a roster: in an order that follows from their names alone."""
    return _lots_by_site(minimum, tuple(sorted(names)))[site]


@lru_cache(maxsize=64)
def _lots_by_site(minimum: int, names: tuple[str, ...]) -> dict[str, int]:
    roster = digest("medfed lots", *names)
    order = sorted(names, key=lambda name: digest(roster, name))
    return dict(zip(order, lots_of(minimum, len(names)).tolist(), strict=True))


def interactions_of(study: Study) -> tuple[tuple[str, ...], ...]:
    """The coded variables that a formula of the study multiplies with each other, two and more at a time."""
    found: dict[tuple[str, ...], None] = {}
    for variant in (None, *study.variants):
        if study.settings_of(variant).get("formula"):
            for column in study.formula(variant).columns:
                coded = tuple(sorted({factor.variable for factor, level in column.parts if level is not None}))
                if len(coded) > 1:
                    found[coded] = None
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """What the words of a count of units mean. atoms: groups of rows of which every part of the table is made."""

    study: Study
    sites: int

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        return factors_of(self.study)

    @cached_property
    def atoms(self) -> int:
        kind = self.study.parts.kind
        return 1 if kind == "all" else self.study.parts.folds or 3

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple(combinations(range(len(self.factors)), 2))

    @cached_property
    def interactions(self) -> tuple[tuple[int, ...], ...]:
        """Factors whose joint cells a formula shows, by outcome where it is coded: the outcome's place comes last."""
        places = {factor.name: place for place, factor in enumerate(self.factors)}
        by = (places[self.study.outcome],) if self.study.variables[self.study.outcome].type == "code" else ()
        return tuple((*(places[name] for name in names), *by) for names in interactions_of(self.study))

    def shape(self, places: Sequence[int]) -> tuple[int, ...]:
        """Levels of these factors."""
        return tuple(self.factors[place].levels for place in places)

    @cached_property
    def cells(self) -> int:
        """Of one atom: patients, levels of each factor, pairs of levels, joint levels of interactions."""
        tables = [*((place,) for place in range(len(self.factors))), *self.pairs, *self.interactions]
        return 1 + sum(prod(self.shape(places)) for places in tables)

    @cached_property
    def numbers(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if factor.kind != "code")

    @property
    def length(self) -> int:
        """Words: lots and presence of every cell, lots of patients who make a number vary, and how many sites pass for
        themselves and may show figures."""
        return self.atoms * (2 * self.cells + len(self.numbers)) + 2

    def question(self, roster: str) -> str:
        """Names what is counted, so that one signed count can't stand for another."""
        return digest(
            "medfed units",
            self.study.hash,
            roster,
            str(self.length),
            *map(str, lots_of(self.study.privacy.minimum_cell, self.sites)),
        )

    def atoms_in(self, part: str) -> tuple[int, ...]:
        """The atoms that make up a part ("train", "test:2")."""
        base, colon, fold = part.partition(":")
        everything = tuple(range(self.atoms))
        if colon:
            return tuple(atom for atom in everything if (atom == int(fold)) == (base == "test"))
        if base == "all" or self.study.parts.kind in ("all", "folds"):
            return everything
        return (("train", "valid", "test").index(base),)

    def parts(self) -> tuple[str, ...]:
        """The part of the table that each atom is."""
        if self.study.parts.kind == "folds":
            return tuple(f"test:{fold}" for fold in range(self.atoms))
        return ("all",) if self.atoms == 1 else ("train", "valid", "test")

    def count(self, whole: View, atom_of_row: IntArray) -> IntArray:
        """Patients and cells of every atom at one site: (atoms, cells). atom_of_row: (n,). Reads the table in pieces."""
        counts = np.zeros((self.atoms, self.cells), dtype=np.int64)
        a_row_a_patient = whole.patients == whole.rows
        for atom in range(self.atoms):
            of_atom = whole.row_pseudonyms[atom_of_row == atom]
            counts[atom, 0] = len(of_atom) if a_row_a_patient else len(distinct(of_atom))
        start = 0
        names = [factor.name for factor in self.factors]
        # A patient of many rows is one in each cell, and has to be looked at as a whole.
        for piece in whole.batches(names) if a_row_a_patient else whole.batches(names, whole.rows):
            values = [np.asarray(column, np.float64) for column in piece]
            codes = [factor.codes(column) for factor, column in zip(self.factors, values, strict=True)]
            stop = start + len(values[0])
            for atom in range(self.atoms):
                inside = atom_of_row[start:stop] == atom
                own = codes if inside.all() else [code[inside] for code in codes]
                who = None if a_row_a_patient else patient_of_row(whole.row_pseudonyms[start:stop][inside])
                counts[atom, 1:] += self._tables(own, who)
            start = stop
        return counts

    def _tables(self, codes: Sequence[IntArray], who: IntArray | None) -> IntArray:
        """Patients by level, pair and interaction over some rows, one after the other. codes: (n,) of each factor; who: see
        ``patients_by_level``."""
        tables = [patients_by_level(own, f.levels, who) for own, f in zip(codes, self.factors, strict=True)]
        # Where everybody has one level of a factor, its pairs are the other's levels: so it is with most measurements.
        only = [int(np.argmax(levels)) if np.count_nonzero(levels) == 1 else None for levels in tables]
        cells = list(tables)
        for one, other in self.pairs:
            table = np.zeros(self.shape((one, other)), dtype=np.int64)
            if (level := only[one]) is not None:
                table[level] = tables[other]
            elif (level := only[other]) is not None:
                table[:, level] = tables[one]
            else:
                joint = codes[one] * table.shape[1] + codes[other]
                table += patients_by_level(joint, table.size, who).reshape(table.shape)
            cells.append(table.ravel())
        for places in self.interactions:
            shape = self.shape(places)
            joint = np.ravel_multi_index([codes[place] for place in places], shape)
            cells.append(patients_by_level(joint, prod(shape), who))
        return np.concatenate(cells)

    def varied(self, whole: View, atom_of_row: IntArray) -> IntArray:
        """Of every atom and number, at least so many patients with neither of the two commonest values: (atoms, numbers).

        The first rows are looked at before all: those with neither of the two that are commonest there are no more than
        with any two.
        """
        found = np.zeros((self.atoms, len(self.numbers)), dtype=np.int64)
        names = [factor.name for factor in self.numbers]
        if not names:
            return found
        for piece in whole.batches(names):
            rows = len(piece[0])
            for at, column in enumerate(piece):
                found[:, at] = self._varied(
                    np.asarray(column, np.float64), whole.row_pseudonyms[:rows], atom_of_row[:rows]
                )
            if rows == whole.rows:
                return found
            break
        for at in np.flatnonzero((found < ENOUGH).any(0)).tolist():
            column = np.concatenate([np.asarray(piece[0], np.float64) for piece in whole.batches([names[at]])])
            found[:, at] = self._varied(column, whole.row_pseudonyms, atom_of_row)
        return found

    def _varied(self, values: NDArray[np.float64], patients: NDArray[np.uint64], atom_of_row: IntArray) -> list[int]:
        known = np.isfinite(values)
        inside = [np.flatnonzero((atom_of_row == atom) & known) for atom in range(self.atoms)]
        return [patients_who_vary(values[rows], patients[rows]) for rows in inside]

    def words(
        self, counts: IntArray, varied: IntArray, *, lot: int, passing: bool, showing: bool, secret: bytes
    ) -> IntArray:
        """What one site adds to the total: (length,). lot: this site's. secret: known to it only, another for every count."""
        lots = (counts // lot * lot).ravel(), _presence(counts, secret).ravel(), (varied // lot * lot).ravel()
        return np.concatenate([*lots, np.array([passing, showing], np.int64)])

    def read(self, totals: IntArray) -> "Units":
        """What a count says. totals: (length,)."""
        size = self.atoms * self.cells
        shape = (self.atoms, self.cells)
        lots, present = totals[:size].reshape(shape), totals[size : 2 * size].reshape(shape)
        varied = totals[2 * size : -2].reshape(self.atoms, len(self.numbers))
        return Units(self, lots, present != 0, varied, int(totals[-2]), int(totals[-1]))


@dataclass(frozen=True, eq=False)
class Units:
    """A count of units. at_least, present: (atoms, cells); varied: (atoms, numbers), see ``Factor.has_few_values``. passing, showing: sites whose own counts reach the minimum, and of
    these the ones whose policy also lists the study's figures of one site."""

    layout: Layout
    at_least: IntArray
    present: NDArray[np.bool_]
    varied: IntArray
    passing: int
    showing: int

    def patients(self, part: str) -> int:
        """At least so many patients are in a part."""
        return int(sum(self.at_least[atom, 0] for atom in self.layout.atoms_in(part)))

    def refuses(self, part: str, minimum: int, least: int) -> str | None:
        """Why totals over a part may not be seen, or None. minimum: of a cell; least: of patients.

        Every atom has to hold by itself, also those outside the part: so do then all parts, and what lies between two of
        them. Another study's total over the whole table, less a part that holds, is what is outside it.
        """
        if not self.present[list(self.layout.atoms_in(part)), 0].any():
            return FEW_PATIENTS
        atoms = [atom for atom in range(self.layout.atoms) if self.present[atom, 0]]
        if any(self.at_least[atom, 0] < max(minimum, least) for atom in atoms):
            return FEW_PATIENTS
        if minimum > 1 and any(self._small_cell(atom, minimum) for atom in atoms):
            return SMALL_CELL
        return None

    def small_cell(self, minimum: int) -> SmallCell | None:
        """What is under the minimum first; None where all cells hold."""
        atoms = [atom for atom in range(self.layout.atoms) if self.present[atom, 0]] if minimum > 1 else []
        if any(self.at_least[atom, 0] < minimum for atom in atoms):
            return SmallCell("patients")
        return next((found for atom in atoms if (found := self._small_cell(atom, minimum))), None)

    def _small_cell(self, atom: int, minimum: int) -> SmallCell | None:
        factors, start = self.layout.factors, 1
        groups, filled = [], []
        varied = dict(zip(self.layout.numbers, self.varied[atom].tolist(), strict=True))
        for factor in factors:
            cells = slice(start, start + factor.levels)
            start += factor.levels
            judged, needed = factor.groups(self.at_least[atom, cells], self.present[atom, cells])
            small = small_cells(
                judged @ self.at_least[atom, cells], judged @ self.present[atom, cells], needed, minimum
            )
            if factor.has_few_values(varied.get(factor, 0), self.present[atom, cells], minimum):
                return factor.few(0) if small[0] else SmallCell("values", (factor.name,))
            if small.any():
                return factor.few(int(np.argmax(small)))
            groups.append(judged)
            filled.append(needed)
        for one, other in self.layout.pairs:
            shape = (factors[one].levels, factors[other].levels)
            cells = slice(start, start + shape[0] * shape[1])
            start = cells.stop
            at_least = groups[one] @ self.at_least[atom, cells].reshape(shape) @ groups[other].T
            present = groups[one] @ self.present[atom, cells].reshape(shape) @ groups[other].T
            small = small_cells(at_least, present, filled[one][:, None] & filled[other], minimum)
            if small.any():
                row, column = np.argwhere(small)[0].tolist()
                return _of_pair(factors[one], row, factors[other], column)
        for places in self.layout.interactions:
            levels = self.layout.shape(places)
            cells = slice(start, start + prod(levels))
            start = cells.stop
            counted = self.at_least[atom, cells].reshape(-1, levels[-1])
            filled_cells = self.present[atom, cells].reshape(-1, levels[-1])
            # Of those in a cell of the interaction, no patient with the outcome, or none without, tells everybody's.
            known = np.arange(levels[-1]) < levels[-1] - 1
            told = filled_cells.any(1, keepdims=True) & known & factors[places[-1]].told
            if small_cells(counted, filled_cells, told, minimum).any():
                return SmallCell("cell", tuple(factors[place].name for place in places))
        return None


def _of_pair(one: Factor, row: int, other: Factor, column: int) -> SmallCell:
    """A cell of two factors, by its groups: of missing values where either group is."""
    if one.is_missing(row):
        return SmallCell("missing", (one.name, other.name))
    if other.is_missing(column):
        return SmallCell("missing", (other.name, one.name))
    return SmallCell("cell", (one.name, other.name))


def small_cells(
    at_least: IntArray, present: NDArray[Any], needed: NDArray[np.bool_], minimum: int
) -> NDArray[np.bool_]:
    """Which cells are under the minimum that are not empty, or may not be."""
    return np.asarray((at_least < minimum) & ((present > 0) | needed))


def _presence(counts: IntArray, secret: bytes) -> IntArray:
    """Zero where there is nobody, else a random number of all but zero. Odd ones only would tell how many sites have somebody."""
    noise = np.frombuffer(hashlib.shake_256(secret).digest(8 * counts.size), np.int64).reshape(counts.shape)
    return np.where(counts > 0, np.where(noise == 0, 1, noise), 0)


def entry_words(counts: Sequence[IntArray], lot: int, secret: bytes) -> IntArray:
    """What one site adds before a sum with released counts is opened: counts in whole lots, then presence, of every entry."""
    flat = np.concatenate([each.ravel() for each in counts])
    return np.concatenate([flat // lot * lot, _presence(flat, secret)])
