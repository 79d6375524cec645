"""The site's running service as preflight sees it: alive, heard from the coordinator, clocks. It reads what the service writes.

Clocks are compared with the coordinator's signed messages; without a running service with what certificates and the
kernel say. Nobody outside the consortium is asked for the time.
"""

import ctypes
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509

from medfed.engines.nvflare.finding import Finding, Limits, _
from medfed.engines.nvflare.join import SiteNetwork
from medfed.engines.nvflare.processes import ServiceLock

HANGS_AFTER = 5.0  # it writes five times a second


def read_state(network: SiteNetwork) -> Mapping[str, Any]:
    """What the living service last wrote; empty where none runs."""
    if ServiceLock(network.run).holder() is None:
        return {}
    try:
        found = json.loads(network.state_path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_service(network: SiteNetwork, state: Mapping[str, Any], limits: Limits) -> Finding:
    holder = ServiceLock(network.run).holder()
    if holder is None:
        return Finding("service", "warning", _("The site's service does not run."), _("Run `medfed site start`."))
    values = {"process": holder}
    if network.is_halted:
        return Finding("service", "ok", _("The site's service runs (process {process}) and is halted."), values=values)
    if limits.clock() - _number(state, "at") > HANGS_AFTER and _age_of_lock(network, limits) > HANGS_AFTER:
        return Finding("service", "failed", _("The site's service (process {process}) was stopped or hangs."),
                       _("Start it again: `medfed site stop`, then `medfed site start`."), values)  # fmt: skip
    if state and not state.get("nvflare") and _age_of_lock(network, limits) > HANGS_AFTER:
        return Finding("service", "failed", _("The site's service runs, but NVFLARE's client ends again and again."),
                       _("Its log says why: {log}"), values | {"log": str(network.folder / "nvflare.log")})  # fmt: skip
    return Finding("service", "ok", _("The site's service runs (process {process})."), values=values)


def check_heard(network: SiteNetwork, state: Mapping[str, Any], limits: Limits) -> Finding:
    """Whether the coordinator's signed messages come in."""
    if ServiceLock(network.run).holder() is None or network.is_halted:
        return Finding("heard", "skipped", _("Known only while the site's service runs and is not halted."))
    heard = _number(state, "heard")
    remedy = _("Mend the failures above; if there are none, ask the coordinator whether its service runs and this site is on its roster.")  # fmt: skip
    if not heard:
        since = _age_of_lock(network, limits)
        values = {"seconds": round(since)}
        if since < limits.silence_most:
            return Finding("heard", "warning", _("The coordinator was not heard in the {seconds} seconds since the service started."),
                           _("Check again in a minute."), values)  # fmt: skip
        return Finding("heard", "failed", _("The coordinator was not heard in the {seconds} seconds since the service started."),
                       remedy, values)  # fmt: skip
    ago = max(0.0, limits.clock() - heard)
    values = {"seconds": round(ago)}
    if ago > limits.silence_most:
        return Finding("heard", "failed", _("The coordinator was last heard {seconds} seconds ago."), remedy, values)
    return Finding("heard", "ok", _("The coordinator was heard {seconds} seconds ago."), values=values)


def check_clock(state: Mapping[str, Any], certificates: Sequence[x509.Certificate | None], limits: Limits) -> Finding:
    """This machine's clock beside the coordinator's, as far as it can be known."""
    apart = state.get("clock_apart")
    remedy = _("Set this machine's clock by the time server that your IT department names, and ask the coordinator to look at its own.")  # fmt: skip
    if isinstance(apart, int | float):
        return _apart(float(apart), limits, remedy)
    begins = max((c.not_valid_before_utc.timestamp() for c in certificates if c is not None), default=0.0)
    if begins > limits.clock():
        return Finding("clock", "failed", _("This machine's clock is at least {seconds} seconds behind: a certificate was issued later than it says."),
                       remedy, {"seconds": round(begins - limits.clock())})  # fmt: skip
    off = kernel_says()
    if off is not None:
        return Finding("clock", "ok", _("The system keeps this machine's clock in time (at most {seconds} seconds off); the coordinator's is known when the site's service runs."),
                       values={"seconds": f"{off:.1f}"})  # fmt: skip
    return Finding("clock", "warning", _("The difference to the coordinator's clock can't be known before the site's service runs, and the system does not keep this clock in time."),
                   _("Start the site's service and check again, or compare the clocks by phone; {seconds} seconds may lie between them."),
                   {"seconds": round(limits.clock_most)})  # fmt: skip


def _apart(apart: float, limits: Limits, remedy: str) -> Finding:
    values = {"seconds": round(abs(apart)), "most": round(limits.clock_most)}
    if abs(apart) <= limits.clock_warning:
        return Finding("clock", "ok", _("This machine's clock and the coordinator's differ by {seconds} seconds."), values=values)  # fmt: skip
    sentence = (
        _("This machine's clock is {seconds} seconds ahead of the coordinator's; {most} are the most.")
        if apart > 0
        else _("This machine's clock is {seconds} seconds behind the coordinator's; {most} are the most.")
    )
    return Finding("clock", "failed" if abs(apart) > limits.clock_most else "warning", sentence, remedy, values)


def kernel_says() -> float | None:
    """How far off this clock is at most, in seconds, as the kernel says; None where nothing keeps it in time."""
    numbers = (ctypes.c_long * 64)()  # struct timex: modes, offset, freq, maxerror, ...; modes 0 only reads
    try:
        state = ctypes.CDLL(None).adjtimex(numbers)
    except (AttributeError, OSError):
        return None
    unsynchronised = 5  # TIME_ERROR
    return None if state < 0 or state == unsynchronised else float(numbers[3]) / 1e6


def _number(state: Mapping[str, Any], name: str) -> float:
    value = state.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _age_of_lock(network: SiteNetwork, limits: Limits) -> float:
    """Since when the service runs, in seconds: it writes its number into the lock when it takes it."""
    try:
        return max(0.0, limits.clock() - ServiceLock(network.run).path.stat().st_mtime)
    except OSError:
        return 0.0
