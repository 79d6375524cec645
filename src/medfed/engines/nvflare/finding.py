"""What a check before the first run finds: a state, a sentence, a remedy. And the limits that the checks go by."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from medfed.engines.nvflare.envelope import CLOCKS_APART_SECONDS
from medfed.engines.nvflare.parts import ALL_AT_MOST
from medfed.language import Translate

State = Literal["ok", "warning", "failed", "skipped"]
_TOLD = ("reason", "problem", "error")


def _(text: str) -> str:
    """Marks a sentence for the catalogue: it is put into the reader's language where it is shown."""
    return text


@dataclass(frozen=True)
class Finding:
    """One check's result. what, remedy: a sentence each, which ``values`` fill; remedy is "" where nothing is to do.

    What is told of a reason, a problem or an error may be a sentence of medfed's own, and is translated as well.
    """

    name: str
    state: State
    what: str
    remedy: str = ""
    values: Mapping[str, object] = field(default_factory=dict)

    def sentence(self, translate: Translate = str) -> str:
        return self._filled(self.what, translate)

    def advice(self, translate: Translate = str) -> str:
        return self._filled(self.remedy, translate)

    def _filled(self, text: str, translate: Translate) -> str:
        told = {name: translate(str(value)) for name, value in self.values.items() if name in _TOLD}
        return translate(text).format(**{**self.values, **told})


@dataclass(frozen=True)
class Limits:
    """patience: seconds for each thing that is waited for. Disk in bytes: under ``least`` is a failure, under ``wanted``
    a warning. soon_days: a certificate that ends earlier is a warning. Clocks in seconds."""

    patience: float = 5.0
    disk_least: int = 2**30
    disk_wanted: int = ALL_AT_MOST + 2 * 2**30  # what may come in at once, and room for the ledger
    soon_days: float = 14.0
    clock_warning: float = 30.0
    clock_most: float = CLOCKS_APART_SECONDS
    silence_most: float = 60.0
    step_patience: float = 60.0
    clock: Callable[[], float] = time.time
