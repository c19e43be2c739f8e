"""4e. Steps of a stream: shuffled window by window; where it stands is where its window began, and how far in it."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from cornstarch.data.budgets import Budget, budget_of
from cornstarch.data.collation import Collator
from cornstarch.data.lengths import Window, windows
from cornstarch.data.loader import prepared
from cornstarch.data.steps import Policy, StepBatch
from cornstarch.data.streams import Streamed, StreamSource
from cornstarch.errors import ArgumentError, CornstarchError

State = dict[str, Any]
_BEGINNING: State = {"epoch": 0, "window": 0, "done": 0, "rows": 0, "stream": None}


class StreamBatches:
    """An endless iterator over a stream, which begins anew when it ends; the last step of an epoch may have fewer.

    Rows are read here, one after the other, and only what is done with them (decoding, tokenizing) is the workers'. So
    the order is the same with any number of them, and a state is of the stream alone.

    Args:
        source: the stream.
        collator: makes a batch of samples.
        batch_size: samples a step.
        micro_batch_size: samples that are in one batch.
        seed: of the order within a window.
        shuffle: within windows; otherwise the stream's own order.
        workers: processes that prepare batches ahead; 0 prepares them here.
        bad_samples: `stop` or `skip`, as in `Batches`.
        budget: instead of `micro_batch_size`, of a micro-batch; as in `Batches`.

    Raises:
        ArgumentError: for a size below 1, for both a `micro_batch_size` and a `budget`, or for `replace`: a stream has
            no other sample to give.
    """

    def __init__(
        self,
        source: StreamSource,
        collator: Collator,
        batch_size: int,
        *,
        micro_batch_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
        bad_samples: Policy = "stop",
        budget: Budget | None = None,
    ) -> None:
        budget = budget_of(micro_batch_size, budget)
        if batch_size < 1:
            raise ArgumentError(f"a batch has at least one sample, found {batch_size}")
        if bad_samples == "replace":
            raise ArgumentError("bad_samples: a stream has no other sample to give; stop or skip")
        self._source, self._batch_size, self._seed, self._shuffle = source, batch_size, seed, shuffle
        self._steps = _WithState(windows(source, collator, batch_size, budget, 1, bad_samples))
        self._workers = workers
        self._state = dict(_BEGINNING)
        self._ahead: Iterator[tuple[StepBatch | CornstarchError, State]] | None = None

    def __iter__(self) -> "StreamBatches":
        return self

    def __next__(self) -> StepBatch:
        if self._ahead is None:
            order = _planned(self._source, self._batch_size, self._seed, self._shuffle, self._state)
            self._ahead = prepared(self._steps, order, workers=self._workers, seed=self._seed)
        batch, state = next(self._ahead)
        if isinstance(batch, CornstarchError):
            self._ahead = None  # the same samples come again
            raise batch
        self._state = state
        return batch

    def state_dict(self) -> State:
        """Where the iterator stands, as numbers and text; and what that depends on."""
        return {**self._state, **self._made_of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where another iterator over the same stream stood.

        Args:
            state: of `state_dict`.

        Raises:
            ArgumentError: if the other had another batch size, seed, order or window.
        """
        for name, value in self._made_of.items():
            if state.get(name) != value:
                raise ArgumentError(
                    f"cannot go on in the data: {name} was {state.get(name)} and is {value}, so its order is another"
                )
        self._state = {name: state[name] for name in _BEGINNING}
        self._ahead = None

    @property
    def _made_of(self) -> dict[str, Any]:
        made_of = {"batch_size": self._batch_size, "seed": self._seed, "shuffle": self._shuffle}
        return {**made_of, "window_size": self._source.window}

    def close(self) -> None:
        """End the workers; the next step would start others."""
        self._ahead = None


class _WithState(Dataset[Any]):
    """Steps, each with the state of the stream behind it."""

    def __init__(self, steps: Dataset[Any]) -> None:
        self._steps = steps

    def __getitem__(self, planned: tuple[list[Streamed], State]) -> tuple[StepBatch | CornstarchError, State]:
        places, state = planned
        made = self._steps[Window(places)]
        return made if isinstance(made, CornstarchError) else made[0], state


def _planned(
    source: StreamSource, size: int, seed: int, shuffle: bool, state: State
) -> Iterator[tuple[list[Streamed], State]]:
    """The rows of every step from a state on, and the state behind it."""
    epoch, window, done, first = state["epoch"], state["window"], state["done"], state["rows"]
    at, step = state["stream"], list[Streamed]()
    while True:
        stream = source.rows()
        if at is not None:
            stream.load_state_dict(at)
        rows = iter(stream)
        while True:
            block = source.read(rows, source.window, first)
            if not block:
                break
            number = len(block)
            if shuffle:
                random.Random(f"window {seed} {epoch} {window}").shuffle(block)
            for place in range(done, number):
                step.append(block[place])
                if len(step) == size:
                    yield step, _state(epoch, window, place + 1, first, at)
                    step = []
            window, done, first, at = window + 1, 0, first + number, stream.state_dict()
        if not first:
            raise ArgumentError(f"{source} has no rows")
        epoch, window, done, first, at = epoch + 1, 0, 0, 0, None
        if step:
            yield step, _state(epoch, window, done, first, at)
            step = []


def _state(epoch: int, window: int, done: int, rows: int, stream: Any) -> State:
    return {"epoch": epoch, "window": window, "done": done, "rows": rows, "stream": stream}
