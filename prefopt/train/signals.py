"""SIGTERM and Ctrl-C: the run saves what it has and leaves with exit code 75; a second Ctrl-C leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from prefopt.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EvaluationCut(Stopped):
    """A signal came in the middle of an evaluation in training; a resume makes it again."""


class Signals:
    """Ends a run at the next safe place after a signal, while entered as a context and given to `train` as a callback.

    In training a safe place is the end of a step, or the next batch of an evaluation: a checkpoint is written there.
    Anywhere else it is at once. Both ends are a `Stopped` error. Processes that train together stop at the same step,
    whichever of them got the signal.

    Only a main thread can be sent signals; elsewhere this does nothing.

    Args:
        say: called with a line for the user when the signal comes.
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
            raise Stopped(f"stopped by {self.received}: {kept}; the same command resumes from here")

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """Lets a block end before a signal does anything."""
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1

    @property
    def patient(self) -> bool:
        """Whether a signal waits for a safe place now."""
        return self._patient > 0

    def anywhere(self, accelerator: Accelerator) -> bool:
        """Whether any process got a signal; all of them ask at the same place, and learn of it there."""
        if accelerator.num_processes == 1:
            return self.received is not None
        if self.received:
            accelerator.set_trigger()
        if not accelerator.check_trigger():
            return False
        self.received = next(name for name in gather_object([self.received]) if name)
        return True


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Hold SIGTERM back while loader workers are started, in them until `shield_worker` takes over.

    One that comes in between would end the worker, and with it the run.
    """
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
