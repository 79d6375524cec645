"""medfed run, resume, abandon: studies over the sites of one consortium, in folders here or over a network."""

import re
import secrets
import time
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress as Bars
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from medfed.cli.console import STOPPED, AsJson, Language, err, out, print_json, say
from medfed.errors import FederationError
from medfed.evaluation.consortium_run import ConsortiumRun, open_engine, run_consortium
from medfed.federation.call import Waiting
from medfed.federation.runner import Progress, Runner
from medfed.federation.status import RunStatus, status_of
from medfed.federation.store import RunnerStore
from medfed.language import translator
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
            states = {
                "running": "is running now; wait until it ends",
                "suspended": "is suspended (its process got SIGSTOP); let it go on, or end it",
                "finished": "has finished",
            }
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
    _ = translator(lang)
    try:
        with LiveView(lang, quiet=json) as live:
            finished = run_consortium(consortium, study, name, durability=durability, listener=live)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        stopped = _("Stopped. What was finished is kept; `medfed resume {run}` goes on.")
        err.print(stopped.format(run=name), markup=False, soft_wrap=True)
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
    """Progress on standard error: round, step, who is waited for, since when, why, and what happens next."""

    def __init__(self, lang: str, *, quiet: bool = False) -> None:
        self._ = translator(lang)
        self.bars = Bars(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err, transient=True
        )
        self.quiet = quiet
        self.task: Any = None
        self.where = ""
        self.waiting: dict[str, Waiting | None] = {}
        self.told: dict[str, str] = {}

    def __enter__(self) -> "LiveView":
        if not self.quiet and err.is_terminal:
            self.bars.start()
            self.task = self.bars.add_task(self._("starting"))
        return self

    def __exit__(self, *problem: object) -> None:
        if self.task is not None:
            self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        if self.quiet:
            return
        if progress.waiting is not None:
            self.waiting[progress.site] = progress.waiting
            self._say(progress.waiting)
        elif progress.kind == "asked":
            self.waiting = dict.fromkeys(progress.sites)
        elif progress.kind == "answered":
            self.waiting.pop(progress.site, None)
            if self.told.pop(progress.site, None) and progress.failure is None:
                err.print(self._("{site} has answered").format(site=progress.site), markup=False, soft_wrap=True)
        if self.task is None:
            return
        if progress.path:
            where, step = progress.path.partition("/")[2] or progress.path, progress.step.rpartition(".")[2]
            self.where = self._("{where}, round {round}: {step}").format(where=where, round=progress.round, step=step)
        waiting = ", ".join(list(self.waiting)[:4]) + (" …" if len(self.waiting) > 4 else "")
        text = self.where
        if waiting:
            text += " · " + self._("waiting for {sites}").format(sites=waiting)
        self.bars.update(self.task, description=text)

    def _say(self, waiting: Waiting) -> None:
        """One line when a site goes away, not one for every try."""
        if waiting.state == "away" and self.told.get(waiting.site) != waiting.why:
            if time.time() - waiting.since < 1.5 and waiting.site not in self.told:
                return  # a hiccup is no news
            self.told[waiting.site] = waiting.why
            line = self._("{site}: {why}; it is waited for until {until}").format(
                site=waiting.site, why=self._(waiting.why), until=clock_time(waiting.until)
            )
            err.print(line, markup=False, soft_wrap=True)


def clock_time(at: float) -> str:
    """Seconds since 1970 as the time of day here, with the day where it is not today."""
    when = datetime.fromtimestamp(at)
    return when.strftime("%H:%M:%S" if when.date() == date.today() else "%Y-%m-%d %H:%M:%S")


def abandon(
    name: Annotated[str, typer.Argument(help="The run whose open round is given up.")],
    consortium: Consortium = Path(),
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Give up the open round of a run whose sites can't come back: what was sealed stays charged and is never read."""
    folder = consortium / "coordinator"
    states = {status.run: status.state for status in status_of(folder)}
    busy = {"running": "is running", "suspended": "is suspended", "finished": "is finished"}
    if states.get(name) in busy:
        raise FederationError(f"{folder}: run {name!r} {busy[states[name]]}, so it has no round to give up")
    store = RunnerStore(folder, read_only=True)
    study = study_from_json(store.study_text(name))
    store.close()
    engine = open_engine(consortium, study)
    runner = Runner(folder, engine, study)
    try:
        runner.abandon(name)
    finally:
        runner.close()
        engine.close()
    if json:
        print_json({"run": name, "given_up": True})
        return
    _ = translator(lang)
    say(
        _("{run}: the open round is given up; `medfed resume {run}` asks its question anew, in the next round"),
        run=name,
    )
