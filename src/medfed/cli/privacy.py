"""medfed privacy: before a study, what noise an epsilon means; at a site, what all studies have spent and what is left."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medfed.canonical import write_atomically
from medfed.cli.console import AsJson, Language, out, print_json
from medfed.data.site_folder import load_site
from medfed.evaluation.charts import Line, curve
from medfed.evaluation.study_run import StudyRun
from medfed.federation.approval import approved_names
from medfed.federation.budget import charged_events, over_all
from medfed.federation.ledger import open_store, rows_of, verify_ledger
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import load_policy
from medfed.federation.private import charges_of, noise_shares, release_deviation
from medfed.federation.step import Step
from medfed.language import number, translator
from medfed.privacy.accounting import Event, Events, charged_epsilon, gaussian_noise, rdp_epsilon
from medfed.privacy.plan import total_deviation
from medfed.study import Study, load_study

app = typer.Typer(
    no_args_is_help=True,
    help="Differential privacy: plan the noise of a study before it runs, and see a site's budget over all studies.",
)

EPSILONS = (0.5, 1.0, 3.0, 8.0)


@dataclass(frozen=True)
class PlannedRelease:
    """Noise of one release at one epsilon. noise: over a patient's bound; at_site, plain, secure: SD at a site, in totals."""

    epsilon: float
    step: str
    release: str
    calls: int
    noise: float
    at_site: float
    plain: float
    secure: float


@dataclass(frozen=True)
class PlannedError:
    """Expected error of one figure at one epsilon: SD of the noise in it, with plain and with secure sums."""

    epsilon: float
    sentence: str
    parameters: Mapping[str, str]
    plain: float
    secure: float


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="The study.yaml, or a folder that holds one.")],
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="A target epsilon; can be given several times. Default: the study's own, 0.5, 1, 3 and 8."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Delta. Default: the study's, or 1e-5.")] = None,
    patients: Annotated[int, typer.Option(min=1, help="How many patients you expect, over all sites.")] = 1000,
    sites: Annotated[int | None, typer.Option(min=1, help="How many sites answer. Default: all invited.")] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Say how much noise each sum would carry for a target epsilon, and what error to expect of it. No data is needed."""
    loaded = load_study(study)
    own = [loaded.privacy.epsilon] if loaded.privacy.epsilon else []
    targets = sorted(set(epsilon or [*own, *EPSILONS]))
    chosen = delta or loaded.privacy.delta or 1e-5
    count = sites or len(loaded.sites.invited)
    releases, errors = [], []
    for target in targets:
        changed = with_epsilon(loaded, target, chosen)
        found, expected = _planned(changed, target, patients, count)
        releases += found
        errors += expected
    if json:
        print_json({"study": loaded.name, "delta": chosen, "sites": count, "patients": patients, "releases": releases,
                    "errors": errors})  # fmt: skip
        return
    _show_plan(loaded, chosen, count, patients, releases, errors, lang)


def with_epsilon(study: Study, epsilon: float, delta: float) -> Study:
    """The same study under another epsilon. Raises StudyError."""
    privacy = {**study.privacy.model_dump(), "epsilon": epsilon, "delta": delta}
    return study.model_copy(update={"privacy": privacy})


def _planned(
    study: Study, epsilon: float, patients: int, sites: int
) -> tuple[list[PlannedRelease], list[PlannedError]]:
    run = StudyRun(study)
    charges = charges_of(study, run)
    shares = noise_shares("secure", len(study.sites.invited))
    releases: list[PlannedRelease] = []
    plain: dict[Step, float] = {}
    secure: dict[Step, float] = {}
    for step, planned in run.private_calls(study).items():
        charge = charges[step_name(step)]
        name = step.name.rpartition(".")[2]
        # Sums that a step makes itself carry its site's full noise, also under secure sums.
        spread = shares if step.is_bounded else 1
        plain[step] = total_deviation(charge.event.noise, sites, 1)
        secure[step] = total_deviation(charge.event.noise, sites, spread)
        for release in step.releases:
            if step.is_bounded:
                at_site = release_deviation(step, release, charge)
                totals = [total_deviation(at_site, sites, k) for k in (1, spread)]
                releases.append(
                    PlannedRelease(epsilon, name, release, planned.calls, charge.event.noise, at_site, *totals)
                )
        if step.is_metered:
            calls = planned.calls * planned.draws
            releases.append(
                PlannedRelease(
                    epsilon, name, "", calls, charge.event.noise, charge.event.noise, plain[step], secure[step]
                )
            )
    method: Any = find_method(study)
    if not hasattr(method, "expected_errors"):
        return releases, []
    both = zip(
        method.expected_errors(study, plain, patients), method.expected_errors(study, secure, patients), strict=True
    )
    return releases, [PlannedError(epsilon, a.sentence, dict(a.parameters), a.value, b.value) for a, b in both]


def _show_plan(
    study: Study,
    delta: float,
    sites: int,
    patients: int,
    releases: Sequence[PlannedRelease],
    errors: Sequence[PlannedError],
    lang: str,
) -> None:
    _ = translator(lang)
    heading = _("{name}: noise by epsilon, delta {delta}, {sites} sites, {patients} patients")
    out.print(
        heading.format(name=study.name, delta=f"{delta:g}", sites=sites, patients=number(patients, 0)), style="bold"
    )
    table = Table(title=_("Standard deviation of the noise"), title_justify="left", show_edge=False)
    for column in (
        "ε",
        _("Sum"),
        _("Calls"),
        _("Noise / bound"),
        _("At a site"),
        _("Total, plain"),
        _("Total, secure"),
    ):
        table.add_column(column, overflow="fold")
    for row in releases:
        cells = (f"{value:.4g}" for value in (row.noise, row.at_site, row.plain, row.secure))
        table.add_row(f"{row.epsilon:g}", row.release or row.step, str(row.calls), *cells)
    out.print(table)
    if errors:
        table = Table(title=_("Expected error (SD)"), title_justify="left", show_edge=False)
        for column in ("ε", _("Figure"), _("Plain sums"), _("Secure sums")):
            table.add_column(column)
        for error in errors:
            figure = _(error.sentence).format(**error.parameters)
            table.add_row(f"{error.epsilon:g}", figure, f"{error.plain:.3g}", f"{error.secure:.3g}")
        out.print(table)
    out.print(
        _("With plain sums every site adds the full noise; with secure sums the noise is shared over the sites."),
        soft_wrap=True,
    )


@app.command()
def budget(
    folder: Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")],
    plot: Annotated[Path | None, typer.Option(help="Write a plot of what was spent, as an SVG file.")] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Say what a site's noisy answers have spent, over all studies, and what is left of its budget."""
    site = load_site(folder)
    policy = load_policy(site.policy_path)
    by_study: dict[str, dict[Event, int]] = {}
    names: dict[str, str] = {}
    course: list[float] = []
    if site.ledger_path.exists():
        with closing(open_store(site.ledger_path, "call")) as db:
            verify_ledger(db, site.name)
            by_study, names = charged_events(db, site.name), approved_names(db, site.name)
            course = spent_by_answer(db, site.name)
    events = over_all(by_study)
    spent = charged_epsilon(events, policy.budget_delta)
    found: dict[str, Any] = {
        "site": site.name,
        "delta": policy.budget_delta,
        "budget": policy.budget,
        "spent": spent,
        "left": further_epsilon(events, policy.budget, policy.budget_delta),
        "check_rdp": rdp_epsilon(events, policy.budget_delta) if events else 0.0,
        "studies": [
            {
                "study": study,
                "name": names.get(study, ""),
                "sums": sum(own.values()),
                "epsilon": charged_epsilon(own, policy.budget_delta),
            }
            for study, own in by_study.items()
        ],
    }
    if plot is not None:
        write_atomically(plot, _course_plot(course, policy.budget, lang).encode())
        found["plot"] = str(plot)
    if json:
        print_json(found)
    else:
        _show_budget(found, lang)


