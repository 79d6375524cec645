"""How a network stands, read from what the coordinator's service writes; believed only while that service lives."""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRESH_SECONDS = 6.0


@dataclass(frozen=True)
class SiteStanding:
    """One site. state: connected | joining | away | invited | removed | unknown; since: unix seconds or 0."""

    name: str
    state: str
    since: float = 0.0
    why: str = ""
    working: float | None = None


@dataclass(frozen=True)
class NetworkStanding:
    """served: whether the coordinator's service lives. dispatcher: running | starting | lost | none."""

    served: bool
    dispatcher: str
    dispatcher_since: float
    dispatcher_why: str
    sites: tuple[SiteStanding, ...]


def network_standing(coordinator: Path) -> NetworkStanding | None:
    """How the network of a coordinator's folder stands now; None where the folder has none."""
    network = coordinator / "network"
    try:
        roster = json.loads((network / "roster.json").read_text())["sites"]
    except (OSError, ValueError, KeyError):
        return None
    served = _is_held(network / "run" / "service.lock")
    state: dict[str, Any] = {}
    if served:
        try:
            state = json.loads((network / "run" / "state.json").read_text())
        except (OSError, ValueError):
            state = {}
        if time.time() - float(state.get("at", 0.0)) > FRESH_SECONDS:
            state = {}  # its service hangs or is suspended: what it wrote is not how things stand
    dispatcher = state.get("dispatcher", {})
    seen = state.get("sites", {})
    return NetworkStanding(
        served,
        str(dispatcher.get("state", "none" if not served else "unknown")),
        float(dispatcher.get("since", 0.0)),
        str(dispatcher.get("why", "")),
        tuple(_site(name, member, seen.get(name)) for name, member in sorted(roster.items())),
    )


def _site(name: str, member: dict[str, Any], seen: dict[str, Any] | None) -> SiteStanding:
    if member["state"] != "joined":
        return SiteStanding(name, member["state"])
    if seen is None:
        return SiteStanding(name, "unknown", why="the coordinator's service does not say")
    return SiteStanding(name, seen["state"], float(seen["since"]), str(seen["why"]), seen.get("working"))


def site_standing(site: Path) -> dict[str, Any]:
    """How a site's own service stands: joined, halted, served, heard (unix seconds or 0), working (since when or None)."""
    network = site / "network"
    served = _is_held(network / "run" / "service.lock")
    state: dict[str, Any] = {}
    if served:
        try:
            state = json.loads((network / "run" / "state.json").read_text())
        except (OSError, ValueError):
            state = {}
        if time.time() - float(state.get("at", 0.0)) > FRESH_SECONDS:
            state = {}
    return {
        "joined": (network / "membership.json").exists(),
        "halted": (network / "halted").exists(),
        "served": served,
        "nvflare": bool(state.get("nvflare")),
        "heard": float(state.get("heard", 0.0)),
        "working": state.get("working"),
    }


def _is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
