"""Curves in MLflow while a run trains. Training never waits for a tracking server and never fails because of one.

with Live(context, run_id) as live:
    train.distil(context, teacher, blocks, on_event=live)
    tracking.log(context, result, run_dir, live.end())
"""

import queue
import threading
from typing import Any

from tasks import plan, tracking
from tasks.context import Context
from tasks.stages import say

WAIT_S = 60
WAIT_AFTER_FAILURE_S = 10


class Live:
    """Called with the events of a training child. A thread of its own opens the run and adds each point of a curve.

    Left by an exception, the run that was opened is FAILED; after `end` it is for the caller to complete.
    """

    def __init__(self, context: Context, run_id: str):
        spec = context.spec
        self.opened: tracking.Opened | None = None
        self._late = False
        self._start = (context.home, run_id, spec.model_dump(mode="json"), spec.digest())
        self._points: queue.SimpleQueue[tuple[str, int, float] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow-live", daemon=True)
        self._names: dict[str, list[str]] = {"teacher": ["teacher"]}
        for made in spec.candidates():
            student = plan.student_name(made.arm, made.size, spec.seeds[0])
            self._names.setdefault(student, []).append(made.name)

    def __enter__(self) -> "Live":
        self._thread.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        if opened := self.end(WAIT_AFTER_FAILURE_S):
            tracking.abandon(opened)

    def __call__(self, event: dict[str, Any]) -> None:
        for student, loss in (event.get("validation_loss") or {}).items():
            for name in self._names.get(student, []):
                self._points.put((name, event["tokens"], loss))

    def end(self, wait_s: float = WAIT_S) -> tracking.Opened | None:
        """The run, with all points in; None where there is none, or the server takes too long."""
        self._points.put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._late = True
            return None
        opened, self.opened = self.opened, None
        return opened

    def _work(self) -> None:
        try:
            self.opened = opened = tracking.begin(*self._start)
            while point := self._points.get():
                tracking.add_point(opened, *point)
            if self._late:  # the run has been tracked without us
                tracking.abandon(opened)
                self.opened = None
        except Exception as error:  # whatever its client raises
            reason = str(error).partition("\n")[0][:300]
            say(f"mlflow: {reason}; the run goes on, and is tracked at its end")
