"""medfed demo-network: the demo between processes that are killed, over mutual TLS, with the same bits in the end."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from medfed.cli.console import AsJson, Language, err, out, print_json
from medfed.cli.network import need_network
from medfed.errors import MedfedError
from medfed.language import translator


def demo_network(
    folder: Annotated[Path, typer.Option(help="Where to put the coordinator, the four sites and the reports.")] = Path(
        "demo-network-output"
    ),
    heart: Annotated[
        Path | None,
        typer.Option(help="Folder with the heart data (docs/heart-disease.md): run it too.", envvar="MEDFED_DATA"),
    ] = None,
    lang: Language = "en",
    json: AsJson = False,
) -> None:
    """A coordinator and four hospitals as separate processes over mutual TLS; one of each is killed in the middle.

    Run by the administrator of a machine, every party is a system user of its own. The numbers are compared, bit for bit,
    with those of the same study in one process.
    """
    need_network()
    from medfed.applications.network.walkthrough import Said, walk

    _ = translator(lang)
    count = 0

    def say(said: Said) -> None:
        nonlocal count
        count += 1
        if not json:
            err.print(f"[bold cyan]{count}[/bold cyan] [bold]{_(said.title)}[/bold]")
            for line in said.lines:
                err.print(f"    {_(line)}", markup=False, soft_wrap=True)

    found = walk(folder.resolve(), say, heart=heart, lang=lang)
    if json:
        print_json(found)
    else:
        table = Table(show_edge=False)
        for heading in (
            _("Study"),
            _("Counted"),
            _("Killed"),
            _("Seconds"),
            _("Same bits as in one process"),
            _("Report"),
        ):
            table.add_column(heading, overflow="fold")
        for one in found.compared:
            table.add_row(one.study, ", ".join(one.sites), str(len(one.faults) and 2), f"{one.seconds:.1f}",
                          _("yes") if one.same else _("no"), str(one.report))  # fmt: skip
        out.print(table)
        out.print(_("System users: {users}. Left behind after the stop: {left}").format(
            users=found.users, left=", ".join(found.left) or _("nothing")))  # fmt: skip
    if found.left or not all(one.same for one in found.compared):
        raise MedfedError("the network demo did not end as it should: see above")
