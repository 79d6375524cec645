"""The sentences of refusals, found where they are raised: f-strings become sentences with named blanks.

A blank that our own words fill is written out, once for each of them: ``"..." + (" twice" if n > 1 else "")`` gives two
sentences, and so does a local variable, or a function, that holds one text or another. Sentences that come from further
away, as a parameter or a constant, are found beside. What stands before a sentence, as "site {name}: ", is no part of it,
and each line of a text is a sentence of its own: ``told`` takes a text apart alike.
"""

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from medfed import errors

# Calls other than those of our errors that make a refusal, and which argument its sentence is.
_REFUSING = {"error": 0, "refuse": 0, "_wrong": 0, "Failure": 1}
# Files that hand on what is wrong as texts: what their functions return, yield and append.
_TELLING = (
    "data/expressions.py",
    "data/fit_checks.py",
    "declarations.py",
    "study/contradictions.py",
    "study/variables.py",
)
# Where a ValueError becomes a refusal, as what pydantic models and methods say of their settings. Elsewhere it is a
# programmer's mistake, of which nobody is told in a sentence of ours.
_VALUES_IN = (
    "data/mapping.py",
    "engines/nvflare/consortium.py",
    "methods/",
    "privacy/accounting.py",
    "privacy/noise.py",
    "privacy/plan.py",
    "study/",
)
# Not for people: codes that stand for a sentence, and what only a maintainer of the catalogue is told.
NOT_FOR_PEOPLE = ("Unanswered", "sentences.py")
# What may stand before a sentence: a file with its line, a key, a site, a study (``told.PLACES``).
_PLACE = r"((site|study|variable|line|row|formula|ledger of site|with epsilon|--[a-z]+) )?[^\s:`'\"]+"
_HEAD = re.compile(f"{_PLACE}(, {_PLACE})*: ")
# More ways to fill a sentence than so many are not written out.
_MOST_VARIANTS = 24
_DEEPEST = 6


@dataclass(frozen=True)
class _Scope:
    """Where an expression stands: its file, and the innermost function, or None."""

    file: str
    function: ast.FunctionDef | None


_Placed = tuple[ast.expr, _Scope]
# A text as it may be put together: our own words, and an expression for each blank.
_Variant = tuple[str | _Placed, ...]


