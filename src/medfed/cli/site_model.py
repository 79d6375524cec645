"""medfed site apply, feedback and drift: a model at work in a hospital. Everything stays there."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from medfed.canonical import canonical_json
from medfed.cli.console import AsJson, Language, out, print_json
from medfed.data.site_folder import load_site
from medfed.evaluation.monitor import apply_model, feed_back, watch_inputs
from medfed.federation.ledger import append_event, open_store
from medfed.language import translator
from medfed.models.linear import load_model
from medfed.study import load_study

SiteFolderPath = Annotated[Path, typer.Argument(help="The site's folder (holds site.yaml).")]
StudyFile = Annotated[Path, typer.Argument(help="The study.yaml that the model came from.")]
ModelFile = Annotated[Path, typer.Argument(help="The model file that the coordinator sent.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``medfed site``."""
    app.command("apply")(apply)
    app.command("feedback")(feedback)
    app.command("drift")(drift)


def apply(
    folder: SiteFolderPath, study: StudyFile, model: ModelFile, lang: Language = "en", json: AsJson = False
) -> None:
    """Predict for the site's own patients and write the predictions here, with intervals and the model's hash.

    Where a value is missing, or outside what the model learned from, it abstains.
    """
    _ = translator(lang)
    site, loaded, fitted = load_site(folder), load_study(study), load_model(model)
    applied = apply_model(site, loaded, fitted)
    record = {"model": applied.model, "predicted": applied.predicted, "abstained": sum(applied.abstained.values())}
    with closing(open_store(site.ledger_path, "call")) as db:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        append_event(db, site.name, "prediction", loaded.hash, canonical_json(record).encode(), at=at)
    if json:
        print_json({"path": str(applied.path), **record, "reasons": applied.abstained})
        return
    out.print(
        _("{count} patients predicted, in {path}").format(count=applied.predicted, path=applied.path), soft_wrap=True
    )
    for reason, count in applied.abstained.items():
        out.print("  " + _("abstained for {count}: {reason}").format(count=count, reason=_(reason)), soft_wrap=True)


def feedback(
    folder: SiteFolderPath,
    study: StudyFile,
    model: ModelFile,
    outcomes: Annotated[Path, typer.Argument(help="Outcomes in the site's own dialect (CSV or Parquet).")],
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """Join outcomes to the model's predictions and say whether its risks are true here, or whether n is too small to tell."""
    _ = translator(lang)
    found = feed_back(load_site(folder), load_study(study), load_model(model), outcomes)
    if json:
        print_json(found.to_dict())
        return
    out.print(
        _("{count} outcomes joined to predictions, {others} without one").format(
            count=found.joined, others=found.unmatched
        )
    )
    out.print(
        _("Observed {observed:.0f}, expected {expected:.1f}: ratio {ratio:.2f} ({low:.2f} to {high:.2f})").format(
            observed=found.observed, expected=found.expected, ratio=found.ratio, low=found.low, high=found.high
        )
    )
    out.print(found.risk.text(_), soft_wrap=True)


def drift(
    folder: SiteFolderPath, study: StudyFile, model: ModelFile, lang: Language = "en", json: AsJson = False
) -> None:
    """Compare the inputs of today's source with those when the model was first applied here."""
    found = watch_inputs(load_site(folder), load_study(study), load_model(model))
    if json:
        print_json(found)
        return
    _ = translator(lang)
    for variable in found:
        out.print(variable.text(_), soft_wrap=True)
