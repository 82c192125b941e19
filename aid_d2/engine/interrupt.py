"""Ctrl-C and SIGTERM end a training with a checkpoint."""

import signal
import threading

from detectron2.engine import HookBase
from detectron2.utils import comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveOnSignal(HookBase):
    """Save a checkpoint after the step in which a signal came to any of the processes, and exit
    with 128 + its number.

    The same signal once more acts as it would without the hook. Outside the main thread, where
    Python gives no signals, the hook does nothing.
    """

    def __init__(self):
        self._received: int | None = None
        self._saved = False
        self._previous: dict = {}

    def before_train(self):
        self._received, self._saved = None, False
        if threading.current_thread() is threading.main_thread():
            self._previous = {x: signal.signal(x, self._receive) for x in SIGNALS}

    def after_step(self):
        # All processes stop after the same step, or the others would wait for one that has gone.
        received = [x for x in comm.all_gather(self._received) if x is not None]
        if received:
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            self._saved = True
            comm.synchronize()  # one that ended earlier would have the others stopped
            raise SystemExit(128 + received[0])

    def after_train(self):
        for number in self._previous:
            self._restore(number)
        # A signal to a whole group of processes also ends the workers that load data, which may
        # stop the step with an error.
        if self._received is not None and not self._saved:
            self.trainer.save_progress()
            raise SystemExit(128 + self._received)

    def _receive(self, number, frame):
        self._received = number
        self._restore(number)
        for other in self._previous.keys() - {number}:
            signal.signal(other, signal.SIG_IGN)  # torch sends it when the parent has gone

    def _restore(self, number):
        handler = self._previous[number]
        # None: it was set by something else than Python.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