class Refusals:
    """All refusals of a package, from its parsed files by name."""

    def __init__(self, trees: Mapping[str, ast.Module]) -> None:
        self._trees = trees
        self._nodes = {file: list(_inside(tree, _Scope(file, None))) for file, tree in trees.items()}
        self._functions: dict[str, list[_Scope]] = defaultdict(list)
        self._calls: dict[str, list[tuple[ast.Call, _Scope]]] = defaultdict(list)
        self._errors = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
        bases: dict[str, set[str]] = {}
        for file, nodes in self._nodes.items():
            for node, scope in nodes:
                if isinstance(node, ast.FunctionDef):
                    self._functions[node.name].append(_Scope(file, node))
                elif isinstance(node, ast.Call):
                    self._calls[_called(node)].append((node, scope))
                elif isinstance(node, ast.ClassDef):
                    bases[node.name] = {_last_name(base) for base in node.bases}
        while new := {name for name, above in bases.items() if above & self._errors} - self._errors:
            self._errors |= new

    def of_file(self, name: str) -> Iterator[tuple[str, bool]]:
        """The sentences of a file's refusals, with blanks in braces where something is filled in, and whether it is."""
        for text, scope in self._roots(name):
            yield from self._sentences(text, scope)

    def _roots(self, name: str) -> Iterator[tuple[ast.expr, _Scope]]:
        if name in NOT_FOR_PEOPLE:
            return
        for node, scope in self._nodes[name]:
            if isinstance(node, ast.Call):
                called = _called(node)
                is_value = called == "ValueError" and name.startswith(_VALUES_IN)
                is_append = called == "append" and name in _TELLING
                place = 0 if called in self._errors or is_value or is_append else _REFUSING.get(called, len(node.args))
                if place < len(node.args) and called not in NOT_FOR_PEOPLE:
                    yield node.args[place], scope
            elif isinstance(node, ast.Return | ast.Yield) and node.value is not None and name in _TELLING:
                yield node.value, scope

    def _sentences(self, text: ast.expr, scope: _Scope, depth: int = 0) -> Iterator[tuple[str, bool]]:
        for variant in self._variants(text, scope):
            yield from _written(variant)
            for blank in variant if depth < _DEEPEST else ():
                if not isinstance(blank, str):
                    for source, there in (*self._sources(*blank), *self._elsewhere(*blank)):
                        yield from self._sentences(source, there, depth + 1)

    def _variants(self, text: ast.expr, scope: _Scope, depth: int = 0) -> list[_Variant]:
        """Every way in which a text may be put together of our own words."""
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            return [(text.value,)] if text.value else [()]
        blank: list[_Variant] = [((text, scope),)]
        if depth > _DEEPEST:
            return blank
        if isinstance(text, ast.JoinedStr):
            found = self._joined([_plain(value) for value in text.values], scope, depth)
        elif isinstance(text, ast.BinOp) and isinstance(text.op, ast.Add):
            found = self._joined([text.left, text.right], scope, depth)
        elif isinstance(text, ast.IfExp | ast.BoolOp):
            choices = text.values if isinstance(text, ast.BoolOp) else [text.body, text.orelse]
            found = [variant for choice in choices for variant in self._variants(choice, scope, depth + 1)]
        else:
            sources = self._sources(text, scope)
            found = [variant for source, there in sources for variant in self._variants(source, there, depth + 1)]
            if not all(map(_is_text, found)):
                return blank
        return found if 0 < len(found) <= _MOST_VARIANTS else blank

    def _joined(self, parts: list[ast.expr], scope: _Scope, depth: int) -> list[_Variant]:
        ways = [self._variants(part, scope, depth + 1) for part in parts]
        ways = [way if all(map(_is_text, way)) else [((part, scope),)] for way, part in zip(ways, parts, strict=True)]
        return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*ways)]

    def _sources(self, text: ast.expr, scope: _Scope) -> list[_Placed]:
        """What a local variable, an entry of a local table, or what a function gives, may be."""
        if isinstance(text, ast.Subscript) and isinstance(text.value, ast.Name):
            return _entries(self._sources(text.value, scope))
        if isinstance(text, ast.Call):
            known = self._functions[_called(text)]
            known = [one for one in known if one.file == scope.file] or known
            returned = ast.walk(known[0].function) if len(known) == 1 and known[0].function is not None else ()
            values = [node.value for node in returned if isinstance(node, ast.Return)]
            return [(value, known[0]) for value in values if value is not None and not _is_none(value)]
        found: list[ast.expr] = []
        for node in ast.walk(scope.function) if isinstance(text, ast.Name) and scope.function is not None else ():
            assert isinstance(text, ast.Name)
            if isinstance(node, ast.AugAssign) and _is_name(node.target, text.id):
                found += [ast.BinOp(value, ast.Add(), node.value) for value in found]
            else:
                found += [value for value in _assigned(node, text.id) if not _is_none(value)]
        return [(value, scope) for value in found]

    def _elsewhere(self, blank: ast.expr, scope: _Scope) -> list[_Placed]:
        """What callers pass for a parameter; what a constant, a constant table or a property of the same file holds."""
        function = scope.function
        if isinstance(blank, ast.Name):
            if function is not None and blank.id in (names := _parameters(function)):
                others = len(self._functions[function.name]) > 1  # then only this file's calls are sure to mean it
                calls = [
                    (c, there) for c, there in self._calls[function.name] if not others or there.file == scope.file
                ]
                return [(text, there) for call, there in calls if (text := _passed(call, names, blank.id)) is not None]
            constants = (value for node in self._trees[scope.file].body for value in _assigned(node, blank.id))
            return [(value, _Scope(scope.file, None)) for value in constants]
        if isinstance(blank, ast.Subscript) and isinstance(blank.value, ast.Name):
            return _entries(self._elsewhere(blank.value, scope))
        if isinstance(blank, ast.Call) and isinstance(blank.func, ast.Attribute) and blank.func.attr == "get":
            return [
                *_entries(self._elsewhere(blank.func.value, scope)),
                *((default, scope) for default in blank.args[1:]),
            ]
        if isinstance(blank, ast.Attribute) and _is_name(blank.value, "self"):
            known = [one for one in self._functions[blank.attr] if one.file == scope.file]
            return [
                (node.value, one)
                for one in known
                if one.function is not None
                for node in ast.walk(one.function)
                if isinstance(node, ast.Return) and node.value is not None
            ]
        return []


