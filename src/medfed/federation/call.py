"""What travels between coordinator and site: a call, one site's own part of it, and an answer or a failure."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from medfed.canonical import digest, pack, unpack
from medfed.errors import PolicyViolation
from medfed.federation.budget import Charge
from medfed.federation.step import Count, Step, bind, shape_of

RUN_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}(/[0-9]{1,9}/[A-Za-z0-9._=-]{1,80})*")
PART = re.compile(r"(all|train|valid|test)(:(0|[1-9][0-9]{0,3}))?")
Protection = Literal["plain", "secure"]
Phase = Literal["answer", "seal", "open", "head"]
Purpose = Literal["sum", "count", "noisy"]


@dataclass(frozen=True)
class Opening:
    """What a call of phase "open" brings besides a message for each site: which sealed answers are opened, and why they may be.

    attempt: 0, 1, ...; each has keys and masks of its own. purpose: "count" for what is judged before a sum is opened;
    "noisy" for a sum that carries noise, before which nothing is counted. inputs: digest of the inputs of the question
    that was sealed; they do not travel again. shown: signed counts, packed.
    """

    attempt: int
    purpose: Purpose
    inputs: str
    shown: bytes = b""


@dataclass(frozen=True)
class Call:
    """What all sites of a roster get, the same for each.

    run: path of the run ("run/round/child"). variant: which settings of the approved study. part: which rows.
    protection: where a sum becomes visible: at each site ("plain") or only as a total ("secure").
    phase: "answer" for plain sums and replies. Of a secure sum "seal" comes first, and no value leaves; each message that
    opens it is a call of phase "open". "head" asks for the signed head of the ledger. charge: the noise that every site adds
    and what that costs, in a study with an epsilon.
    """

    study: str
    run: str
    round: int
    step: str
    ordinal: int
    part: str
    roster: tuple[str, ...]
    inputs: Mapping[str, Any]
    variant: str | None = None
    protection: Protection = "plain"
    phase: Phase = "answer"
    opening: Opening | None = None
    charge: Charge | None = None
    inputs_hash: str = field(default="", compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """Names the call at a site, within the study: retries of one call share it."""
        return f"{self.study[:16]}|{self.run}|{self.round}|{self.step}|{self.ordinal}"

    @cached_property
    def seed_words(self) -> tuple[str | int, ...]:
        """What seeds are drawn from: the key without the run's name, so that a second run draws the same."""
        return (self.run.partition("/")[2], self.round, self.step, self.ordinal)

    @cached_property
    def inputs_packed(self) -> bytes:
        """The inputs as they travel to a site that has none of its own."""
        return pack({"inputs": dict(self.inputs), "each": {}})

    @cached_property
    def inputs_digest(self) -> str:
        """SHA-256 of ``inputs_packed``; ``inputs_hash`` where an engine has verified it already. Of an opening, as it says."""
        if self.opening is not None:
            return self.opening.inputs
        return self.inputs_hash or hashlib.sha256(self.inputs_packed).hexdigest()

    @cached_property
    def digest(self) -> str:
        """Everything asked; under one key a site answers one digest only. Survivors are never in it.

        Of an opening it is worked out from the same words: with another roster, part or charge nothing is sealed under it.
        """
        noise = (self.charge.text,) if self.charge is not None else ()
        return digest(
            self.study,
            self.key,
            self.variant or "",
            self.part,
            self.protection,
            ",".join(self.roster),
            self.inputs_digest,
            *noise,
        )


@dataclass(frozen=True)
class Own:
    """One site's part of a call: the call whose keep it reads, the one at the last checkpoint, its own inputs.

    message: in phase "open", the coordinator's request in the secure sum; None asks for the keys of an attempt.
    """

    kept: str | None = None
    settled: str | None = None
    each: Mapping[str, Any] = field(default_factory=dict)
    message: bytes | None = None


FailureKind = Literal["refused", "failed", "late", "unreachable"]


@dataclass(frozen=True)
class Failure:
    """Why a site's answer is not there: a value, with a sentence of ours, never a step's own error text."""

    kind: FailureKind
    reason: str


@dataclass(frozen=True)
class Waiting:
    """How a site stands that has not answered yet. since, until: unix seconds.

    state: "asked" (nothing unusual), "working" (its step runs) or "away" (why says it). until: when it is left out, or the
    run stops.
    """

    site: str
    state: Literal["asked", "working", "away"]
    since: float
    why: str
    until: float


class Answer:
    """A sealed answer: its bytes, and what they hold."""

    __slots__ = ("_values", "data")

    def __init__(self, data: bytes, values: Mapping[str, np.ndarray] | None = None) -> None:
        self.data = data
        self._values = values

    @property
    def values(self) -> Mapping[str, Any]:
        if self._values is None:
            self._values = unpack(self.data)
        return self._values


class Engine(Protocol):
    """What carries calls. ``protections`` lists how it can sum, strongest last.

    ``roster``: the public keys (hex) of the sites that may take part in secure sums, as the sites approved them.
    """

    @property
    def sites(self) -> tuple[str, ...]: ...

    @property
    def roster(self) -> Mapping[str, str]: ...

    @property
    def protections(self) -> tuple[Protection, ...]: ...

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]: ...


@runtime_checkable
class TellsOfWaiting(Protocol):
    """An engine that waits, and says of each site how it stands meanwhile. ``on_wait`` is the runner's to set."""

    on_wait: Callable[[Waiting], None]


def check_inputs(step: Step, call: Call, study_sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Hold a call's inputs to the step's declaration; the sizes they bind. Raises PolicyViolation."""
    unknown = set(call.inputs) - set(step.takes)
    if unknown:
        raise PolicyViolation(f"the call brings inputs that the step does not declare: {', '.join(sorted(unknown))}")
    sizes = bind(step.takes, call.inputs, study_sizes)
    for name, value in call.inputs.items():
        check_one_input(name, value, step, sizes, limit=step.takes[name].limit)
    return sizes


def check_one_input(name: str, value: Any, step: Step, sizes: Mapping[str, Any], *, limit: float) -> None:
    """Shape, type and limit of one input. NaN and infinity pass no limit."""
    array = np.asarray(value)
    wanted = shape_of(step.takes[name].shape, sizes)
    if array.dtype.kind not in "fiub" or array.shape != wanted:
        raise PolicyViolation(f"input {name!r} has shape {array.shape}, {wanted} is declared")
    # As floats: the least integer has no absolute value of its own kind.
    if not np.all(np.abs(array.astype(np.float64)) <= limit):
        raise PolicyViolation(f"input {name!r} passes its limit of {limit:g}: an extreme input can isolate a patient")


def counts_models(call: Call, step: Step) -> bool:
    """Whether the ledger counts how many models are put to these rows.

    It does for validation and test rows, and for counts that depend on inputs: many of them, over models that differ a
    little, would show single patients. So would many sums over groups whose borders the call brings.
    """
    counts = any(isinstance(kind, Count) for kind in step.releases.values())
    model = any(declared.model for declared in step.takes.values())
    borders = step.is_sum and any(declared.model and not declared.meaning for declared in step.takes.values())
    return (model and call.part.partition(":")[0] in ("test", "valid")) or (counts and bool(step.takes)) or borders


def model_opened(call: Call, step: Step, own: Own) -> tuple[str, str]:
    """(question, digest of the model that is put to a site)."""
    inputs = {**call.inputs, **own.each}
    model = {name: inputs[name] for name, declared in step.takes.items() if declared.model} or inputs
    return f"{call.study}|{call.step}|{call.part.partition(':')[0]}", digest(
        pack({name: np.asarray(value) for name, value in model.items()})
    )
