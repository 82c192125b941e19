"""Signals, as the hook of one process sees them. tests/test_train_net.py sends real ones."""

import signal
import threading
from types import SimpleNamespace

import pytest

from aid_d2.engine import interrupt
from aid_d2.engine.interrupt import SIGNALS, SaveOnSignal


@pytest.fixture
def hook():
    hook, saved = SaveOnSignal(), []
    checkpointer = SimpleNamespace(save=lambda name, iteration: saved.append((name, iteration)))
    hook.trainer = SimpleNamespace(iter=7, checkpointer=checkpointer)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield hook, saved
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_signal_to_another_process_stops_this_one_too(hook, monkeypatch):
    """After the same step, or it would wait for the other one."""
    hook, saved = hook
    hook.before_train()
    hook.after_step()
    monkeypatch.setattr(interrupt.comm, "all_gather", lambda own: [own, signal.SIGTERM])
    with pytest.raises(SystemExit) as ended:
        hook.after_step()
    hook.after_train()
    assert ended.value.code == 143 and saved == [("model_0000007", 7)]


def test_training_in_a_thread(hook):
    """Python gives signals to the main thread alone."""
    hook, saved = hook
    failed = []

    def train():
        try:
            hook.before_train()
            hook.after_step()
            hook.after_train()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failed and not saved


def test_nothing_is_restored_that_was_not_taken(hook):
    """An earlier hook has failed before this one began."""
    hook[0].after_train()
