"""medfed status: what every run does now, and how the network stands. Nothing dead is shown as running."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medfed.cli.console import AsJson, Language, out, print_json
from medfed.cli.run import clock_time
from medfed.engines.standing import NetworkStanding, network_standing
from medfed.errors import FederationError
from medfed.federation.status import RunStatus, status_of
from medfed.language import Translate, translator

Consortium = Annotated[Path, typer.Option("--consortium", "-c", help="Folder with coordinator/.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")]


def status(consortium: Consortium = Path(), watch: Watch = False, lang: Language = "en", json: AsJson = False) -> None:
    """Say what every run is doing now: who is waited for, since when, why, and what will happen next.

    Over a network also how every site stands. A dead run is never "running".
    """
    folder = consortium / "coordinator"
    while True:
        network = network_standing(folder)
        try:
            found = status_of(folder)
        except FederationError:
            if network is None:
                raise
            found = []
        if json:
            print_json({"runs": found, "network": network} if network else found)
        else:
            if watch:
                out.clear()
            _show(found, network, translator(lang))
        if not watch:
            return
        time.sleep(1.0)


def _show(found: list[RunStatus], network: NetworkStanding | None, _: Translate) -> None:
    if network is not None:
        _show_network(network, _)
    if not found:
        return
    table = Table(show_edge=False)
    for heading in (_("Run"), _("State"), _("Rounds done"), _("Calls answered"), _("Now")):
        table.add_column(heading)
    for run in found:
        step = run.step.rpartition(".")[2]
        table.add_row(run.run, _state(run.state, _), str(run.rounds_finished), str(run.calls_journaled), step)
    out.print(table)
    for run in found:
        for line in lines_of(run, _):
            out.print(line, markup=False, soft_wrap=True)


def lines_of(run: RunStatus, _: Translate) -> list[str]:
    """Sentences about one run: each site that is waited for, and what will happen next."""
    lines = []
    for site in run.waits:
        if site.state == "away":
            text = _("{site}: waited for, away since {since}: {why}")
        elif site.state == "working":
            text = _("{site}: waited for, its step has been running since {since}")
        else:
            text = _("{site}: asked at {since}")
        lines.append("  " + text.format(site=site.site, since=clock_time(site.since), why=_(site.why)))
    if following := next_of(run, _):
        lines.append(f"{run.run}: {following}")
    return lines


def next_of(run: RunStatus, _: Translate) -> str:
    """What will happen next in this run."""
    if run.state == "suspended":
        return _("the runner's process is suspended (SIGSTOP); it goes on when it is let")
    if run.state == "running":
        if run.until is None or not run.waiting:
            return _("answers are being collected")
        values = {"until": clock_time(run.until), "answered": run.answered, "minimum": run.minimum,
                  "missing": run.minimum - run.answered}  # fmt: skip
        if run.answered >= run.minimum:
            return _(
                "they are waited for until {until}; then the call goes on without them ({answered} have answered, the study needs {minimum})"
            ).format(**values)
        return _(
            "at {until} the run stops, unless {missing} more have answered (the study needs {minimum}); then `medfed resume` asks again"
        ).format(**values)
    if run.state == "finished":
        return ""
    hint = _("go on with `medfed resume`")
    return f"{run.reason} – {hint}" if run.reason else hint


def _state(state: str, _: Translate) -> str:
    names: Mapping[str, str] = {
        "running": _("running"),
        "suspended": _("suspended"),
        "interrupted": _("interrupted"),
        "stopped": _("stopped"),
        "finished": _("finished"),
    }
    return names[state]


def _show_network(network: NetworkStanding, _: Translate) -> None:
    if not network.served:
        out.print(
            _("The coordinator's service is not running; start it with `medfed coordinator start`"), soft_wrap=True
        )
    else:
        names: Mapping[str, Any] = {
            "running": _("running"),
            "starting": _("starting"),
            "lost": _("lost; a new one is being started"),
            "none": _("none; it starts when a site connects"),
        }
        out.print(
            _("Dispatcher: {state} since {since}").format(
                state=names.get(network.dispatcher, network.dispatcher), since=clock_time(network.dispatcher_since)
            ),
            markup=False,
        )
    table = Table(show_edge=False)
    for heading in (_("Site"), _("State"), _("Since"), _("Why")):
        table.add_column(heading)
    states: Mapping[str, str] = {
        "connected": _("connected"),
        "away": _("away"),
        "joining": _("joining"),
        "invited": _("invited"),
        "removed": _("removed"),
        "unknown": _("unknown"),
    }
    for site in network.sites:
        since = clock_time(site.since) if site.since else ""
        table.add_row(site.name, states.get(site.state, site.state), since, _(site.why) if site.why else "")
    out.print(table)
