"""A call as a message and back: what all sites get, one site's own part of it, its answer or failure.

Arrays travel as canonical safetensors, everything else as JSON. Nothing here trusts the other side.
"""

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from medfed.canonical import pack, unpack
from medfed.engines.nvflare.frames import BadMessage
from medfed.errors import LedgerError
from medfed.federation.budget import Charge, charge_of
from medfed.federation.call import PART, RUN_PATH, Call, Failure, FailureKind, Own, Phase, Protection

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
        **({"charge": call.charge.text} if call.charge is not None else {}),
    }


def call_blob(call: Call, own: Own) -> bytes:
    """The arrays of a call: its inputs, and this site's own."""
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
        charge=_charge(content),
        inputs_hash="" if each else blob_hash,
    )
    return call, Own(_key(content, "kept"), _key(content, "settled"), each)


def _charge(content: Mapping[str, Any]) -> Charge | None:
    """The noise that a call asks for, in a study with an epsilon; the site's door holds it to the study."""
    if content.get("charge") is None:
        return None
    try:
        return charge_of(_text(content, "charge", 200))
    except LedgerError:
        raise BadMessage("a call does not state its noise as medfed writes it") from None


def _trees(blob: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    try:
        tree = unpack(blob)
    except LedgerError:
        raise BadMessage("the inputs of a call are damaged or no arrays") from None
    inputs, each = tree.get("inputs", {}), tree.get("each", {})
    if set(tree) - {"inputs", "each"} or not isinstance(inputs, dict) or not isinstance(each, dict):
        raise BadMessage("the inputs of a call are not as medfed writes them")
    for value in (*inputs.values(), *each.values()):
        if not hasattr(value, "dtype"):
            raise BadMessage("an input of a call is no array")
    return inputs, each


def failure_content(failure: Failure) -> dict[str, Any]:
    return {"state": "failure", "kind": failure.kind, "reason": failure.reason}


def read_failure(content: Mapping[str, Any]) -> Failure:
    """A site's failure; its words are shown to people, so they are held to one line of ordinary length."""
    kind, reason = content.get("kind"), content.get("reason")
    if kind not in get_args(FailureKind) or not isinstance(reason, str):
        raise BadMessage("a failure is not as medfed writes it")
    return Failure(cast(FailureKind, kind), " ".join(reason.split())[:400])


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
