"""How a stage of the PoC is declared, obtained from the store, and told to the person who waits.

@stage("data")
def prepare(spec: Spec, store: Store, log: StageLog) -> Artefact:
    key = data.key(spec)
    return obtain(log, "data", store, "data", key, lambda folder: data.build(spec, folder))
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from featkd.result import Stage
from featkd.store import Artefact, Store


def stage(name: str) -> Callable[[Callable], Callable]:
    """Declare a function as a Prefect task. The store is the cache, so Prefect's is off; nothing is retried."""
    return task(name=name, cache_policy=NO_CACHE, retries=0, persist_result=False)


def say(line: str = "") -> None:
    """A line for the person who waits: on stderr, for stdout carries the JSON document."""
    print(line, file=sys.stderr, flush=True)


class StageLog:
    """One console line per stage; `stages` goes into the result."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def add(self, name: str, state: str, seconds: float, digest: str | None = None, note: str = "") -> Stage:
        """`state`: made, reused, skipped, failed."""
        entry = Stage(name=name, state=state, seconds=round(seconds, 3), digest=digest, note=note)
        self.stages.append(entry)
        say(_line(entry))
        return entry

    @contextmanager
    def timed(self, name: str, digest: str | None = None) -> Iterator[dict[str, Any]]:
        """Time a stage that keeps nothing in the store. Yields {"state", "digest", "note"}, to be changed inside."""
        entry: dict[str, Any] = {"state": "made", "digest": digest, "note": ""}
        start = time.monotonic()
        try:
            yield entry
        except BaseException:
            self.add(name, "failed", time.monotonic() - start)
            raise
        self.add(name, seconds=time.monotonic() - start, **entry)


def _line(entry: Stage) -> str:
    seconds = f"{entry.seconds:.1f} s" if entry.state == "made" or entry.seconds >= 1 else ""
    digest = f"{entry.digest[:12]}…" if entry.digest else ""
    return f"{entry.name:<24} {entry.state:<8} {seconds:>9}  {digest:<13}  {entry.note}".rstrip()


def obtain(
    log: StageLog,
    name: str,
    store: Store,
    kind: str,
    key: str,
    build: Callable[[Path], dict[str, Any]],
    note: str | Callable[[Artefact], str] = "",
) -> Artefact:
    """The artefact from the store, or made now. Says and records which, and how long it took."""
    built = False

    def counted(folder: Path) -> dict[str, Any]:
        nonlocal built
        built = True
        return build(folder)

    with log.timed(name, digest=key) as entry:
        artefact = store.get(kind, key) or store.make(kind, key, counted)
        entry["state"] = "made" if built else "reused"
        entry["note"] = note(artefact) if callable(note) else note
    return artefact
