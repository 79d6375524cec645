"""The page "What left each site": by site and step the kind of release, calls, values and bytes; approval and ledger."""

import re
from functools import cache

from medfed.errors import MedfedError
from medfed.evaluation.figure import Table
from medfed.evaluation.page import Block, Heading, Notice, Section, Tabled, Text
from medfed.evaluation.report_data import ReleaseShown
from medfed.evaluation.report_labels import Labels
from medfed.federation.packages import find_step
from medfed.language import byte_count, number
from medfed.sentences import meaning_of


def leaving_section(labels: Labels) -> Section:
    """For every invited site what left it in this run, by its own ledger."""
    _, data = labels.translate, labels.data
    blocks: list[Block] = [
        Text(
            _(
                "From the sites' own ledgers. A value is one number; a patient's row never leaves. Every release passed the site's "
                "policy, and is sealed in a chain of hashes that the site can check at any time with `medfed site verify`."
            )
        )
    ]
    if data.protection == "secure":
        masked = _(
            "Sums and counts left under masks that only the total over all counted sites takes off: of one site alone they are "
            "random numbers."
        )
        blocks.append(Text(masked))
    for site in data.sites:
        blocks.append(Heading(labels.text(site.title)))
        blocks += _site(site.name, labels)
    return Section("leaving", _("What left each site"), blocks, new_page=True)


def _site(name: str, labels: Labels) -> list[Block]:
    _, data = labels.translate, labels.data
    blocks: list[Block] = []
    approval = next((each for each in data.approvals if each.site == name), None)
    if approval is None:
        blocks.append(Text(_("This site has not approved the study.")))
    else:
        sentence = _("Approved the study {hash} until {until}").format(hash=approval.hash[:16], until=approval.until)
        if approval.table_version:
            sentence = _("{sentence}, with table version {version}").format(
                sentence=sentence, version=approval.table_version[:16]
            )
        blocks.append(Text(_("{sentence}.").format(sentence=sentence)))
    releases = [each for each in data.releases if each.site == name]
    if releases:
        blocks.append(_releases(releases, labels))
    else:
        blocks.append(Text(_("Nothing left this site in this run."), "verdict"))
    ledger = next((each for each in data.ledgers if each.site == name), None)
    if ledger is None:
        return blocks
    words = {"rows": number(ledger.rows, 0), "head": ledger.head[:16]}
    if not ledger.verified:
        warning = _(
            "The ledger does not hold: its rows are not those that were sealed. Last head known: row {rows}, {head}."
        )
        return [*blocks, Notice(warning.format(**words), "warning")]
    verified = _("Ledger verified: {rows} rows, none edited, removed or cut off; head {head}.").format(**words)
    if ledger.epsilon > 0:
        spent = _("Privacy spent: epsilon {epsilon}.").format(epsilon=number(ledger.epsilon, 3))
        verified = labels.joined(verified, spent)
    return [*blocks, Text(verified, "note")]


def _releases(releases: list[ReleaseShown], labels: Labels) -> Tabled:
    _ = labels.translate
    kinds = {"sum": _("sum"), "count": _("count"), "reply": _("figure of this site"), "update": _("model update")}
    rows = []
    for each in releases:
        meaning, found = _described(each.step)
        meaning, found = each.meaning or meaning, tuple(each.kinds) or found
        name = each.step.rpartition(".")[2].replace("_", " ")
        rows.append(
            (
                f"{name}: {_for_people(_(meaning))}" if meaning else name,
                _(", ").join(kinds.get(kind, kind) for kind in found) or "–",
                number(each.calls, 0),
                number(each.values, 0),
                number(each.values_per_patient, 2) if each.values_per_patient is not None else "–",
                byte_count(each.bytes),
            )
        )
    values = sum(each.calls * each.values for each in releases)
    total = (
        _("Together: {values} values").format(values=number(values, 0)), "", number(sum(each.calls for each in releases), 0), "", "",
        byte_count(sum(each.bytes for each in releases)),
    )  # fmt: skip
    columns = (_("Step"), _("Kind"), _("Calls"), _("Values a call"), _("Values a patient"), _("Bytes in all"))
    return Tabled("", Table(columns, (*rows, total)), total=True)


# Shapes of arrays, as "(p,)" or ": (arms, 2)", which a docstring needs and a reader of the page does not.
_SHAPE = re.compile(r":? ?\((?:\w|[ ,+*/]|\([^)]*\))*(?:,|, ?\d+|, p)\)(?: each)?")


def _for_people(meaning: str) -> str:
    return _SHAPE.sub("", meaning).replace("``", "").replace(",,", ",")


@cache
def _described(name: str) -> tuple[str, tuple[str, ...]]:
    """What a step does and which kinds it releases, from the installed package; nothing where it is not installed."""
    try:
        step = find_step(name)
    except MedfedError:
        return "", ()
    kinds = dict.fromkeys(type(declared).__name__.lower() for declared in step.releases.values())
    return meaning_of(step.function.__doc__), tuple(kinds)
