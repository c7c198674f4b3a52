"""What the benchmarks found, in a line each: copies the headlines of their pages into the README."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGES = (
    "start",
    "data",
    "step",
    "step-4-threads",
    "sweep",
    "depth",
    "limit",
    "instrument-1-thread",
    "instrument-4-threads",
)
"""The pages whose headlines the README shows, in its order."""

MARKED = re.compile(r"(?<=<!-- ratios -->\n).*(?=<!-- /ratios -->)", re.DOTALL)


def headline(page: str) -> str:
    """The quotation that a page begins with, in one line; nothing if it has none."""
    return " ".join(line.removeprefix("> ") for line in page.splitlines() if line.startswith("> "))


def listed(pages: Path) -> str:
    """Markdown: the headline of every page that is there, linked."""
    found = {path: headline(path.read_text()) for name in PAGES if (path := pages / f"{name}.md").is_file()}
    return "".join(f"- {line} [{path.stem}](benchmarks/results/{path.name})\n" for path, line in found.items() if line)


def main() -> None:
    """Writes the list into the README."""
    text = README.read_text(encoding="utf-8")
    if not MARKED.search(text):
        raise SystemExit(f"{README} lacks the lines <!-- ratios --> and <!-- /ratios -->")
    README.write_text(MARKED.sub(lambda _: f"\n{listed(HERE / 'results')}\n", text), encoding="utf-8")


if __name__ == "__main__":
    main()
