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
from medfed.errors import PolicyViolation, StudyError
from medfed.evaluation.charts import Line, curve
from medfed.evaluation.study_run import StudyRun
from medfed.federation.approval import approved_names
from medfed.federation.budget import charged_events, over_all
from medfed.federation.cost import further_epsilon
from medfed.federation.ledger import open_store, rows_of, verify_ledger
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import load_policy
from medfed.federation.private import charges_of, most_shares, release_deviation
from medfed.federation.step import Step
from medfed.language import number, translator
from medfed.privacy.accounting import Event, charged_epsilon, rdp_epsilon
from medfed.privacy.plan import total_deviation
from medfed.study import Study, load_study
from medfed.study.schema import DELTA, LARGEST_DELTA, LARGEST_EPSILON

app = typer.Typer(
    no_args_is_help=True,
    help="""Differential privacy: plan the noise of a study before it runs, and see a site's budget over all studies.

    A study with an epsilon lets no sum leave without noise. Whoever sees all its answers can then hardly tell whether any one patient was in a site's table: the chance of whatever they might conclude changes by a factor of at most e^epsilon, but for a rest of delta. A small epsilon (0.5, 1) is strong protection and much noise; a large one (8 and more) is weak.

    First `plan`, by whoever writes the study; then each site sets `budget` in its policy.yaml and approves; after a run, `budget`.
    """,
)

EPSILONS = (0.5, 1.0, 3.0, 8.0)


@dataclass(frozen=True)
class PlannedRelease:
    """Noise of one release at one epsilon.

    noise: over a patient's bound; at_site, plain, secure: SD of the full noise at a site, in plain totals, in secure ones.
    secure: None where there can be no secure total.
    """

    epsilon: float
    step: str
    release: str
    calls: int
    noise: float
    at_site: float
    plain: float
    secure: float | None


@dataclass(frozen=True)
class PlannedError:
    """Expected error of one figure at one epsilon: SD of the noise in it, with plain and with secure sums (None: no such)."""

    epsilon: float
    sentence: str
    parameters: Mapping[str, str]
    plain: float
    secure: float | None


@app.command()
def plan(
    study: Annotated[Path, typer.Argument(help="The study.yaml, or a folder that holds one.")],
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="A target epsilon; can be given several times. Default: the study's own, 0.5, 1, 3 and 8."),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            help="The chance at which epsilon may not hold: well under one in the number of patients. Default: the study's, or 1e-5."
        ),
    ] = None,
    patients: Annotated[int, typer.Option(help="How many patients you expect, over all sites.")] = 1000,
    sites: Annotated[
        int | None, typer.Option(help="How many of the invited sites you expect to answer. Default: all.")
    ] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Say how much noise each sum would carry for a target epsilon, and what error to expect of it. No data is needed.

    The study names a private method (private_glm.PrivateGLM, private_fedavg.PrivateFedAvg, private_describe.PrivateDescribe); an epsilon need not stand in it yet. How often each sum is asked for, and so how much noise each carries, follows from the method's settings: fewer rounds, less noise.

    Of every sum you see the noise twice. Plain: every site adds all of it, and needs to trust no other. Secure: sums are hidden under masks, and the noise is spread over the sites; that needs three sites and more.

    Example: medfed privacy plan study.yaml --epsilon 1 --epsilon 3 --patients 920
    """
    loaded = load_study(study)
    invited = len(loaded.sites.invited)
    _check_options(epsilon or [], delta, patients, sites, invited)
    own = [loaded.privacy.epsilon] if loaded.privacy.epsilon else []
    targets = sorted(set(epsilon or [*own, *EPSILONS]))
    chosen = delta if delta is not None else loaded.privacy.delta or DELTA
    count = invited if sites is None else sites
    shares = most_shares(loaded)
    releases, errors = [], []
    for target in targets:
        try:
            found, expected = _planned(with_epsilon(loaded, target, chosen), target, patients, count)
        except StudyError as problem:
            # Its words name the key, of a copy of the study under this epsilon.
            said = str(problem).replace("study, ", "")
            raise StudyError(f"{study}, with epsilon {target:g}: {said}") from None
        releases += found
        errors += expected
    if json:
        print_json({"study": loaded.name, "delta": chosen, "sites": count, "patients": patients, "shares": shares,
                    "releases": releases, "errors": errors})  # fmt: skip
        return
    _show_plan(loaded, chosen, count, patients, releases, errors, lang, shares)


def _check_options(
    epsilons: Sequence[float], delta: float | None, patients: int, sites: int | None, invited: int
) -> None:
    """One sentence for an option that can't be meant. Raises StudyError."""
    if bad := [epsilon for epsilon in epsilons if not 0 < epsilon <= LARGEST_EPSILON]:
        raise StudyError(f"--epsilon is above 0 and at most {LARGEST_EPSILON:g}, not {bad[0]:g}")
    if delta is not None and not 0 < delta <= LARGEST_DELTA:
        raise StudyError(f"--delta is above 0 and at most {LARGEST_DELTA:g}, not {delta:g}; 1e-5 is usual")
    if patients < 1:
        raise StudyError(f"--patients is at least 1, not {patients}")
    if sites is not None and not 1 <= sites <= invited:
        raise StudyError(f"--sites is from 1 to {invited}, the number of sites that the study invites, not {sites}")


def with_epsilon(study: Study, epsilon: float, delta: float) -> Study:
    """The same study under another epsilon. Raises StudyError."""
    privacy = {**study.privacy.model_dump(), "epsilon": epsilon, "delta": delta}
    return study.model_copy(update={"privacy": privacy})


