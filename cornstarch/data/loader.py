"""4a. What prepares steps ahead, in worker processes: torchdata's StatefulDataLoader, known to this file alone."""

import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset


def prepared(steps: Dataset[Any], order: Iterable[Any], *, workers: int, seed: int) -> Iterator[Any]:
    """What a map from places to steps gives for an order of places, in that order, whoever works it out.

    Args:
        steps: asked for one entry of the order at a time, in a worker.
        order: of places; taken a little ahead of what is asked for.
        workers: processes; 0 works it out here, when it is asked for.
        seed: of the random numbers that workers have. Left alone, the loader would draw it from those that training
            uses.

    Returns:
        An iterator; the workers end with it.

    Raises:
        ImportError: if torchdata is not installed.
    """
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError as error:
        raise ImportError("batches are made by torchdata's loader: pip install 'cornstarch[train]'") from error
    if workers:
        _open_many_files()
    loader: Any = StatefulDataLoader(
        steps,
        batch_size=None,  # an entry of the order is a whole step
        sampler=order,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_leave_interrupts_alone,
        pin_memory=torch.accelerator.is_available(),
        generator=torch.Generator().manual_seed(seed),
    )
    ahead: Iterator[Any] = iter(loader)
    return ahead


def _as_it_is(step: Any) -> Any:
    return step


def _open_many_files() -> None:
    """Let this process and its workers open as many files as the system lets them.

    A tensor that a worker sends holds two descriptors until it is fetched, where tensors are sent so. A window of steps
    has more than the usual limit of a thousand, and a worker without one left sends nothing and says nothing. Sent by
    name they would hold none, but what nobody fetches would stay in memory.
    """
    if torch.multiprocessing.get_sharing_strategy() == "file_descriptor":  # type: ignore[no-untyped-call]
        import resource  # which not every system has

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _leave_interrupts_alone(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; what it does is the training process's business.

    SIGTERM ends a worker as always, or nobody could; its handler would be the training process's otherwise.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
