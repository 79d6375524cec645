"""Which sites a list of totals gives away: two totals that differ by one or two sites, and every other combination.

A site judges this before it signs a survivor set, over the sets that its ledger holds, whatever step and inputs they were
for: near-equal inputs make near-equal totals. Totals may be over different patients, of which the site knows its own:
women, men and everybody add up, two other cohorts do not. Where totals carry noise the rule is not needed.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from medfed.privacy.shares import PRIME


@dataclass(frozen=True)
class Total:
    """Sites that were added up, and the groups of patients (as one site numbers its own) that it was over."""

    sites: frozenset[str]
    groups: frozenset[int]


def given_away(
    new: Collection[str], earlier: Iterable[Collection[str]], *, visible: Collection[str] = ()
) -> tuple[str, ...]:
    """One or two sites whose terms the total over ``new`` would give away beside the earlier totals; () for none.

    visible: sites whose own policy lets their terms be seen; a group of these alone is no reason to refuse.
    """
    before = [frozenset(sites) for sites in earlier]
    known = set(exposed_groups(before))
    for group in exposed_groups([*before, frozenset(new)]):
        if group not in known and not set(group) <= set(visible):
            return group
    return ()


def exposed_groups(totals: Iterable[Collection[str]]) -> tuple[tuple[str, ...], ...]:
    """All groups of one or two sites for which some weighted sum of the totals holds nobody else's terms.

    A weighted sum of totals is a vector of the row space of the 0/1 matrix (totals, sites). It is zero outside a pair of
    sites exactly when their columns of a basis of the null space are parallel; outside one site, when its column is zero.
    """
    sets = sorted({frozenset(total) for total in totals if total}, key=sorted)
    # Sites that were always counted together have one weight: a column of the matrix for each such block.
    blocks: dict[tuple[bool, ...], list[str]] = {}
    for site in sorted(frozenset().union(*sets)):
        blocks.setdefault(tuple(site in total for total in sets), []).append(site)
    columns = _null_space_columns([[int(pattern[row]) for pattern in blocks] for row in range(len(sets))], len(blocks))
    small = [(sites, column) for sites, column in zip(blocks.values(), columns, strict=True) if len(sites) <= 2]
    found = [tuple(sites) for sites, column in small if not any(column)]
    singles = [(sites[0], column) for sites, column in small if len(sites) == 1 and any(column)]
    for (one, first), (other, second) in combinations(singles, 2):
        if _parallel(first, second):
            found.append((one, other))
    return tuple(sorted(found))


def _parallel(first: Sequence[int], second: Sequence[int]) -> bool:
    at = next(index for index, entry in enumerate(first) if entry)
    return second[at] != 0 and all(
        (a * second[at] - b * first[at]) % PRIME == 0 for a, b in zip(first, second, strict=True)
    )


def _null_space_columns(matrix: list[list[int]], width: int) -> list[list[int]]:
    """For each column of the matrix, its entries in a basis of the null space, by Gauss and Jordan modulo 2**521 - 1.

    Determinants of 0/1 matrices stay below that prime up to 180 rows (Hadamard's bound), so ranks are those over the
    rational numbers, without fractions that grow.
    """
    rows = [list(row) for row in matrix]
    pivots: list[int] = []
    for column in range(width):
        top = len(pivots)
        found = next((row for row in range(top, len(rows)) if rows[row][column]), None)
        if found is None:
            continue
        rows[top], rows[found] = rows[found], rows[top]
        inverse = pow(rows[top][column], -1, PRIME)
        rows[top] = [entry * inverse % PRIME for entry in rows[top]]
        for row in range(len(rows)):
            if row != top and (times := rows[row][column]):
                rows[row] = [(entry - times * above) % PRIME for entry, above in zip(rows[row], rows[top], strict=True)]
        pivots.append(column)
    free = [column for column in range(width) if column not in pivots]
    place = {column: row for row, column in enumerate(pivots)}
    return [
        [-rows[place[column]][other] % PRIME for other in free]
        if column in place
        else [int(column == other) for other in free]
        for column in range(width)
    ]


def newly_exposed(new: Total, earlier: Iterable[Total], *, visible: Collection[str] = ()) -> tuple[str, ...]:
    """Like ``given_away``, for totals over different groups of patients.

    Some weighted sum of the totals then holds nobody else's patients, of any group, and tells of the hidden ones what no
    sum of the earlier totals tells: that a site's women were given away is no leave to give away its men.
    """
    before = [total for total in dict.fromkeys(earlier) if total.sites and total.groups]
    if new in before or not (new.sites and new.groups):
        return ()
    rows = [*before, new]
    groups = sorted(frozenset().union(*(row.groups for row in rows)))
    blocks = _blocks(rows)
    lines = {pattern: _weights(pattern, rows, groups) for pattern in blocks}
    everything = _span(lines.values())

    def gained(*hidden: tuple[bool, ...]) -> int:
        """By how many dimensions the sums that hold these sites' terms alone become more."""
        others = [own for pattern, own in lines.items() if pattern not in hidden]
        after = everything - _span(others)
        if not after:
            return 0
        return after - (_span(_without_last(lines.values())) - _span(_without_last(others)))

    gain = {pattern: gained(pattern) for pattern, sites in blocks.items() if len(sites) <= 2}
    found = [tuple(blocks[pattern]) for pattern, more in gain.items() if more]
    single = [pattern for pattern in gain if len(blocks[pattern]) == 1]
    for one, other in combinations(single, 2):
        # More than each of them gives away by itself.
        if gained(one, other) > gain[one] + gain[other]:
            found.append(tuple(sorted(blocks[one] + blocks[other])))
    return next((group for group in sorted(found) if not set(group) <= set(visible)), ())


def _blocks(rows: Sequence[Total]) -> dict[tuple[bool, ...], list[str]]:
    """Sites that were always counted together; they have one weight in each group."""
    blocks: dict[tuple[bool, ...], list[str]] = {}
    for site in sorted(frozenset().union(*(row.sites for row in rows))):
        blocks.setdefault(tuple(site in row.sites for row in rows), []).append(site)
    return blocks


def _without_last(lines: Iterable[list[list[int]]]) -> list[list[list[int]]]:
    return [[line[:-1] for line in own] for own in lines]


def _span(lines: Iterable[list[list[int]]]) -> int:
    """The rank of some sites' lines."""
    matrix = [list(line) for line in dict.fromkeys(tuple(line) for own in lines for line in own)]
    if not matrix or not matrix[0]:
        return 0
    return len(matrix[0]) - len(_null_space_columns(matrix, len(matrix[0]))[0])


def exposed_by_groups(totals: Iterable[Total]) -> tuple[tuple[str, ...], ...]:
    """All groups of one or two sites for which some weighted sum of the totals holds terms of theirs and nobody else's."""
    rows = [total for total in dict.fromkeys(totals) if total.sites and total.groups]
    groups = sorted(frozenset().union(*(row.groups for row in rows)))
    blocks = _blocks(rows)
    small = [pattern for pattern, sites in blocks.items() if len(sites) <= 2]
    single = [pattern for pattern in small if len(blocks[pattern]) == 1]
    found = []
    alone: set[tuple[bool, ...]] = set()
    for hidden in [(pattern,) for pattern in small] + list(combinations(single, 2)):
        if alone.intersection(hidden):
            continue
        others = [_weights(pattern, rows, groups) for pattern in blocks if pattern not in hidden]
        columns = _null_space_columns([line for lines in others for line in lines], len(rows))
        if any(_is_seen(line, columns) for pattern in hidden for line in _weights(pattern, rows, groups)):
            found.append(tuple(sorted(site for pattern in hidden for site in blocks[pattern])))
            alone.update(hidden if len(hidden) == 1 else ())
    return tuple(sorted(found))


def _weights(pattern: Sequence[bool], rows: Sequence[Total], groups: Sequence[int]) -> list[list[int]]:
    """Of the sites of one block: in which totals each group of patients is."""
    lines = [
        [int(counted and group in row.groups) for counted, row in zip(pattern, rows, strict=True)] for group in groups
    ]
    return [list(line) for line in dict.fromkeys(map(tuple, lines)) if any(line)]


def _is_seen(line: Sequence[int], columns: Sequence[Sequence[int]]) -> bool:
    basis = range(len(columns[0]) if columns else 0)
    return any(sum(columns[at][vector] for at, entry in enumerate(line) if entry) % PRIME for vector in basis)
