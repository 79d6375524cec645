"""Checks that every relative link in the project's Markdown files leads somewhere. Run by `make check`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")


def broken_links() -> list[str]:
    found = []
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
                found.append(f"{page.relative_to(ROOT)}: {target} does not exist")
    return found


if __name__ == "__main__":
    problems = broken_links()
    print("\n".join(problems) or "all links lead somewhere")
    sys.exit(bool(problems))
