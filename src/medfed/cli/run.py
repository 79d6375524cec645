"""medfed run, resume, status, abandon: studies over the site folders of one consortium on this machine."""

import re
import secrets
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from medfed.cli.console import STOPPED, AsJson, Language, err, out, print_json
from medfed.engines.site_folders import SiteFolders
from medfed.errors import FederationError
from medfed.evaluation.consortium_run import ConsortiumRun, run_consortium
from medfed.federation.runner import Progress, Runner, RunStatus, status_of
from medfed.federation.store import RunnerStore
from medfed.language import Translate, translator
from medfed.study import load_study, study_from_json

Consortium = Annotated[Path, typer.Option("--consortium", "-c", help="Folder with sites/NAME/ and coordinator/.")]
Durable = Annotated[
    str, typer.Option(help="call: every answer is on disk before it counts; process: survives a kill, not a power cut.")
]


def new_run_name() -> str:
    """A name for a run: the day and four random hex digits."""
    return f"{date.today():%Y%m%d}-{secrets.token_hex(2)}"


def run(
    study: Annotated[Path, typer.Argument(help="The study.yaml to run.")],
    consortium: Consortium = Path(),
    name: Annotated[str, typer.Option("--run", help="Name of the run. Default: the day and four letters.")] = "",
    durability: Durable = "call",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Run a study over the sites that approved it, and write report, figures and model files.

    Kill it at any moment: `medfed resume` goes on, and ends with the same numbers.
    """
    name = name or new_run_name()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name):
        raise FederationError(f"--run {name!r} is no name for a run; it has letters, digits, - and _")
    _finish(load_study(study), consortium, name, durability, lang, json)


def resume(
    name: Annotated[str, typer.Argument(help="The run. Default: the last one that has not finished.")] = "",
    consortium: Consortium = Path(),
    durability: Durable = "call",
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Go on with a run that was interrupted or stopped; what sites have answered is not asked again."""
    folder = consortium / "coordinator"
    runs = [status for status in status_of(folder) if name in ("", status.run)]
    statuses = [status for status in runs if _waits(folder, status)]
    if not statuses:
        if not name:
            what = "no run waits to be resumed"
        else:
            states = {"running": "is running now; wait until it ends", "finished": "has finished"}
            what = f"run {name!r} {states[runs[0].state]}" if runs else f"there is no run {name!r}"
        raise FederationError(f"{folder}: {what}. `medfed status` lists all runs")
    store = RunnerStore(folder, read_only=True)
    text = store.study_text(statuses[-1].run)
    store.close()
    _finish(study_from_json(text), consortium, statuses[-1].run, durability, lang, json)


def _waits(folder: Path, status: RunStatus) -> bool:
    """Whether there is something to do: also for a run that was killed between its last answer and its report."""
    if status.state == "finished":
        return not (folder / "runs" / status.run / "result.json").exists()
    return status.state in ("interrupted", "stopped")


def _finish(study: Any, consortium: Path, name: str, durability: str, lang: str, json: bool) -> None:
    if durability not in ("call", "process"):
        raise FederationError(f"--durability is call or process, not {durability!r}")
    try:
        with LiveView(lang, quiet=json) as live:
            finished = run_consortium(consortium, study, name, durability=durability, listener=live)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        err.print(f"Stopped. What was finished is kept; `medfed resume {name}` goes on.", markup=False, soft_wrap=True)
        raise typer.Exit(STOPPED) from None
    if json:
        print_json(finished.report)
    else:
        show_finished(finished, lang)


def show_finished(finished: ConsortiumRun, lang: str) -> None:
    """Who was counted, who was not and why, and where the report lies."""
    _ = translator(lang)
    for site in finished.report["sites"]:
        if site["counted"]:
            out.print(f"  [green]✓[/green] {site['name']}: {_('counted')}")
        else:
            out.print(f"  [yellow]–[/yellow] {site['name']}: {_(site['reason'] or '')}", soft_wrap=True)
    for path in finished.files:
        out.print(f"  {path}", soft_wrap=True)


class LiveView:
    """Progress on standard error: round, step, and which sites are still waited for."""

    def __init__(self, lang: str, *, quiet: bool = False) -> None:
        self._ = translator(lang)
        self.bars = Bars(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True
        )
        self.quiet = quiet or not err.is_terminal
        self.task: Any = None
        self.waiting: dict[str, None] = {}

    def __enter__(self) -> "LiveView":
        if not self.quiet:
            self.bars.start()
            self.task = self.bars.add_task(self._("starting"))
        return self

    def __exit__(self, *problem: object) -> None:
        if not self.quiet:
            self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        if self.quiet:
            return
        if progress.kind == "asked":
            self.waiting = dict.fromkeys(progress.sites)
        elif progress.kind == "answered":
            self.waiting.pop(progress.site, None)
        where = progress.path.partition("/")[2] or progress.path
        step = progress.step.rpartition(".")[2]
        waiting = ", ".join(list(self.waiting)[:4]) + (" …" if len(self.waiting) > 4 else "")
        text = self._("{where}, round {round}: {step}").format(where=where, round=progress.round, step=step)
        if waiting:
            text += " · " + self._("waiting for {sites}").format(sites=waiting)
        self.bars.update(self.task, description=text)


def status(consortium: Consortium = Path(), lang: Language = "en", json: AsJson = False) -> None:
    """Say what every run is doing now: its state, its round, and who is being waited for. A dead run is never "running"."""
    found = status_of(consortium / "coordinator")
    if json:
        print_json(found)
        return
    _ = translator(lang)
    table = Table(show_edge=False)
    for heading in (_("Run"), _("State"), _("Rounds done"), _("Calls answered"), _("Waiting for")):
        table.add_column(heading)
    for run_ in found:
        table.add_row(run_.run, _state(run_.state, _), str(run_.rounds_finished), str(run_.calls_journaled),
                      ", ".join(run_.waiting))  # fmt: skip
    out.print(table)
    for run_ in found:
        if following := _next(run_.state, run_.reason, _):
            out.print(f"{run_.run}: {following}", markup=False, soft_wrap=True)


def _state(state: str, _: Translate) -> str:
    names: Mapping[str, str] = {
        "running": _("running"),
        "interrupted": _("interrupted"),
        "stopped": _("stopped"),
        "finished": _("finished"),
    }
    return names[state]


def _next(state: str, reason: str, _: Translate) -> str:
    if state == "running":
        return _("answers are being collected")
    if state == "finished":
        return ""
    hint = _("go on with `medfed resume`")
    return f"{reason} – {hint}" if reason else hint


def abandon(
    name: Annotated[str, typer.Argument(help="The run whose open round is given up.")],
    consortium: Consortium = Path(),
    json: AsJson = False,
) -> None:
    """Give up the open round of a run whose sites can't come back: what was sealed stays charged and is never read."""
    folder = consortium / "coordinator"
    states = {status.run: status.state for status in status_of(folder)}
    if states.get(name) in ("running", "finished"):
        raise FederationError(f"{folder}: run {name!r} is {states[name]}, so it has no round to give up")
    store = RunnerStore(folder, read_only=True)
    study = study_from_json(store.study_text(name))
    store.close()
    engine = SiteFolders(consortium, study)
    runner = Runner(folder, engine, study)
    try:
        runner.abandon(name)
    finally:
        runner.close()
        engine.close()
    if json:
        print_json({"run": name, "given_up": True})
        return
    out.print(f"{name}: the open round is given up; `medfed resume {name}` asks its question anew, in the next round")
