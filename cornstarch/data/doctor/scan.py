"""5c. Many samples in worker processes: nothing that a sample raises, and none that dies, stops the others."""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from cornstarch.data.doctor.findings import Examiner, Seen, with_duplicates
from cornstarch.data.doctor.kinds import Finding
from cornstarch.errors import CornstarchError

_LARGEST = 16  # samples that a worker is given at once
_NONE_YET = -1


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was seen of a source.

    Attributes:
        seen: of each sample, in the order of their indices; those that repeat others say so.
        of: how many samples there were to look at.
        seconds: that it took.
        workers: processes.
    """

    seen: Sequence[Seen]
    of: int
    seconds: float
    workers: int

    @property
    def is_partial(self) -> bool:
        """Whether it was stopped before its end."""
        return len(self.seen) < self.of


def scan(
    examiner: Examiner, indices: Sequence[int], *, workers: int, progress: Callable[[int], None] | None = None
) -> Scan:
    """Look at samples. Ctrl-C ends it with what was seen so far.

    Args:
        examiner: of the source.
        indices: of the samples to look at.
        workers: processes; 0 looks at them here, where one that kills the process is not survived.
        progress: is told how many samples more are done.

    Returns:
        What was seen; the same whatever the number of workers, but for times.

    Raises:
        CornstarchError: if workers cannot be started.
    """
    started, seen = time.perf_counter(), list[Seen]()
    tell = progress or (lambda number: None)
    with suppress(KeyboardInterrupt):
        if workers == 0:
            for index in indices:
                seen.append(examiner(index))
                tell(1)
        else:
            _Pool(examiner, indices, workers, seen, tell).run()
    found = with_duplicates(seen)
    return Scan(seen=found, of=len(indices), seconds=time.perf_counter() - started, workers=workers)


@dataclass
class _Worker:
    """A process, what it was given, and a number that says at which sample it is."""

    process: Any
    connection: Connection
    at: Any
    given: list[int] = field(default_factory=list)


class _Pool:
    """Hands out samples to processes. Python's own pools give up, or wait for ever, once a process has died."""

    def __init__(
        self, examiner: Examiner, indices: Sequence[int], workers: int, seen: list[Seen], tell: Callable[[int], None]
    ) -> None:
        size = max(1, min(_LARGEST, len(indices) // (4 * workers)))
        self._queue = deque(list(indices[start : start + size]) for start in range(0, len(indices), size))
        self._examiner, self._number, self._seen, self._tell = examiner, workers, seen, tell
        self._context = multiprocessing.get_context()
        self._workers: list[_Worker] = []

    def run(self) -> None:
        try:
            for _ in range(min(self._number, len(self._queue))):
                self._start()
            while self._workers:
                for worker in self._ready():
                    self._receive(worker)
        finally:
            for worker in self._workers:
                worker.process.terminate()
                worker.connection.close()
            for worker in self._workers:
                worker.process.join()

    def _start(self) -> None:
        mine, theirs = self._context.Pipe()
        at = self._context.Value("q", _NONE_YET, lock=False)
        process = self._context.Process(target=_work, args=(self._examiner, theirs, at, os.getpid()), daemon=True)
        process.start()  # type: ignore[attr-defined]
        theirs.close()  # so that its end is seen here
        worker = _Worker(process, mine, at)
        self._workers.append(worker)
        self._give(worker)

    def _give(self, worker: _Worker) -> None:
        worker.given = self._queue.popleft() if self._queue else []
        with suppress(OSError):  # it has died, which is seen next
            worker.connection.send(worker.given)
        if not worker.given:
            self._workers.remove(worker)
            worker.process.join()
            worker.connection.close()

    def _ready(self) -> list[_Worker]:
        ready = wait([worker.connection for worker in self._workers])
        return [worker for worker in self._workers if worker.connection in ready]

    def _receive(self, worker: _Worker) -> None:
        try:
            found = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        self._seen.extend(found)
        self._tell(len(found))
        self._give(worker)

    def _bury(self, worker: _Worker) -> None:
        """A process has died: the sample that it was at did it, the others of its share are looked at again."""
        self._workers.remove(worker)
        worker.process.join()
        worker.connection.close()
        index, code = worker.at.value, worker.process.exitcode
        if index == _NONE_YET:
            raise CornstarchError(f"a worker ended with exit code {code} before it looked at a sample")
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        dead = Seen(index=index, name=self._examiner.name(index), findings=(Finding("crashed", f"it ended {how}"),))
        self._seen.append(dead)
        self._tell(1)
        rest = [other for other in worker.given if other != index]
        if rest:
            self._queue.appendleft(rest)
        if self._queue:
            self._start()


def _work(examiner: Examiner, connection: Connection, at: Any, parent: int) -> None:
    """What a worker does: look at what it is given until that is nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; what it does is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    while True:
        while not connection.poll(1.0):
            if os.getppid() != parent:  # killed: nobody would ever say that it is over
                return
        given = connection.recv()
        if not given:
            return
        found = []
        for index in given:
            at.value = index
            found.append(examiner(index))
        connection.send(found)
