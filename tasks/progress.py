"""A live line for long work, and a progress artifact on Prefect's page, fed by the events of a child process.

with Progress("teacher") as progress:
    run_child("featkd.distill.worker", job, workdir, on_event=progress)
"""

import logging
import re
import shutil
import sys
import time
from typing import Any, TextIO

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

QUIET_PERIOD_S = 10.0
TTY_PERIOD_S = 0.2


class Progress:
    """Called with {"event": "progress", "step", "steps", "loss"?, "tokens_per_s"?, "note"?}, and before the first of
    them with {"event": "estimate", "seconds"}; others are ignored.

    On a terminal one line that is overwritten; elsewhere one line every 10 s. The artifact follows every 10 s, where
    there is a task run that it can belong to.
    """

    def __init__(self, name: str, stream: TextIO | None = None):
        self.name = name
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.start = self.shown = time.monotonic()
        self.first_step: float | None = None
        self.artifact: Any = None
        self.published = self.start

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.live:
            self._write("\r\x1b[K")

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("event") == "estimate":
            self._write(f"{self.name:<12} about {_duration(event['seconds'])} in all on this machine\n")
        if event.get("event") != "progress":
            return
        now = time.monotonic()
        if self.first_step is None:
            # a resumed or warming-up child: the rate counts from what we saw first
            self.first_step, self.start = event["step"], now
        last = event["step"] >= event["steps"]
        if now - self.published >= QUIET_PERIOD_S or (last and self.artifact):
            self.published = now
            self._publish(event, now)
        if now - self.shown < (TTY_PERIOD_S if self.live else QUIET_PERIOD_S) and not (last and self.live):
            return
        self.shown = now
        line = self._line(event, now)
        if self.live:
            self._write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        else:
            self._write(line + "\n")

    def _publish(self, event: dict[str, Any], now: float) -> None:
        """A server that does not answer is no reason to end the work: the line on the terminal goes on."""
        if not TaskRunContext.get():
            return
        percent, line = 100 * event["step"] / max(event["steps"], 1), self._line(event, now)
        try:
            if self.artifact is None:
                key = re.sub("[^a-z0-9]+", "-", self.name.lower())
                self.artifact = create_progress_artifact(percent, key=key, description=line)
            else:
                update_progress_artifact(self.artifact, percent, description=line)
        except Exception as error:  # whatever its client raises
            logging.getLogger(__name__).debug("no progress artifact: %s", error)

    def _line(self, event: dict[str, Any], now: float) -> str:
        step, steps = event["step"], event["steps"]
        parts = [f"{self.name:<12} {step:>6}/{steps} {100 * step / max(steps, 1):4.0f} %"]
        if event.get("loss") is not None:
            parts.append(f"loss {event['loss']:.3f}")
        if event.get("tokens_per_s"):
            parts.append(f"{event['tokens_per_s']:,.0f} tokens/s")
        if step > self.first_step:
            left = (now - self.start) / (step - self.first_step) * (steps - step)
            parts.append(f"{_duration(left)} left")
        if event.get("note"):
            parts.append(str(event["note"]))
        return "  ".join(parts)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _duration(seconds: float) -> str:
    """In the unit that a reader would choose."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
