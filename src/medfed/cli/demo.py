"""medfed demo: the whole way, on a real trial at four hospitals, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from medfed.cli.console import AsJson, Language, err, out, print_json
from medfed.cli.run import LiveView
from medfed.evaluation.report_data import SITES_SUBTRACT
from medfed.language import number, percent, translator

if TYPE_CHECKING:
    from medfed.applications.indomethacin.walkthrough import Step, Walkthrough


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where to put the four hospitals, the coordinator and the reports.")
    ] = Path("demo-output"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Write the exports anew, also where you edited them.")] = False,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """From four hospitals' raw exports to a federated answer and a model back at a hospital.

    The hospitals are those of a published trial: does indomethacin prevent pancreatitis after ERCP? Edit an export
    below FOLDER/sites and run it again: the numbers move.
    """
    from medfed.applications.indomethacin.walkthrough import summary, walk

    _ = translator(lang)
    say = (lambda step: None) if json else _teller(_)
    with LiveView(lang, quiet=json) as live:
        found = walk(folder, say, lang=lang, fresh=fresh, listener=live)
    if json:
        print_json(summary(found))
    else:
        _show(found, lang)


def _teller(_: Any) -> Any:
    count = 0

    def say(step: "Step") -> None:
        nonlocal count
        count += 1
        err.print(f"[bold cyan]{count}[/bold cyan] [bold]{_(step.title)}[/bold]")
        for line in step.lines:
            err.print(f"    {line}", markup=False, soft_wrap=True)

    return say


def _show(found: "Walkthrough", lang: str) -> None:
    from medfed.applications.indomethacin.walkthrough import summary

    _ = translator(lang)
    figures = summary(found)
    names = {site["name"]: site["title"][lang] for site in found.effect.report["sites"]}
    out.print()
    table = Table(title=_("Does indomethacin prevent pancreatitis after ERCP?"), title_justify="left", show_edge=False)
    for heading in (_("Arm"), _("Patients"), _("Pancreatitis"), _("Risk")):
        table.add_column(heading, justify="left" if heading == _("Arm") else "right")
    codes = found.effect.report["study"]["variables"]["arm"]["codes"]
    for arm, (events, patients) in figures["patients"].items():
        table.add_row(codes[arm][lang], str(patients), str(events), percent(figures["risk"][arm]))
    out.print(table)
    low, high = figures["risk_ratio_interval"]
    out.print(_("Risk ratio {value} (95 % interval {low} to {high})").format(
        value=number(figures["risk_ratio"], 3), low=number(low, 3), high=number(high, 3)))  # fmt: skip
    low, high = figures["adjusted_odds_ratio_interval"]
    out.print(_("Odds ratio, adjusted for age and risk score, {value} (95 % interval {low} to {high})").format(
        value=number(figures["adjusted_odds_ratio"], 3), low=number(low, 3), high=number(high, 3)))  # fmt: skip
    out.print(_("Counted: {sites}").format(sites=", ".join(names[site] for site in figures["sites"])))
    for site, reason in figures["held_back"].items():
        out.print("  " + _("Held back: {site} – {reason}").format(site=names[site], reason=_(reason)), soft_wrap=True)
    if found.effect.report["effect"]["by_site_reason"]:
        out.print(_("Figures of single hospitals are not shown beside the total of {count}: {reason}").format(
            count=len(figures["sites"]), reason=_(found.effect.report["effect"]["by_site_reason"])), soft_wrap=True)  # fmt: skip
    out.print(_("Largest difference from the pooled regression (statsmodels): {value}").format(
        value=f"{figures['difference_from_pooled']:.1e}"))  # fmt: skip
    _show_prediction(found, lang)
    feedback = found.fed_back
    out.print()
    out.print(f"[bold]{_('The model back at a hospital whose patients helped to fit it')}[/bold] · {names['kentucky']}")
    out.print("  " + _("{count} patients predicted; {joined} outcomes fed back; observed {observed:.0f}, expected {expected:.1f}").format(
        count=found.applied.predicted, joined=feedback.joined, observed=feedback.observed, expected=feedback.expected))  # fmt: skip
    out.print("  " + feedback.risk.text(_), soft_wrap=True)
    out.print()
    out.print(
        _("Every ledger holds: {rows} rows, none edited, removed or cut off").format(
            rows=sum(found.ledger_rows.values())
        )
    )
    out.print(_("Reports:"))
    for path in figures["reports"]:
        out.print(f"  {path}", soft_wrap=True, markup=False)


def _show_prediction(found: "Walkthrough", lang: str) -> None:
    _ = translator(lang)
    names = {site["name"]: site["title"][lang] for site in found.risk.report["sites"]}
    out.print()
    table = Table(title=_("Who is at risk? AUC, cross-validated"), title_justify="left", show_edge=False)
    for heading in (_("Method"), _("Where"), _("Local"), _("Federated"), _("Pooled")):
        table.add_column(heading)
    for method in found.risk.report["prediction"]["methods"]:
        cells: dict[Any, dict[str, str]] = {}
        for result in method["results"]:
            shown = result["auc"] is not None
            text = (
                f"{result['auc']:.2f} ({result['auc_low']:.2f}–{result['auc_high']:.2f})" if shown else _("not shown")
            )
            cells.setdefault(result["site"], {})[result["where"]] = text
        for site in (None, *[site for site in cells if site]):
            row = cells[site]
            where = names[site] if site else _("all, within hospitals")
            table.add_row(
                _("exact") if method["name"] == "main" else method["use"],
                where,
                row.get("local", ""),
                row["federated"],
                row["pooled"],
            )
    out.print(table)
    if not any(method["joining"] for method in found.risk.report["prediction"]["methods"]):
        out.print(_("Whether joining helps one hospital is not shown beside the total of {count}: {reason}").format(
            count=sum(site["counted"] for site in found.risk.report["sites"]), reason=_(SITES_SUBTRACT)), soft_wrap=True)  # fmt: skip
        return
    verdicts = {row["verdict"] for method in found.risk.report["prediction"]["methods"] for row in method["joining"]}
    if verdicts <= {"no clear gain", "not shown"}:
        out.print(_("Joining shows no clear gain for any hospital: age and the risk score rank patients little better than chance."),
                  soft_wrap=True)  # fmt: skip
    else:
        verdicts_shown = {
            "gain": _("gain"),
            "loss": _("loss"),
            "no clear gain": _("no clear gain"),
            "not shown": _("not shown"),
        }
        for method in found.risk.report["prediction"]["methods"]:
            for row in method["joining"]:
                out.print(f"  {method['name']}, {row['site']}: {verdicts_shown[row['verdict']]}")
