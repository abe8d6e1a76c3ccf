"""A live line for long work, fed by the events of a child process (featkd/child.py).

with Progress("teacher") as progress:
    run_child("featkd.distill.worker", job, workdir, on_event=progress)
"""

import shutil
import sys
import time
from typing import Any, TextIO

QUIET_PERIOD_S = 10.0
TTY_PERIOD_S = 0.2


class Progress:
    """Called with {"event": "progress", "step", "steps", "loss"?, "tokens_per_s"?, "note"?}; others are ignored.

    On a terminal one line that is overwritten; elsewhere one line every 10 s.
    """

    def __init__(self, name: str, stream: TextIO | None = None):
        self.name = name
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.start = self.shown = time.monotonic()
        self.first_step: float | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.live:
            self._write("\r\x1b[K")

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("event") != "progress":
            return
        now = time.monotonic()
        if self.first_step is None:
            # a resumed or warming-up child: the rate counts from what we saw first
            self.first_step, self.start = event["step"], now
        last = event["step"] >= event["steps"]
        if now - self.shown < (TTY_PERIOD_S if self.live else QUIET_PERIOD_S) and not (last and self.live):
            return
        self.shown = now
        line = self._line(event, now)
        if self.live:
            self._write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        else:
            self._write(line + "\n")

    def _line(self, event: dict[str, Any], now: float) -> str:
        step, steps = event["step"], event["steps"]
        parts = [f"{self.name:<24} {step:>6}/{steps} {100 * step / max(steps, 1):4.0f} %"]
        if event.get("loss") is not None:
            parts.append(f"loss {event['loss']:.3f}")
        if event.get("tokens_per_s"):
            parts.append(f"{event['tokens_per_s']:,.0f} tokens/s")
        if step > self.first_step:
            left = (now - self.start) / (step - self.first_step) * (steps - step)
            parts.append(f"{left:.0f} s left")
        if event.get("note"):
            parts.append(str(event["note"]))
        return "  ".join(parts)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