def _inside(tree: ast.AST, scope: _Scope) -> Iterator[tuple[ast.AST, _Scope]]:
    """Every node below one, with its scope."""
    for node in ast.iter_child_nodes(tree):
        yield node, scope
        yield from _inside(node, _Scope(scope.file, node) if isinstance(node, ast.FunctionDef) else scope)


def _called(call: ast.Call) -> str:
    """The name of what is called; no method that may be a logger's."""
    name = _last_name(call.func)
    return "" if isinstance(call.func, ast.Attribute) and name in ("error", "refuse") else name


def _last_name(expression: ast.expr) -> str:
    """The last identifier in an expression: what a blank is called."""
    last, found = (0, 0), ""
    for node in ast.walk(expression):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name and isinstance(node, ast.expr) and (end := (node.end_lineno or 0, node.end_col_offset or 0)) > last:
            last, found = end, name
    return found


def _plain(value: ast.expr) -> ast.expr:
    """What an f-string fills in; as it stands where it has a form of its own, so that it isn't written out."""
    if isinstance(value, ast.FormattedValue) and value.conversion == -1 and value.format_spec is None:
        return value.value
    return value


def _assigned(node: ast.AST, name: str) -> Iterator[ast.expr]:
    if isinstance(node, ast.NamedExpr | ast.AnnAssign) and _is_name(node.target, name) and node.value is not None:
        yield node.value
    for target in node.targets if isinstance(node, ast.Assign) else ():
        assert isinstance(node, ast.Assign)
        if _is_name(target, name):
            yield node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=False)
            yield from (value for one, value in pairs if _is_name(one, name))


def _entries(tables: list[_Placed]) -> list[_Placed]:
    """The values of those expressions that are dicts."""
    return [(value, scope) for table, scope in tables if isinstance(table, ast.Dict) for value in table.values]


def _parameters(function: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def _passed(call: ast.Call, parameters: list[str], name: str) -> ast.expr | None:
    named = [word.value for word in call.keywords if word.arg == name]
    return next(iter([*named, *call.args[parameters.index(name) :]]), None)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _is_text(variant: _Variant) -> bool:
    return not variant or any(isinstance(piece, str) for piece in variant)


def _written(variant: _Variant) -> Iterator[tuple[str, bool]]:
    """The sentences of a text, its blanks by name, and whether there are any.

    None where it has no two words of its own, or is the end of a sentence, which is written out where it belongs.
    """
    names = [_last_name(piece[0]).strip("_").lower() or "value" for piece in variant if not isinstance(piece, str)]
    numbers = iter(range(len(names)))
    text = "".join(
        piece.replace("{", "{{").replace("}", "}}") if isinstance(piece, str) else f"{{{next(numbers)}}}"
        for piece in variant
    )
    for line in text.split("\n") if text[:1] not in (" ", ",", ";") else ():
        sentence = line.strip()
        while found := _HEAD.match(sentence):
            sentence = sentence[found.end() :]
        own = re.sub(r"\{\d+\}", "", sentence)
        if " " not in own or not re.search("[a-z]{2}", own) or _HEAD.fullmatch(f"{sentence}: "):
            continue
        used = [int(number) for number in re.findall(r"(?<!\{)\{(\d+)\}", sentence)]
        taken: dict[str, int] = defaultdict(int)
        for number in used:
            taken[names[number]] += 1
            again = str(taken[names[number]]) if taken[names[number]] > 1 else ""
            sentence = sentence.replace(f"{{{number}}}", f"{{{names[number]}{again}}}", 1)
        yield (sentence, True) if used else (sentence.replace("{{", "{").replace("}}", "}"), False)
