"""Model formulas as statisticians write them: ``outcome ~ arm * age + C(stage) + log(weight) + offset(log(years))``.

What a formula becomes is known before any data: levels are the study's declared codes, ranges its declared ranges, so
that the columns are the same at every site. Wilkinson and Rogers 1973; coded factors as in patsy: a factor loses its
reference level where what the level would add is spanned by the terms before, so that no column is redundant.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

from medfed.errors import StudyError
from medfed.study.design import Factor, Formula, FormulaColumn
from medfed.study.units import nearest
from medfed.study.variables import Variable

MOST_COLUMNS = 500
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z][A-Za-z0-9_]*)|(?P<number>\d+)|(?P<text>'[^']*'|\"[^\"]*\")|(?P<sign>\*\*|[-+*:^()~,]))"
)
_FUNCTIONS = ("log", "sqrt")


def default_formula(variables: Mapping[str, Variable]) -> str:
    """The main effects of the arm and of every covariate."""
    named = [name for role in ("arm", "covariate") for name, variable in variables.items() if variable.role == role]
    return "~ " + (" + ".join(named) or "1")


def parse_formula(text: str, variables: Mapping[str, Variable], outcome: str) -> Formula:
    """The columns that a formula becomes. Raises StudyError with one sentence for what can't be understood.

    outcome: the study's outcome; the side before ``~`` names it, or is left empty.
    """
    return _Parser(text, variables, outcome).formula()


Term = tuple[Factor, ...]


class _Parser:
    """Recursive descent: sum of terms, each a product by ``*`` and ``:``; ``(a + b)**2`` for all pairs."""

    def __init__(self, text: str, variables: Mapping[str, Variable], outcome: str) -> None:
        self.text, self.variables, self.outcome = text, variables, outcome
        self.offset: Factor | None = None
        self.tokens = self._tokens()
        self.at = 0

    def formula(self) -> Formula:
        if "~" in self.tokens:
            left = self.tokens[: self.tokens.index("~")]
            self.at = len(left) + 1
            if left and left != [self.outcome]:
                raise self._wrong(f"{' '.join(left)!r} stands before ~; the study's outcome is {self.outcome!r}")
        terms = self._sum()
        if self.at < len(self.tokens):
            raise self._wrong(f"{self.tokens[self.at]!r} is not expected here")
        if () not in terms:
            raise self._wrong("a model without an intercept is not fitted; leave out the 0 or -1")
        ordered = sorted(terms, key=len)  # stable: by degree, then as written
        spanned: dict[frozenset[str], set[frozenset[str]]] = {}
        columns = [column for term in ordered for column in self._columns(term, spanned)]
        if len(columns) > MOST_COLUMNS:
            raise self._wrong(f"it has {len(columns)} columns, more than {MOST_COLUMNS}; leave out interactions")
        return Formula(self.text.strip(), self.outcome, tuple(columns), self.offset)

    # -- terms -------------------------------------------------------------------------------------------------------

    def _sum(self) -> list[Term]:
        terms: list[Term] = [()]
        sign = "+"
        while True:
            while self._next() in ("+", "-"):
                sign = "-" if self._take() == "-" else sign
            found = self._product()
            for term in found:
                if sign == "-":
                    terms = [known for known in terms if _key(known) != _key(term)]
                elif _key(term) not in map(_key, terms):
                    terms.append(term)
            if self._next() not in ("+", "-"):
                return terms
            sign = self._take()

    def _product(self) -> list[Term]:
        """a * b: a + b + a:b."""
        terms = self._interaction()
        while self._next() == "*":
            self._take()
            right = self._interaction()
            terms = _distinct([*terms, *right, *_crossed(terms, right)])
        return terms

    def _interaction(self) -> list[Term]:
        terms = self._power()
        while self._next() == ":":
            self._take()
            terms = _crossed(terms, self._power())
        return terms

    def _power(self) -> list[Term]:
        terms = self._atom()
        if self._next() in ("**", "^"):
            self._take()
            degree = self._number()
            once = terms
            for _ in range(degree - 1):
                terms = _distinct([*terms, *_crossed(terms, once)])
        return terms

    def _atom(self) -> list[Term]:
        word = self._next()
        if word == "(":
            self._take()
            inside = [term for term in self._sum() if term]
            self._expect(")")
            return inside
        if word == "1":
            self._take()
            return [()]
        if word == "0":
            raise self._wrong("a model without an intercept is not fitted; leave out the 0 or -1")
        if not word or not word[0].isalpha():
            raise self._wrong("a term is missing" if not word else f"{word!r} is not expected here")
        if word == "offset" and self._after() == "(":
            self._take()
            self._expect("(")
            if self.offset is not None:
                raise self._wrong("it has two offsets; add them up in one variable")
            self.offset = self._factor(role="offset")
            self._expect(")")
            return []
        return [(self._factor(),)]

    # -- factors -----------------------------------------------------------------------------------------------------

    def _factor(self, role: str = "") -> Factor:
        word = self._take()
        if self._next() != "(":
            return self._plain(word, role)
        self._expect("(")
        if word == "C":
            factor = self._coded(role)
        elif word == "I":
            factor = self._raised(role)
        elif word in _FUNCTIONS:
            factor = self._changed(word, role)
        else:
            raise self._wrong(f"there is no function {word!r}; use C, I(x**2), log, sqrt or offset")
        self._expect(")")
        return factor

    def _variable(self, name: str, role: str) -> Variable:
        variable = self.variables.get(name)
        roles = (role,) if role else ("covariate", "arm")
        if variable is None:
            known = [known for known, v in self.variables.items() if v.role in roles]
            raise self._wrong(f"there is no variable {name!r}{nearest(name, known)}")
        if variable.role not in roles:
            hint = (
                f"offset() takes a variable with `role: {role}`" if role else "a model's terms are covariates and arms"
            )
            raise self._wrong(f"{name!r} has the role {variable.role!r}; {hint}")
        return variable

    def _plain(self, name: str, role: str) -> Factor:
        variable = self._variable(name, role)
        if variable.type == "code":
            return _coded(name, name, variable, None)
        low, high = variable.range or (0.0, 1.0)
        return Factor(name, name, low=low, high=high)

    def _coded(self, role: str) -> Factor:
        name = self._take()
        variable = self._variable(name, role)
        if variable.type != "code":
            raise self._wrong(
                f"C({name}): {name} is a number, whose levels would have to be read from data; declare it with codes"
            )
        reference = None
        if self._next() == ",":
            self._take()
            word = self._take()
            if word == "Treatment" and self._next() == "(":
                self._expect("(")
                word = self._take()
                if word == "reference":
                    raise self._wrong("write the reference as C(name, Treatment('code'))")
                self._expect(")")
            reference = word.strip("'\"")
            levels = [*(variable.codes or {}), *(["unknown"] if variable.missing == "unknown" else [])]
            if reference not in levels:
                raise self._wrong(f"{reference!r} is not a code of {name!r}{nearest(reference, levels)}")
        return _coded(name, name, variable, reference)

    def _raised(self, role: str) -> Factor:
        name = self._take()
        low, high = self._number_range(name, role)
        if self._next() not in ("**", "^"):
            raise self._wrong(f"I({name} ...): only a power is understood, as in I({name}**2)")
        self._take()
        exponent = self._number()
        ends = [low**exponent, high**exponent]
        least = 0.0 if exponent % 2 == 0 and low < 0 < high else min(ends)
        return Factor(f"I({name}**{exponent})", name, "power", exponent, low=least, high=max(ends))

    def _changed(self, function: str, role: str) -> Factor:
        name = self._take()
        low, high = self._number_range(name, role)
        if low < 0 or (low == 0 and function == "log"):
            above = "above 0" if function == "log" else "at least 0"
            raise self._wrong(f"{function}({name}): the declared range of {name} begins at {low:g}; it must be {above}")
        if function == "log":
            return Factor(f"log({name})", name, "log", low=math.log(low), high=math.log(high))
        return Factor(f"sqrt({name})", name, "sqrt", low=math.sqrt(low), high=math.sqrt(high))

    def _number_range(self, name: str, role: str) -> tuple[float, float]:
        variable = self._variable(name, role)
        if variable.type != "number" or variable.range is None:
            raise self._wrong(f"{name!r} is of type {variable.type}; a number is needed there")
        return variable.range

    # -- columns -----------------------------------------------------------------------------------------------------

    def _columns(self, term: Term, used: dict[frozenset[str], set[frozenset[str]]]) -> Iterator[FormulaColumn]:
        if not term:
            used.setdefault(frozenset(), set()).add(frozenset())
            yield FormulaColumn("intercept", "intercept", (), 0.0, 1.0)
            return
        name = ":".join(factor.name for factor in term)
        numbers = frozenset(factor.name for factor in term if not factor.is_code)
        for coding in _codings(term, used.setdefault(numbers, set())):
            choices: list[list[tuple[Factor, int | None, str]]] = []
            for factor in term:
                if not factor.is_code:
                    choices.append([(factor, None, factor.name)])
                elif factor.name in coding:
                    levels = factor.levels if coding[factor.name] else factor.levels[1:]
                    choices.append([(factor, index, f"{factor.name}={code}") for code, index in levels])
            for reversed_parts in product(*reversed(choices)):  # the first factor's levels vary fastest
                parts = tuple(reversed(reversed_parts))
                low, high = _product_range(parts)
                label = ":".join(label for *_, label in parts)
                yield FormulaColumn(label, name, tuple((f, level) for f, level, _ in parts), low, high)

    # -- tokens ------------------------------------------------------------------------------------------------------

    def _tokens(self) -> list[str]:
        found, at = [], 0
        while at < len(self.text.rstrip()):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self._wrong(f"{self.text[at:].strip()[:20]!r} can't be read")
            found.append(match.group().strip())
            at = match.end()
        return found

    def _next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def _after(self) -> str:
        return self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ""

    def _take(self) -> str:
        if self.at >= len(self.tokens):
            raise self._wrong("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def _expect(self, sign: str) -> None:
        if self._next() != sign:
            raise self._wrong(
                f"{sign!r} is expected {'before ' + repr(self._next()) if self._next() else 'at the end'}"
            )
        self.at += 1

    def _number(self) -> int:
        word = self._take()
        if not word.isdigit() or not 1 <= int(word) <= 6:
            raise self._wrong(f"{word!r} is no power here; use 1 to 6")
        return int(word)

    def _wrong(self, sentence: str) -> StudyError:
        return StudyError(f"formula {self.text.strip()!r}: {sentence}")


def _key(term: Term) -> frozenset[str]:
    return frozenset(factor.name for factor in term)


def _distinct(terms: Sequence[Term]) -> list[Term]:
    found: dict[frozenset[str], Term] = {}
    for term in terms:
        found.setdefault(_key(term), term)
    return list(found.values())


def _crossed(left: Sequence[Term], right: Sequence[Term]) -> list[Term]:
    """Every term of one side with every term of the other; a factor stands once in a term."""
    return _distinct([tuple({f.name: f for f in (*a, *b)}.values()) for a in left for b in right])


def _codings(term: Term, spanned: set[frozenset[str]]) -> list[dict[str, bool]]:
    """How a term's coded factors become columns: factor -> whether with all levels (True) or without the reference.

    The term stands for all subsets of its coded factors; those that earlier terms span fall out (``spanned``, which is
    added to), and neighbours that differ in one factor are joined: that factor then has all its levels.
    """
    codes = [factor.name for factor in term if factor.is_code]
    subsets = [frozenset(chosen) for size in range(len(codes) + 1) for chosen in combinations(codes, size)]
    waiting = [dict.fromkeys(subset, False) for subset in subsets if subset not in spanned]
    spanned.update(subsets)
    joined = True
    while joined:
        joined = False
        for short, long in combinations(range(len(waiting)), 2):
            more = waiting[long].keys() - waiting[short].keys()
            shared = all(waiting[long].get(name) == full for name, full in waiting[short].items())
            if shared and len(more) == 1 and not waiting[long][name := next(iter(more))]:
                waiting[short] = {**waiting[short], name: True}
                del waiting[long]
                joined = True
                break
    return waiting


def _coded(name: str, variable_name: str, variable: Variable, reference: str | None) -> Factor:
    levels = [(code, index) for index, code in enumerate(variable.codes or ())]
    if variable.missing == "unknown":
        levels.append(("unknown", -1))
    first = reference or variable.reference or levels[0][0]
    ordered = sorted(levels, key=lambda level: level[0] != first)
    return Factor(name, variable_name, levels=tuple(ordered))


def _product_range(parts: Sequence[tuple[Factor, int | None, str]]) -> tuple[float, float]:
    low = high = 1.0
    for factor, level, _ in parts:
        ends = (0.0, 1.0) if level is not None else (factor.low, factor.high)
        corners = [a * b for a in (low, high) for b in ends]
        low, high = min(corners), max(corners)
    return low, high
