"""Processes that train together: none waits in silence, and none for ever for one that will not come.

torch ends a wait after `trainer.ddp_timeout` (half an hour), and says neither who is late nor where. Here every process
notes in the store that torch's processes share what it is doing, so that one which waits can say for whom.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from transformers import TrainerCallback

from prefopt.errors import TrainingError, first_line

logger = logging.getLogger(__name__)

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "barrier", "gather", "scatter")
BACKWARD = "_engine_run_backward"  # where autograd's C++ begins, and in it DDP's exchange of gradients
# What an exchange says that failed: gloo, NCCL, sockets, torch's store.
FAILURES = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting", "socket",
            "store->")  # fmt: skip
BEAT_SECONDS = 5.0  # between two notes
LOOK_SECONDS = 20.0  # at most between two looks at the others' notes, while waiting
FINISHED = "it has finished"  # last words of one that nobody waits for
LINGER_SECONDS = 10.0
IDLE = 0.02  # share of a core below which a thread waits
_entered = itertools.count()


@dataclass(frozen=True)
class Note:
    """What a process says of itself: events so far, its place in words, the collective that it waits in, if any."""

    count: int = 0
    at: str = "before training"
    waits: str | None = None
    beat: int = 0
    pid: int = 0
    host: str = ""
    machine: str = ""
    left: str | None = None  # its last words: it is gone, or about to go
    because: int | None = None  # the rank that it left because of


class Together(TrainerCallback):
    """Watches, while entered as a context, over processes that train together; over one alone there is nothing to.

    A process that has waited for the others for `patience` seconds says so: in which collective, at which step and
    micro-batch, and which ranks have not arrived (the lowest rank that waits speaks for all of them). One that waits
    for a process which was killed, or which left with an error, ends with a `TrainingError` that names it.

    Args:
        say: called with a line for a person.
        patience: seconds.
        silence: seconds without a note after which a process on another machine counts as killed; one on this machine
            is looked up.
    """

    def __init__(
        self, say: Callable[[str], None] = logger.warning, *, patience: float = 60.0, silence: float = 40.0
    ) -> None:
        self.say, self.patience, self.silence = say, patience, silence
        self._who = Note(pid=os.getpid(), host=platform.node(), machine=_machine())
        self._count, self._at = 0, self._who.at  # written by what trains alone
        self._waits: str | None = None  # this and the beat by the watch alone
        self._beat = 0
        self._since = time.monotonic()  # of the last event
        self._micro = 0
        self._heard: dict[int, tuple[int, float]] = {}  # rank -> its last beat, and when that was new
        self._store: Any = None
        self._closed = threading.Event()

    # ---- what happens, as transformers tells it

    @property
    def _mine(self) -> Note:
        return replace(self._who, count=self._count, at=self._at, waits=self._waits, beat=self._beat)

    def _note(self, at: str) -> None:
        self._count, self._at, self._since = self._count + 1, at, time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro = 1
        self._note(f"step {state.global_step + 1}, micro-batch 1")

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro += 1
        self._note(f"step {state.global_step + 1}, micro-batch {self._micro}")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(f"step {state.global_step + 1}, its update")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro = 0
        self._note(f"after step {state.global_step}")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro += 1
        self._note(f"after step {state.global_step}, batch {self._micro + 1} of an evaluation")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._micro = 0
        self._note(f"after step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(f"after step {state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note("after training")

    # ---- the watch

    def __enter__(self) -> Together:
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
            # A connection of its own: a call on the other one waits while that one waits. A name of its own: one
            # program may train several times.
            store: Any = _get_default_store()
            self._store = PrefixStore(f"prefopt/{next(_entered)}", store.clone())
            self._write(self._mine)
            self._main = threading.current_thread()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._store is None:
            return
        self._closed.set()
        cause, why = None, FINISHED if error is None else first_line(error)[:300]
        failed = next((e for e in (error, getattr(error, "__cause__", None)) if _of_exchange(e)), None)
        if failed is not None:
            cause, why = self._cause(failed)
        try:
            self._write(replace(self._mine, left=why, because=cause))
        except Exception:  # the process that kept the store is gone
            logger.debug("no last words", exc_info=True)
        if error is not None and self.rank == 0:
            self._linger()
        self._store = None
        if failed is not None:
            raise TrainingError(why) from error

    def _linger(self) -> None:
        """Without a launcher that keeps the store the first process does: let the others read why they cannot go on."""
        end = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < end:
            try:
                others = self._others()
            except Exception:
                return
            if all(n.left is not None or self._is_dead(r, n) for r, n in others.items()):
                return
            time.sleep(0.25)

    def _watch(self) -> None:
        """Notes, and looks at the others' notes while this process waits. Runs in a thread."""
        looked = told = 0.0  # seconds waited at the last of each
        used, before = 0.0, time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            waited = now - self._since
            total = _cpu_seconds(self._main)
            idle, used, before = (total - used) < IDLE * (now - before), total, now
            if waited < BEAT_SECONDS:
                looked = told = 0.0
            self._waits = _collective(self._main, idle) if waited >= BEAT_SECONDS else None
            self._beat += 1
            try:
                self._write(self._mine)
                if waited < looked + min(max(looked, 2 * BEAT_SECONDS), LOOK_SECONDS):
                    continue
                looked, others = waited, self._others()
                gone = self._gone(others)
            except Exception as error:
                gone, others = self._without_store(error), {}
            if gone is not None:
                self._leave(gone)
            elif self._waits and waited >= max(self.patience, 2 * told):
                told = waited
                if not any(note.waits and rank < self.rank for rank, note in others.items()):
                    self.say(f"{self._waiting(waited)}; {self._late(others)}")

    def _leave(self, gone: tuple[int, str]) -> None:
        """End the process if its wait, which is in vain, does not end by itself soon."""
        if self._closed.wait(2 * BEAT_SECONDS):
            return
        print(f"prefopt: {self._in_vain(gone)}", file=sys.stderr, flush=True)
        os._exit(TrainingError.exit_code)

    # ---- words

    def _waiting(self, waited: float) -> str:
        return f"rank {self.rank} of {self.processes} waits in {self._mine.waits} ({self._mine.at}) for {waited:.0f} s"

    def _late(self, others: dict[int, Note]) -> str:
        """Who has not come to where this process waits."""
        mine = self._mine
        late = {r: n for r, n in others.items() if n.waits is None or n.count < mine.count}
        if not late:
            elsewhere = [f"rank {r} in {n.waits}" for r, n in others.items() if n.waits != mine.waits]
            return f"the others wait as well{', but ' if elsewhere else ''}{', '.join(elsewhere[:4])}"
        places = [f"rank {r} is {'in ' + n.waits + ', ' if n.waits else ''}at {n.at}" for r, n in late.items()]
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        return f"{_ranks(list(late))} not arrived: {'; '.join(places[:4])}{more}"

    def _in_vain(self, gone: tuple[int, str]) -> str:
        return (f"rank {self.rank} of {self.processes} cannot go on ({self._mine.at}): rank {gone[0]} {gone[1]}; "
                "start the same command again to go on from the last checkpoint")  # fmt: skip

    def _cause(self, error: BaseException) -> tuple[int | None, str]:
        """(rank, message) of a failed exchange: a process that died has often closed its connections just now."""
        others: dict[int, Note] = {}
        for _ in range(20):
            try:
                others = self._others()
                gone = self._gone(others)
            except Exception as lost:
                gone = self._without_store(lost)
            if gone is not None:
                return gone[0], self._in_vain(gone)
            if "timed out" in str(error).lower():
                break
            time.sleep(0.25)
        late = f"; {self._late(others)}" if others else ""
        said = first_line(error)[:300]
        return None, f"rank {self.rank} of {self.processes}: an exchange failed ({self._mine.at}): {said}{late}"

    # ---- the others

    def _write(self, note: Note) -> None:
        self._store.set(str(self.rank), json.dumps(asdict(note)))

    def _others(self) -> dict[int, Note]:
        """The last notes of all that have made one."""
        keys = {r: str(r) for r in range(self.processes) if r != self.rank}
        if not self._store.check(list(keys.values())):
            keys = {r: key for r, key in keys.items() if self._store.check([key])}
        texts = self._store.multi_get(list(keys.values())) if keys else []
        return {rank: Note(**json.loads(text)) for rank, text in zip(keys, texts, strict=True)}

    def _gone(self, others: dict[int, Note]) -> tuple[int, str] | None:
        """(rank, what became of it) of a process that is not there any more; of several, of the one to blame."""
        for rank, note in others.items():
            if note.left is None and self._is_dead(rank, note):
                return rank, f"(process {note.pid} on {note.host}, last {note.at}) was killed or has crashed"
        left = [(n.because is not None, rank) for rank, n in others.items() if n.left not in (None, FINISHED)]
        return next(((rank, f"has left: {others[rank].left}") for _, rank in sorted(left)), None)

    def _is_dead(self, rank: int, note: Note) -> bool:
        if note.machine == self._mine.machine:
            try:
                return bool(psutil.Process(note.pid).status() == psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                return True
        beat, when = self._heard.get(rank, (-1, 0.0))
        if beat != note.beat:
            self._heard[rank] = note.beat, time.monotonic()
            return False
        return time.monotonic() - when > self.silence

    def _without_store(self, error: Exception) -> tuple[int, str]:
        return 0, f"or the launcher, which keeps what the processes share, has gone ({first_line(error)[:300]})"


def _of_exchange(error: Any) -> bool:
    """Whether an exchange between processes failed."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in FAILURES)


def _collective(thread: threading.Thread, idle: bool) -> str | None:
    """The collective that a thread is in, by its innermost frames; one that works in a backward is in none."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        name = frame.f_code.co_name
        if re.search(r"torch\W.*distributed", frame.f_code.co_filename):
            found = next((c for c in COLLECTIVES if c in name), None)
            if found is not None:
                return found
        if name == BACKWARD and idle:
            return "all_reduce"
        frame = frame.f_back
    return None


def _machine() -> str:
    """Where process ids mean the same: two containers of one machine have their own."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{platform.node()} {uuid.getnode()}"


def _cpu_seconds(thread: threading.Thread) -> float:
    """That a thread has worked."""
    times = (t for t in psutil.Process().threads() if t.id == thread.native_id)
    return next((float(t.user_time + t.system_time) for t in times), 0.0)


def _ranks(ranks: Sequence[int]) -> str:
    few = ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")
    return f"rank {few} has" if len(ranks) == 1 else f"ranks {few} have"
