"""From a site's sources to its study table. Ibis and DuckDB are used here and nowhere else.

Names are loaded when they are first asked for: who only holds tables in memory doesn't wait for Ibis.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medfed.data.build import build_table, check
    from medfed.data.quality import Quality
    from medfed.data.site_folder import SiteFolder, init_site, load_site
    from medfed.data.stored import open_table
    from medfed.data.table import StudyTable, View

_HOMES = {
    "build_table": "build",
    "check": "build",
    "Quality": "quality",
    "SiteFolder": "site_folder",
    "init_site": "site_folder",
    "load_site": "site_folder",
    "open_table": "stored",
    "StudyTable": "table",
    "View": "table",
}

__all__ = [
    "Quality",
    "SiteFolder",
    "StudyTable",
    "View",
    "build_table",
    "check",
    "init_site",
    "load_site",
    "open_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