def _planned(
    study: Study, epsilon: float, patients: int, sites: int
) -> tuple[list[PlannedRelease], list[PlannedError]]:
    run = StudyRun(study)
    charges = charges_of(study, run)
    shares = most_shares(study)
    possible = 1 < shares <= sites
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
        for release in step.releases if step.is_bounded else ():
            at_site = release_deviation(step, release, charge)
            in_plain = total_deviation(at_site, sites, 1)
            in_secure = total_deviation(at_site, sites, spread) if possible else None
            releases.append(
                PlannedRelease(
                    epsilon, name, release, planned.calls, charge.event.noise, at_site, in_plain, in_secure
                )
            )  # fmt: skip
        if step.is_metered:
            noise, calls = charge.event.noise, planned.calls * planned.draws
            in_secure = secure[step] if possible else None
            releases.append(PlannedRelease(epsilon, name, "", calls, noise, noise, plain[step], in_secure))
    method: Any = find_method(study)
    if not hasattr(method, "expected_errors"):
        return releases, []
    both = zip(
        method.expected_errors(study, plain, patients), method.expected_errors(study, secure, patients), strict=True
    )
    return releases, [
        PlannedError(epsilon, a.sentence, dict(a.parameters), a.value, b.value if possible else None) for a, b in both
    ]


def _show_plan(
    study: Study,
    delta: float,
    sites: int,
    patients: int,
    releases: Sequence[PlannedRelease],
    errors: Sequence[PlannedError],
    lang: str,
    shares: int,
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
        cells = ("–" if value is None else f"{value:.4g}" for value in (row.noise, row.at_site, row.plain, row.secure))
        table.add_row(f"{row.epsilon:g}", row.release or row.step, str(row.calls), *cells)
    out.print(table)
    if errors:
        table = Table(title=_("Expected error (SD)"), title_justify="left", show_edge=False)
        for column in ("ε", _("Figure"), _("Plain sums"), _("Secure sums")):
            table.add_column(column)
        for error in errors:
            figure = _(error.sentence).format(**error.parameters)
            secure = "–" if error.secure is None else f"{error.secure:.3g}"
            table.add_row(f"{error.epsilon:g}", figure, f"{error.plain:.3g}", secure)
        out.print(table)
    out.print(_("Plain sums: every site adds the full noise, which protects whatever the others do."), soft_wrap=True)
    if shares == 1:
        out.print(
            _("Secure sums: none in this study; they need three invited sites, and `sums: strongest`."), soft_wrap=True
        )
        return
    said = _("Secure sums: each site adds a share. The shares of {shares} of {invited} sites make up the whole noise, so at least so many must answer, and add theirs honestly.")  # fmt: skip
    out.print(said.format(shares=shares, invited=len(study.sites.invited)), soft_wrap=True)
    if sites < shares:
        out.print(_("With {sites} there is no secure total.").format(sites=sites), soft_wrap=True)


@app.command()
def budget(
    folder: Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")],
    plot: Annotated[Path | None, typer.Option(help="Write a plot of what was spent, as an SVG file.")] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Say what a site's noisy answers have spent, over all studies, and what is left of its budget.

    All studies that the ledger holds are composed: two cost less together than the sum of their epsilons, and what is left is not a difference either. The budget stands in the site's policy.yaml (`budget`, `budget_delta`); an answer that would pass it is refused before it is worked out. Nothing is changed by looking.

    Example: medfed privacy budget sites/north --plot budget.svg
    """
    if plot is not None and plot.suffix.lower() != ".svg" and not plot.is_dir():
        raise StudyError(f"--plot {plot}: charts are drawn as SVG; give the file a name that ends in .svg")
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
        try:
            write_atomically(plot, _course_plot(course, policy.budget, lang).encode())
        except OSError as problem:
            raise PolicyViolation(
                f"--plot {plot} can't be written ({problem.strerror}); name a file in a folder that is there"
            ) from None
        found["plot"] = str(plot)
    if json:
        print_json(found)
    else:
        _show_budget(found, lang)


def spent_by_answer(db: sqlite3.Connection, site: str) -> list[float]:
    """Epsilon after each answer that was charged, as the ledger's rows hold it."""
    return [float(row["spent"]) for row in rows_of(db, site) if row["event"] is not None]


def bar(value: float, most: float, width: int = 40) -> str:
    """A bar of text, filled as far as ``value`` reaches to ``most``; any value above 0 fills a place."""
    filled = min(width, max(round(width * value / most), int(value > 0)))
    return "█" * filled + "░" * (width - filled)


def _course_plot(course: Sequence[float], budget: float, lang: str) -> str:
    _ = translator(lang)
    x = list(range(len(course) + 1))
    lines = [Line(_("spent"), x, [0.0, *course]), Line(_("budget"), [0, max(len(course), 1)], [budget, budget])]
    if not course:
        lines[0] = Line(_("spent"), [0, 1], [0.0, 0.0])
    from medfed.evaluation.statistics_shown import stacked  # pandas: half a second that no other command needs

    figure = curve(
        lines, title=_("Epsilon spent by this site, over all studies"), caption="", x_label=_("Answers charged"),
        y_label="ε", lang=lang, form=lambda value: number(value, 3),
    )  # fmt: skip
    return stacked([figure])  # with a margin: the file stands alone


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
    if found["budget"] > 0:
        out.print(f"ε {bar(found['spent'], found['budget'])} {found['spent'] / found['budget']:.0%}")
    if found["left"] > 0:
        sentence = _("A further study may spend up to about epsilon {left} of its own: composed, both fit the budget.")
        out.print(sentence.format(left=f"{found['left']:.3g}"), soft_wrap=True)
    else:
        out.print(_("Nothing is left for a further study; the budget stands in policy.yaml."), soft_wrap=True)
    if "plot" in found:
        out.print(found["plot"], soft_wrap=True)
