"""`depthlab report`: the page, and the table of claims."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from depthlab import figures, runs
from depthlab.cli import experiments
from depthlab.config import ConfigError
from depthlab.runs.store import replacing

FIRST_LOOK = "quickstart"

CLAIMS = re.compile(r"(?<=<!-- claims -->\n).*(?=<!-- /claims -->)", re.DOTALL)
"""What `--claims` replaces."""


def report(options: Namespace) -> int:
    """Writes the page of all experiments that are drawn."""
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]}: depthlab report takes no settings; it shows what is drawn already")
    chapters = drawn(runs.results_root())
    path = Path(options.output) if options.output else runs.results_root() / "report.html"
    _write(path, figures.page(chapters))
    print(f"wrote {path}: {len(chapters)} figures, {sum(len(chapter.claims) for chapter in chapters)} claims")
    if options.claims:
        _replace_claims(Path(options.claims), figures.claims_table(evidence(chapters)))
    return 0


def drawn(root: Path) -> list[figures.Chapter]:
    """The experiments that have a folder in the results. Raises StoreError if there is none, or one is damaged."""
    names = [name for name in experiments.names() if (root / name / "readings.csv.gz").is_file()]
    if not names:
        raise runs.StoreError(f"nothing is drawn in {root}; train and draw first, such as: make quickstart")
    try:
        return [figures.chapter(root / name, experiments.script(name)) for name in names]
    except (OSError, ValueError) as error:
        raise runs.StoreError(f"cannot show what is in {root}: {error}") from error


def evidence(chapters: Sequence[figures.Chapter]) -> list[figures.Chapter]:
    """Those whose claims are told elsewhere too: all but the first look that every user draws."""
    return [chapter for chapter in chapters if chapter.name != FIRST_LOOK]


def _replace_claims(path: Path, table: str) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise runs.StoreError(f"cannot read {path}: {error.strerror}") from error
    if not CLAIMS.search(text):
        raise ConfigError(f"{path} lacks the lines <!-- claims --> and <!-- /claims -->, between which the table goes")
    _write(path, CLAIMS.sub(lambda _: f"\n{table}\n", text))
    print(f"wrote the claims into {path}")


def _write(path: Path, text: str) -> None:
    with replacing(path.absolute()) as temporary:
        temporary.write_text(text, encoding="utf-8")
