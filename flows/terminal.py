"""What the commands of `featkd` share: their options, their exit statuses, and how they speak."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

DONE, FAILED, WRONG_INPUT, NO_GO, INTERRUPTED = 0, 1, 2, 3, 130

Root = Annotated[Path, typer.Option(help="The working folder; everything is kept in its .featkd folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, as in cost.price_per_hour=2.5.")]
Run = Annotated[str, typer.Argument(help="A run id, the folder of a run, or 'last'.")]


def home_of(root: Path) -> Path:
    return root.resolve() / ".featkd"


def say(line: str) -> None:
    """To people."""
    print(line, file=sys.stderr, flush=True)


def emit(document: Any) -> None:
    """To programs: the last line of stdout."""
    print(json.dumps(document, ensure_ascii=False), flush=True)
