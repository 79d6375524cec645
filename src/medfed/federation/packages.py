"""Installed packages: which distribution a step belongs to, its version and the hash of its files.

No code travels: a coordinator names a step, a site finds it in a package that the site itself installed. What was
approved is the hash of the package's files, so a package whose files changed is no longer approved.
"""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from medfed.errors import PolicyViolation, StudyError
from medfed.federation.step import Step
from medfed.study import Study


@dataclass(frozen=True)
class Package:
    """An installed distribution as a policy or approval lists it. sha256: of all its source files."""

    name: str
    version: str
    sha256: str


class Method(Protocol):
    """How something is learned or estimated across sites. One file holds it and its steps."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step that it may call: what a site approves."""

    def start(self, study: Study) -> Any: ...
    def advance(self, federation: Any, state: Any) -> Any: ...
    def done(self, state: Any) -> bool: ...
    def result(self, state: Any) -> Mapping[str, Any]: ...


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@lru_cache(maxsize=256)
def distributions_of(root: str) -> tuple[str, ...]:
    """The installed distributions that hold a top-level package.

    An editable installation lists no files; it is found by its own name ("medfed_median" -> "medfed-median").
    """
    found = list(_distributions().get(root, []))
    if not found:
        try:
            found = [importlib.metadata.distribution(root.replace("_", "-")).name]
        except importlib.metadata.PackageNotFoundError:
            return ()
    return tuple(found)


def distribution_of(module: str) -> str:
    """The installed distribution that holds a module ("medfed.methods.newton" -> "medfed")."""
    root = module.split(".")[0]
    return (distributions_of(root) or (root,))[0]


def step_name(step: Step) -> str:
    """``distribution:dotted.path``, the name under which a step is asked for and approved."""
    return f"{distribution_of(step.name)}:{step.name}"


def installed_package(distribution: str, dotted: str) -> Package:
    """Version and file hash of the package that holds ``dotted``, read from disk now."""
    root = dotted.split(".")[0]
    found = importlib.util.find_spec(root)
    places = list(found.submodule_search_locations or []) if found else []
    if not places or distribution not in distributions_of(root):
        raise PolicyViolation(
            f"package {distribution!r} (module {root!r}) is not installed here; the site installs it first, with pip"
        )
    state = hashlib.sha256()
    for place in sorted(places):
        files = sorted(path for path in Path(place).rglob("*") if path.suffix in {".py", ".so", ".pyd", ".json"})
        for path in files:
            state.update(str(path.relative_to(place)).encode() + b"\0")
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return Package(distribution, importlib.metadata.version(distribution), state.hexdigest())


def _resolve(name: str) -> Any:
    distribution, _, dotted = name.partition(":")
    module_name, _, attribute = dotted.rpartition(".")
    if not distribution or not module_name:
        raise PolicyViolation(f"{name!r} is not of the form distribution:package.module.name")
    root = module_name.split(".")[0]
    if distribution not in distributions_of(root):
        raise PolicyViolation(
            f"{name!r}: package {distribution!r} is not installed at this site, or does not hold {root!r}"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit):  # an import runs code, which may raise anything
        raise PolicyViolation(f"{name!r} does not exist in the installed package {distribution!r}") from None


@lru_cache(maxsize=1024)
def find_step(name: str) -> Step:
    """The installed step of this name; PolicyViolation where there is none."""
    found = _resolve(name)
    if not isinstance(found, Step):
        raise PolicyViolation(f"{name!r} is not a step")
    return found


def find_method(study: Study, variant: str | None = None) -> Method:
    """The study's method (or one of its variants) with its settings filled in.

    The method's dataclass fields are the settings: an unknown one, or one of the wrong type, is a StudyError.
    """
    declared = study.method if variant is None else study.variants[variant]
    where = "method" if variant is None else f"variants.{variant}"
    try:
        kind = _resolve(declared.use)
    except PolicyViolation as problem:
        raise StudyError(f"study {study.name!r}, {where}.use: {problem}") from None
    if not (dataclasses.is_dataclass(kind) and isinstance(kind, type) and hasattr(kind, "advance")):
        raise StudyError(f"study {study.name!r}, {where}.use: {declared.use!r} is not a method")
    hints = typing.get_type_hints(kind)
    settings: dict[str, Any] = {}
    known = {field.name for field in dataclasses.fields(kind)}
    for name, value in study.settings_of(variant).items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(sorted(known)) or 'none'}"
            raise StudyError(f"study {study.name!r}, {where}.settings: {kind.__name__} has no setting {name!r}; {hint}")
        wanted = hints[name]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if wanted in (int, float, str, bool) and (
            not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))
        ):
            raise StudyError(
                f"study {study.name!r}, {where}.settings.{name}: {value!r} is not of type {wanted.__name__}; correct it"
            )
        settings[name] = value
    try:
        method: Any = kind(**settings)
    except (TypeError, ValueError) as problem:
        raise StudyError(f"study {study.name!r}, {where}.settings: {problem}") from None
    found: Method = method
    return found


_SETTINGS: dict[tuple[str, str | None], Mapping[str, Any]] = {}


def settings_of(study: Study, variant: str | None) -> Mapping[str, Any]:
    """All settings of a method, defaults included: what its steps see at a site."""
    key = (study.hash, variant)
    if key not in _SETTINGS:
        _SETTINGS[key] = dataclasses.asdict(find_method(study, variant))  # type: ignore[call-overload]
    return _SETTINGS[key]
