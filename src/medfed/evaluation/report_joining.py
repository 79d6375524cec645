"""The part of a report that says whether joining helps each site: the federated model beside the site's own.

Verdicts are computed here, from intervals alone: where the interval of a difference includes 0 there is no clear
gain, and the report says so.
"""

from collections.abc import Sequence
from typing import Literal

from medfed.evaluation.charts import Estimated, Figure, dots
from medfed.evaluation.page import Block, Heading, Text
from medfed.evaluation.report_data import FEW_BINS, NOT_REPORTED, Joining, MethodShown
from medfed.evaluation.report_labels import Labels
from medfed.language import number

Verdict = Literal["gain", "loss", "no clear gain", "not shown"]


def verdict_of(joining: Joining) -> Verdict:
    """gain, loss, no clear gain, or not shown: from the interval of the difference alone."""
    if joining.difference is None or joining.low is None or joining.high is None:
        return "not shown"
    return "gain" if joining.low > 0 else "loss" if joining.high < 0 else "no clear gain"


def joining_clause(joining: Sequence[Joining], labels: Labels) -> str:
    """All sites' verdicts as part of a sentence; empty where nothing was compared."""
    _ = labels.translate
    if not joining:
        return ""
    verdicts = {row.site: verdict_of(row) for row in joining}
    gaining = [site for site, verdict in verdicts.items() if verdict == "gain"]
    losing = [site for site, verdict in verdicts.items() if verdict == "loss"]
    if gaining and losing:
        return _("joining helps {sites} and does worse than {others} alone").format(
            sites=labels.site_list(gaining), others=labels.site_list(losing)
        )
    if gaining:
        return _("joining clearly helps {sites}").format(sites=labels.site_list(gaining))
    if losing:
        return _("it does worse than the own model of {sites}").format(sites=labels.site_list(losing))
    if all(verdict == "not shown" for verdict in verdicts.values()):
        return _("whether joining helps can't be shown")
    if "not shown" in verdicts.values():
        return _("joining shows no clear gain where that can be judged")
    return _("joining shows no clear gain at any site")


def joining_blocks(methods: Sequence[MethodShown], labels: Labels) -> list[Block]:
    """A sentence and a figure for each method, or why there is none."""
    _ = labels.translate
    blocks: list[Block] = [Heading(_("Does joining help this site?"))]
    for method in methods:
        if method.joining:
            sentence = _("{method}: {verdict}.").format(
                method=labels.method(method.name, method.use), verdict=joining_clause(method.joining, labels)
            )
            blocks += [Text(sentence), _figure(method, labels)]
    if len(blocks) == 1:
        sentence = _("The comparison with each site's own model is {why}.")
        # Why each site's own figures are not there is said above, by site.
        held = any(method.not_shown for method in methods)
        blocks.append(
            Text(
                sentence.format(why=_("not shown, as no site's own figures are") if held else labels.why(NOT_REPORTED))
            )
        )
    return blocks


def _figure(method: MethodShown, labels: Labels) -> Figure:
    _ = labels.translate
    words = {
        "gain": _("gain"),
        "loss": _("loss"),
        "no clear gain": _("no clear gain"),
        "not shown": _("can't be said"),
    }
    groups = [
        (
            labels.site(row.site),
            [Estimated(words[verdict_of(row)], row.difference, row.low, row.high, why=_(row.reason or FEW_BINS))],
        )
        for row in sorted(method.joining, key=lambda row: labels.place(row.site))
    ]
    return dots(
        groups,
        title=_("Gain in AUC from joining: {method}").format(method=labels.method(method.name, method.use)),
        caption=_(
            "AUC of the federated model minus that of the site's own model, both on the site's rows. Where the interval "
            "includes 0 there is no clear gain."
        ),
        heads=(_("Site"), _("Verdict"), _("Difference in AUC (95% interval)")),
        reference=0.0,
        styles=tuple(words.values()),
        lang=labels.lang,
        form=lambda value: number(value, 3),
    )
