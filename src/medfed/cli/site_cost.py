"""What a study may cost a site's budget, in the words of the commands that an officer reads before approving it."""

from contextlib import closing

from medfed.cli.console import out, say
from medfed.data.site_folder import SiteFolder
from medfed.evaluation.study_run import StudyRun
from medfed.federation.budget import charged_events
from medfed.federation.cost import Outlook, outlook
from medfed.federation.ledger import open_store
from medfed.federation.policy import Policy
from medfed.language import translator
from medfed.study import Study


def outlook_at(site: SiteFolder, study: Study, policy: Policy, *, study_budget: float | None = None) -> Outlook | None:
    """How far the site's budget carries a whole run, after all that its ledger holds. Nothing is written."""
    if study.privacy.epsilon is None:
        return None
    spent = {}
    if site.ledger_path.exists():
        with closing(open_store(site.ledger_path, "call")) as db:
            spent = charged_events(db, site.name)
    return outlook(study, StudyRun(study), policy, spent, study_budget=study_budget)


def show_outlook(found: Outlook, lang: str) -> None:
    """What was spent, what a whole run would make of it, and a warning where it can't be finished."""
    _ = translator(lang)
    figures = {
        "epsilon": f"{found.epsilon:g}", "study_delta": f"{found.study_delta:g}", "spent": f"{found.spent:.4g}", "after": f"{found.after:.4g}",
        "budget": f"{found.budget:g}", "delta": f"{found.delta:g}", "limit": f"{found.study_limit:g}",
        "left": f"{found.left:.3g}", "answers": found.answers, "answered": found.answered,
    }  # fmt: skip
    say(_("A run spends epsilon {epsilon} at delta {study_delta}. The site has spent {spent} of its budget of {budget} over all studies (at delta {delta}); with the whole run it would be {after}."),
        **figures)  # fmt: skip
    if found.left > 0:
        say(_("Left of the budget: a further study may spend up to about epsilon {left} of its own."), **figures)
    else:
        say(_("Nothing is left for a further study; the budget stands in policy.yaml."))
    if found.holds:
        return
    warning = (
        _("Warning: this study may spend epsilon {limit} here, with what it has spent already, and a whole run needs more: it would be refused after {answered} of its {answers} noisy answers, and what these cost stays spent. For a further run approve with a larger --budget.")
        if found.by_study
        else _("Warning: the budget can't pay for a whole run: it would be refused after {answered} of its {answers} noisy answers, and what these cost stays spent. Raise `budget` in policy.yaml, or ask for a study with a smaller epsilon.")
    )  # fmt: skip
    out.print(warning.format(**figures), style="bold yellow", markup=False, soft_wrap=True)
