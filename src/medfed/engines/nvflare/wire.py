"""A call as a message and back: what all sites get, one site's own part of it, its answer or failure.

Arrays travel as canonical safetensors, everything else as JSON. Nothing here trusts the other side.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, cast, get_args

import numpy as np

from medfed.canonical import pack, unpack
from medfed.engines.nvflare.frames import BadMessage
from medfed.errors import LedgerError
from medfed.federation.budget import Charge, charge_of
from medfed.federation.call import (
    PART,
    RUN_PATH,
    Call,
    Failure,
    FailureKind,
    Opening,
    Own,
    Phase,
    Protection,
    Purpose,
)
from medfed.federation.ledger import Released

_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,59}")
_STEP = re.compile(r"[A-Za-z0-9_.-]{1,100}:[A-Za-z_][A-Za-z0-9_.]{0,300}|")
_KEY = re.compile(r"[0-9a-f]{16}\|[A-Za-z0-9._/=-]{1,900}\|[0-9]{1,9}\|[A-Za-z0-9_.:-]{1,420}\|[0-9]{1,9}")
_SITES_AT_MOST = 10_000


def call_content(call: Call) -> dict[str, Any]:
    """The JSON part of a call, the same for all sites."""
    return {
        "study": call.study,
        "run": call.run,
        "round": call.round,
        "step": call.step,
        "ordinal": call.ordinal,
        "part": call.part,
        "roster": list(call.roster),
        "variant": call.variant,
        "protection": call.protection,
        "phase": call.phase,
        "opening": None if call.opening is None else {
            "attempt": call.opening.attempt, "purpose": call.opening.purpose, "inputs": call.opening.inputs,
        },
        **({"charge": call.charge.text} if call.charge is not None else {}),
    }  # fmt: skip


CALL_FIELDS = (
    "study", "run", "round", "step", "ordinal", "part", "roster", "variant", "protection", "phase", "opening", "charge",
    "kept", "settled",
)  # fmt: skip


def call_blob(call: Call, own: Own) -> bytes:
    """The arrays of a call: its inputs, and this site's own. Of one that opens a sum: the counts that are shown, and the message."""
    if call.opening is not None:
        parts = {"shown": call.opening.shown} | ({} if own.message is None else {"message": own.message})
        return pack({name: np.frombuffer(data, np.uint8) for name, data in parts.items()})
    return pack({"inputs": dict(call.inputs), "each": dict(own.each)}) if own.each else call.inputs_packed


def read_call(content: Mapping[str, Any], blob: bytes, blob_hash: str = "") -> tuple[Call, Own]:
    """The call and the site's own part. Raises BadMessage for anything that medfed would not write.

    blob_hash: SHA-256 of the blob where it was verified, so that it isn't worked out again.
    """
    study, run, step, part = (_text(content, name, 1000) for name in ("study", "run", "step", "part"))
    phase, protection, variant = content.get("phase"), content.get("protection"), content.get("variant")
    roster = content.get("roster")
    if not _HASH.fullmatch(study) or not _STEP.fullmatch(step) or not PART.fullmatch(part):
        raise BadMessage("a call does not name study, step and part as medfed writes them")
    if phase not in get_args(Phase) or protection not in get_args(Protection):
        raise BadMessage("a call asks in a way that medfed does not know")
    if not (RUN_PATH.fullmatch(run) or (phase == "head" and run == "")):
        raise BadMessage("a call does not name its run as medfed writes it")
    if variant is not None and not (isinstance(variant, str) and _NAME.fullmatch(variant)):
        raise BadMessage("a call does not name its variant as medfed writes it")
    if not isinstance(roster, list) or len(roster) > _SITES_AT_MOST:
        raise BadMessage("a call has no roster, or one that is too long")
    if not all(isinstance(site, str) and _NAME.fullmatch(site) for site in roster):
        raise BadMessage("a call's roster has something that is no site's name")
    opening, message = None, None
    inputs: Mapping[str, Any] = {}
    each: Mapping[str, Any] = {}
    if phase == "open":
        opening, message = _opening(content.get("opening"), blob)
    elif content.get("opening") is not None:
        raise BadMessage("a call opens a sum in another phase")
    else:
        inputs, each = _trees(blob)
    call = Call(
        study=study,
        run=run,
        round=_number(content, "round"),
        step=step,
        ordinal=_number(content, "ordinal"),
        part=part,
        roster=tuple(roster),
        inputs=inputs,
        variant=variant,
        protection=cast(Protection, protection),
        phase=cast(Phase, phase),
        opening=opening,
        charge=_charge(content),
        inputs_hash="" if each or opening else blob_hash,
    )
    return call, Own(_key(content, "kept"), _key(content, "settled"), each, message)


