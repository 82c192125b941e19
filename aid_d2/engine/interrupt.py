"""Ctrl-C and SIGTERM end a training with a checkpoint."""

import signal

from detectron2.engine import HookBase

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveOnSignal(HookBase):
    """Save a checkpoint after the step in which a signal came, and exit with 128 + its number.

    A second signal acts as it would without the hook.
    """

    def before_train(self):
        self._received = None
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def after_step(self):
        if self._received is not None:
            iteration = self.trainer.iter
            self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            raise SystemExit(128 + self._received)

    def after_train(self):
        self._restore()

    def _receive(self, number, frame):
        self._received = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
