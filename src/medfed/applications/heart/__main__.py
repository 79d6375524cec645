"""Set up the four hospitals in a folder, ready for `medfed run`: python -m medfed.applications.heart DATA FOLDER"""

import sys
from pathlib import Path

from medfed.applications.heart.exports import SPLIT, build_and_approve, prepare, read_study
from medfed.applications.indomethacin.examples import example
from medfed.errors import MedfedError
from medfed.language import environment_language, translator


def main(data: Path, folder: Path) -> None:
    """Exports, mappings, policies and keys; each hospital builds its table and approves. Says what to run next."""
    sites = prepare(data, folder)
    for name in ["study", "flamby"] if list(data.rglob(SPLIT)) else ["study"]:
        for site in sites.values():
            build_and_approve(site, read_study(name))
        print(f"medfed run {example('heart-disease') / name}.yaml --consortium {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except MedfedError as problem:
        sys.exit(translator(environment_language())(str(problem)))
