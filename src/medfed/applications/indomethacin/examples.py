"""Where the example studies lie: in the source tree, or inside the installed package."""

from pathlib import Path

import medfed
from medfed.errors import StudyError


def example(study: str) -> Path:
    """The folder of an example study ("indomethacin", "ercp-risk").

    Raises StudyError if neither the source tree nor the package holds it.
    """
    package = Path(medfed.__file__).parent
    for folder in (package / "studies", package.parents[1] / "studies"):
        if (folder / study / "study.yaml").is_file():
            return folder / study
    raise StudyError(
        f"The example study '{study}' is not part of this installation; "
        "run from a clone of the project, or install the package anew."
    )
