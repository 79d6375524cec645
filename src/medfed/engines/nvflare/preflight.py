"""Is a site ready? Every check before the first run, in the order in which a person would mend what fails.

Outbound connections to the coordinator only; nothing listens, nothing of the site's data leaves, nothing is sealed. Each
failure has one sentence and one remedy; a check that another failure stands in the way of is skipped.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from medfed.data.site_folder import load_site
from medfed.engines.nvflare import preflight_site as of_site
from medfed.engines.nvflare.finding import Finding, Limits, _
from medfed.engines.nvflare.join import SiteNetwork
from medfed.engines.nvflare.preflight_certificates import check_dates, load_certificate
from medfed.engines.nvflare.preflight_network import Line, look_at_the_way, unseen
from medfed.engines.nvflare.preflight_service import check_clock, check_heard, check_service, read_state
from medfed.engines.nvflare.preflight_site import StepsOf, guarded
from medfed.engines.nvflare.preflight_step import check_step
from medfed.errors import MappingError
from medfed.study import Study

__all__ = ["Finding", "Limits", "preflight"]


def preflight(
    folder: Path, *, study: Study | None = None, steps_of: StepsOf | None = None, limits: Limits | None = None
) -> Iterator[Finding]:
    """The findings one after the other, as they come. steps_of: the names of all steps that a study may ask for."""
    limits = limits or Limits()
    try:
        site = load_site(folder)
    except MappingError as problem:
        yield Finding("mapping", "failed", "{problem}", _("Correct site.yaml, then check again; nothing else can be judged before."), {"problem": str(problem)})  # fmt: skip
        return
    network = SiteNetwork(site)
    state = read_state(network)
    joined = guarded("joined", lambda: of_site.check_joined(network))
    yield joined
    yield guarded("permissions", lambda: of_site.check_permissions(network))
    yield guarded("keys", lambda: of_site.check_keys(network))
    yield guarded("disk", lambda: of_site.check_disk(network, limits))
    coordinator = state.get("coordinator")
    yield guarded("package", lambda: of_site.check_package(coordinator if isinstance(coordinator, dict) else {}, state))
    yield guarded("policy", lambda: of_site.check_policy(site, study, steps_of))
    yield guarded("mapping", lambda: of_site.check_mapping(site, study))
    yield guarded("ledger", lambda: of_site.check_ledger(site))
    yield guarded("halted", lambda: of_site.check_halted(network))
    startup = network.workspace / "startup"
    own, root = load_certificate(startup / "client.crt"), load_certificate(startup / "rootCA.pem")
    server = None
    if joined.state == "failed" or root is None:
        yield from unseen("name", "port", "tls", "chain", "host-name", "accepted")
    else:
        server = yield from look_at_the_way(_line(network), limits)
    for which, certificate in (("own", own), ("server", server), ("root", root)):
        yield check_dates(which, certificate, limits)
    state = read_state(network)  # again, since waiting for the network took longer than a service may be silent
    yield check_service(network, state, limits)
    yield check_heard(network, state, limits)
    yield check_clock(state, (own, server, root), limits)
    yield guarded("step", lambda: check_step(site, study, limits))


def _line(network: SiteNetwork) -> Line:
    member, startup = network.membership(), network.workspace / "startup"
    pair = None
    with contextlib.suppress(OSError):
        pair = (startup / "client.crt", startup / "client.key") if of_site.pair_is_whole(network) else None
    return Line(member.host, member.port, member.scheme, startup / "rootCA.pem", pair)