def _opening(value: object, blob: bytes) -> tuple[Opening, bytes | None]:
    """Which attempt a message of a secure sum belongs to, the counts that it shows, and the message itself."""
    if not isinstance(value, dict) or value.get("purpose") not in get_args(Purpose) or not is_hash(value.get("inputs")):
        raise BadMessage("a call that opens a sum does not say what it opens")
    parts = _tree(blob)
    shown, message = parts.get("shown"), parts.get("message")
    for array in parts.values():
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
            raise BadMessage("a message of a secure sum is no bytes")
    if set(parts) - {"shown", "message"} or shown is None:
        raise BadMessage("a message of a secure sum is not as medfed writes it")
    opening = Opening(_number(value, "attempt"), value["purpose"], str(value["inputs"]), shown.tobytes())
    return opening, None if message is None else message.tobytes()


def _charge(content: Mapping[str, Any]) -> Charge | None:
    """The noise that a call asks for, in a study with an epsilon; the site's door holds it to the study."""
    if content.get("charge") is None:
        return None
    try:
        return charge_of(_text(content, "charge", 200))
    except LedgerError:
        raise BadMessage("a call does not state its noise as medfed writes it") from None


def _trees(blob: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    tree = _tree(blob)
    inputs, each = tree.get("inputs", {}), tree.get("each", {})
    if set(tree) - {"inputs", "each"} or not isinstance(inputs, dict) or not isinstance(each, dict):
        raise BadMessage("the inputs of a call are not as medfed writes them")
    for value in (*inputs.values(), *each.values()):
        if not hasattr(value, "dtype"):
            raise BadMessage("an input of a call is no array")
    return inputs, each


def _tree(blob: bytes) -> dict[str, Any]:
    try:
        return unpack(blob)
    except LedgerError:
        raise BadMessage("the inputs of a call are damaged or no arrays") from None


def failure_content(failure: Failure) -> dict[str, Any]:
    return {"state": "failure", "kind": failure.kind, "reason": failure.reason}


def read_failure(content: Mapping[str, Any]) -> Failure:
    """A site's failure; its words are shown to people, so they are held to one line of ordinary length."""
    kind, reason = content.get("kind"), content.get("reason")
    if kind not in get_args(FailureKind) or not isinstance(reason, str):
        raise BadMessage("a failure is not as medfed writes it")
    return Failure(cast(FailureKind, kind), one_line(reason))


def one_line(text: object, most: int = 400) -> str:
    """Somebody else's words, to be shown on a terminal: one line, of ordinary length, without control characters."""
    words = " ".join(str(text)[: 4 * most].split())
    return "".join(character for character in words if character.isprintable())[:most]


def can_be_shown(text: str) -> bool:
    """Whether a person sees all of a text on a terminal: nothing in it moves the cursor or turns the writing round."""
    return all(c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text)


def _text(content: Mapping[str, Any], name: str, most: int) -> str:
    value = content.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise BadMessage(f"a call lacks its {name}")
    return value


def _number(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**9:
        raise BadMessage(f"a call lacks its {name}")
    return value


def read_number(value: object) -> int:
    """A count that a site states of itself."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise BadMessage("a site states a count that is none")
    return value


def read_figure(value: object) -> float:
    """A figure that a site states of itself."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise BadMessage("a site states a figure that is none")
    return float(value)


def read_released(value: object) -> tuple[Released, ...]:
    """What a site says has left it in a run; it stands in the report."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadMessage("a site's list of what has left it is none")
    found = []
    for each in value:
        if not isinstance(each.get("step"), str) or not _STEP.fullmatch(each["step"]):
            raise BadMessage("a site's list of what has left it names no step")
        calls, values, size = (read_number(each.get(name)) for name in ("calls", "values", "bytes"))
        found.append(Released(each["step"], calls, values, size, read_figure(each.get("charge"))))
    return tuple(found)


def _key(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise BadMessage(f"a call's {name} is no call's key")
    return value


def is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def is_site_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None
