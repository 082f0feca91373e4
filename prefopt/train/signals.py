"""SIGTERM and Ctrl-C: the run saves what it has and leaves with exit code 75; a second Ctrl-C leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback

from prefopt.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EvaluationCut(Stopped):
    """A signal came in the middle of an evaluation in training; a resume makes it again."""


class Signals(TrainerCallback):
    """Ends a run at the next safe place after a signal, while entered as a context.

    In training a safe place is the end of a step, or the next batch of an evaluation: a checkpoint is written there.
    Anywhere else it is at once. Both ends are a `Stopped` error. Processes that train together stop at the same step,
    whichever of them got the signal.

    Only a main thread can be sent signals; elsewhere this does nothing.

    Args:
        say: called with a line for a person, when the signal comes.
    """

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self.say = say
        self.received: str | None = None
        self._patient = 0  # how many blocks want to end by themselves
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        first, self.received = self.received is None, self.received or name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the second one is the operating system's
        if not first:
            return
        if self._patient:
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            self.say(f"{name}: finishing this step, then saving{again}")
        else:
            self.check()

    def check(self, kept: str = "nothing had to be saved") -> None:
        """Raise Stopped if a signal has come."""
        if self.received:
            raise Stopped(f"stopped by {self.received}: {kept}; the same command goes on from here")

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Lets a block end before a signal does anything."""
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1

    # ---- in training

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.check()
        self._patient += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anywhere(args):
            control.should_save = control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._patient and self._anywhere(args):
            raise EvaluationCut(f"stopped by {self.received} in an evaluation; the same command makes it again")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """transformers calls this also when it leaves an epoch in its middle."""
        if self.received and state.epoch % 1:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._patient -= 1
        self.check(f"checkpoint-{state.global_step} is saved")

    def _anywhere(self, args: Any) -> bool:
        """Whether any process got a signal; all of them learn of it at the same place."""
        if args.world_size == 1:
            return self.received is not None
        names = [name for name in gather_object([self.received]) if name]
        if names:
            self.received = names[0]
        return bool(names)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Holds SIGTERM back while loader workers are started, in them until `shield_worker` takes over: one that comes in
    between would end the worker, and with it the run."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_worker(_: int) -> None:
    """For a loader's worker: signals to the whole group are its parent's affair; only the parent may end it.

    A terminal sends Ctrl-C to every process, a batch system SIGTERM, and a worker that dies of it would take the step
    that its parent is finishing down with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what was inherited is the parent's
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while True:
            if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