def spent_by_answer(db: sqlite3.Connection, site: str) -> list[float]:
    """Epsilon after each answer that was charged, as the ledger's rows hold it."""
    return [float(row["spent"]) for row in rows_of(db, site) if row["event"] is not None]


def further_epsilon(events: Events, budget: float, delta: float) -> float:
    """The largest epsilon that one further study, of one Gaussian sum, could spend within the budget; 0 where none."""

    def over(epsilon: float) -> float:
        noise = gaussian_noise(epsilon, delta)
        return charged_epsilon({**events, Event(noise): events.get(Event(noise), 0) + 1}, delta) - budget

    from scipy.optimize import brentq

    least = 1e-3
    if budget <= least or over(least) > 0:
        return 0.0
    # Composed, a further study costs less than its own epsilon.
    return float(brentq(over, least, budget * 1.01 + least, xtol=1e-3)) if over(budget * 1.01 + least) > 0 else budget


def _course_plot(course: Sequence[float], budget: float, lang: str) -> str:
    _ = translator(lang)
    x = list(range(len(course) + 1))
    lines = [Line(_("spent"), x, [0.0, *course]), Line(_("budget"), [0, max(len(course), 1)], [budget, budget])]
    if not course:
        lines[0] = Line(_("spent"), [0, 1], [0.0, 0.0])
    figure = curve(
        lines, title=_("Epsilon spent by this site, over all studies"), caption="", x_label=_("Answers charged"),
        y_label="ε", lang=lang, form=lambda value: number(value, 3),
    )  # fmt: skip
    return figure.svg


def _show_budget(found: Mapping[str, Any], lang: str) -> None:
    _ = translator(lang)
    table = Table(show_edge=False)
    for heading in (_("Study"), _("Hash"), _("Noisy sums"), _("ε alone")):
        table.add_column(heading)
    for study in found["studies"]:
        table.add_row(study["name"], study["study"][:12], str(study["sums"]), f"{study['epsilon']:.4g}")
    if found["studies"]:
        out.print(table)
    sentence = _("Spent over all studies: epsilon {spent} of {budget}, at delta {delta} (Rényi check: at most {rdp}).")
    out.print(
        sentence.format(
            spent=f"{found['spent']:.4g}", budget=f"{found['budget']:g}", delta=f"{found['delta']:g}",
            rdp=f"{found['check_rdp']:.4g}",
        ), soft_wrap=True,
    )  # fmt: skip
    if found["left"] > 0:
        sentence = _("A further study may spend up to about epsilon {left} of its own: composed, both fit the budget.")
        out.print(sentence.format(left=f"{found['left']:.3g}"), soft_wrap=True)
    else:
        out.print(_("Nothing is left for a further study; the budget stands in policy.yaml."), soft_wrap=True)
    if "plot" in found:
        out.print(found["plot"], soft_wrap=True)
