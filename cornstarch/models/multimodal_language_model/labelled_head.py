"""5g. Logits where a label asks for them: head and loss run on labelled positions alone, some at a time.

The language model's own forward runs, and what its head is given is exchanged: of the hidden states (B, S, D) the rows
whose next position is labelled, as one sequence (1, K + 1, D), with their labels. What stands between head and loss
(soft-caps, scales, biases) is done to rows, and the loss is a mean over labels, so nothing else changes. Where a model
is built in another way, that is seen by asking it once, and it runs on all positions.

More rows than fit are taken in chunks. The first one's loss comes out of the forward; for each of the others the
forward runs again on what the modules below it returned then. The gradients of a chunk are taken before the next one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from cornstarch.models.multimodal_language_model import anatomy, compiling, freezing
from cornstarch.models.multimodal_language_model.early_gradients import Early, ReachedBelowError
from cornstarch.models.multimodal_language_model.merge import IGNORE_INDEX

MOST_LOGITS = 2**26  # numbers in a chunk of logits: 256 MiB in float32
_INSTEAD = "_compiled_call_impl"  # of nn.Module
_LENGTH = 5  # positions of the question
_Callees = tuple[nn.Module, ...]
_Returned = dict[nn.Module, list[Any]]
_Outputs = Callable[[Mapping[str, Any], Tensor], Any]


class _Answer(NamedTuple):
    """How a language model can be run.

    Attributes:
        by_rows: its loss is the same when its head is given labelled positions alone.
        callees: what its forward calls below the head, so that these need not run again; None if that is not known.
    """

    by_rows: bool
    callees: _Callees | None = None


_ANSWERS: WeakKeyDictionary[nn.Module, dict[torch.dtype, _Answer]] = WeakKeyDictionary()


def run(language_model: nn.Module, arguments: Mapping[str, Any], most_logits: int = MOST_LOGITS) -> Any:
    """Run a language model with labels.

    Args:
        language_model: wrapped or not.
        arguments: of its forward, with `labels` (B, S).
        most_logits: numbers in a chunk of logits; a chunk has at least one row.

    Returns:
        Its own output. The loss, and all gradients, are those of the plain forward; `logits` are of some labelled
        positions only or missing, not to be used. Logits in chunks can be differentiated once, not twice.
    """
    targets = pad(arguments["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
    places = (targets != IGNORE_INDEX).nonzero()
    head = _head_of(language_model)
    if head is None or not len(places) or "logits_to_keep" in arguments or torch.compiler.is_compiling():
        return language_model(**arguments)
    answer = _asked(language_model, head, arguments["inputs_embeds"])
    if not answer.by_rows:
        return language_model(**arguments)
    width = int(arguments["inputs_embeds"].shape[-1])
    chunks = torch.split(places, max(1, most_logits // _vocabulary(head, width)))
    if len(chunks) == 1 or answer.callees is None:
        return _of_rows(language_model, head, arguments, places, targets)
    try:
        return _of_chunks(language_model, head, arguments, chunks, targets, answer.callees)
    except ReachedBelowError:  # what its modules return is not all that its loss depends on
        _known(language_model)[arguments["inputs_embeds"].dtype] = _Answer(by_rows=True)
        return _of_rows(language_model, head, arguments, places, targets)


def ask_ahead(language_model: nn.Module, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Ask a language model now how it can be run, rather than before its first loss.

    Args:
        language_model: wrapped or not.
        width: of its embeddings.
        dtype: of its embeddings.
        device: of its embeddings.
    """
    head = _head_of(language_model)
    if head is not None:
        _asked(language_model, head, torch.empty(0, 0, width, dtype=dtype, device=device))


def rows_of(language_model: nn.Module, labelled: int, most_logits: int = MOST_LOGITS) -> tuple[int, int]:
    """How many rows a language model's head is given, if it is given labelled positions alone.

    Args:
        language_model: wrapped or not.
        labelled: positions that predict something.
        most_logits: as for `run`.

    Returns:
        The number, and how many of them are in chunks behind the first, which are computed again in float16. A chunk
        has a row more.
    """
    base: Any = freezing.unwrap(language_model)
    head = _head_of(language_model)
    if head is None or not labelled:
        return labelled, 0
    size = max(1, most_logits // _vocabulary(head, base.get_input_embeddings().weight.shape[-1]))
    chunks = -(-labelled // size)
    return labelled + chunks, max(0, labelled - size) + chunks - 1


def _head_of(language_model: nn.Module) -> nn.Module | None:
    """The module that makes logits of hidden states; None if the language model does not say."""
    base: Any = freezing.unwrap(language_model)
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    return head if isinstance(head, nn.Module) else None


def _vocabulary(head: nn.Module, width: int) -> int:
    """How many numbers the head makes of a row, by its largest matrix."""
    return max([weight.numel() // width for weight in head.parameters() if weight.dim() == 2], default=1)


def _of_rows(
    language_model: nn.Module, head: nn.Module, arguments: Mapping[str, Any], places: Tensor, targets: Tensor
) -> Any:
    """The language model's output where the head is given some rows only.

    Args:
        language_model: wrapped or not.
        head: of it.
        arguments: of its forward.
        places: (K, 2), the sample and the position of each row.
        targets: (B, S), what is to be predicted at every position.

    Returns:
        Its own output.
    """
    samples, positions = places.unbind(-1)
    # Losses shift labels by one: the first is read by nobody, and the last row predicts nothing.
    labels = pad(targets[samples, positions], (1, 0), value=IGNORE_INDEX)[None]

    def choose(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = given[0]
        rows = hidden[samples.to(hidden.device), positions.to(hidden.device)]
        return (torch.cat([rows, rows[-1:].detach()])[None], *given[1:])

    hook = head.register_forward_pre_hook(choose)
    try:
        return language_model(**{**arguments, "labels": labels})
    finally:
        hook.remove()


# --- chunks -----------------------------------------------------------------------------------------------------------


def _of_chunks(
    language_model: nn.Module,
    head: nn.Module,
    arguments: Mapping[str, Any],
    chunks: Sequence[Tensor],
    targets: Tensor,
    callees: _Callees,
) -> Any:
    """The language model's output with a loss over all chunks.

    Each chunk's loss is its own mean, and counts by its share of the rows; so what a model adds to every loss (the
    balance of experts) is added once in all. Of a number of items to divide by, a chunk is given its share.
    """
    number = sum(map(len, chunks))
    items = arguments.get("num_items_in_batch")
    if isinstance(items, Tensor):
        items = items.to(torch.promote_types(arguments["inputs_embeds"].dtype, torch.float32))

    def output_of(arguments: Mapping[str, Any], chunk: Tensor) -> Any:
        given = {} if items is None else {"num_items_in_batch": items * (len(chunk) / number)}
        output = _of_rows(language_model, head, {**arguments, **given}, chunk, targets)
        output["loss"] = output.loss * (len(chunk) / number)
        return output

    way = _again if _in_float16(head, arguments["inputs_embeds"]) else _early
    return way(output_of, arguments, chunks, {module: [] for module in callees})


def _early(output_of: _Outputs, arguments: Mapping[str, Any], chunks: Sequence[Tensor], returned: _Returned) -> Any:
    """The output of chunks whose gradients are taken at once, each before the next one is computed."""
    early = Early(arguments.values())
    with _recording(returned, early.below):
        output = output_of(arguments, chunks[0])
    beside = {name: early.alone(value) for name, value in output.items() if name != "loss" and _is_number(value)}
    loss = early.add(output.loss)
    rest = {name: early.originals(value) for name, value in output.items() if name != "logits"}
    output = type(output)(**{**rest, **beside})
    for chunk in chunks[1:]:
        with _returning(returned):
            loss = loss + early.add(output_of(arguments, chunk).loss)
    output["loss"] = early.joined(loss)
    return output


def _again(output_of: _Outputs, arguments: Mapping[str, Any], chunks: Sequence[Tensor], returned: _Returned) -> Any:
    """The output of chunks of which all but the first are computed again for the backward pass."""

    def loss_of(chunk: Tensor) -> Tensor:
        with _returning(returned):
            return output_of(arguments, chunk).loss  # type: ignore[no-any-return]

    with _recording(returned, lambda call, *args, **kwargs: call(*args, **kwargs)):
        output = output_of(arguments, chunks[0])
    output["loss"] = sum([checkpoint(loss_of, chunk, use_reentrant=False) for chunk in chunks[1:]], output.loss)
    return output


def _in_float16(head: nn.Module, embeds: Tensor) -> bool:
    """Whether small gradients would become zero but for the scale of the loss, which only the backward pass knows."""
    device = embeds.device.type
    types = {embeds.dtype, *(parameter.dtype for parameter in head.parameters())}
    if torch.is_autocast_enabled(device):
        types.add(torch.get_autocast_dtype(device))
    return torch.float16 in types


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


@contextmanager
def _recording(returned: _Returned, through: Callable[..., Any]) -> Iterator[None]:
    """Modules whose outputs are noted, each called through a function that may exchange what it returns."""

    def recorded(module: nn.Module) -> Callable[..., Any]:
        call = vars(module).get(_INSTEAD) or module._call_impl

        def record(*args: Any, **kwargs: Any) -> Any:
            returned[module].append(through(call, *args, **kwargs))
            return returned[module][-1]

        return record

    with _called_instead({module: recorded(module) for module in returned}):
        yield


@contextmanager
def _returning(returned: Mapping[nn.Module, Sequence[Any]]) -> Iterator[None]:
    """Modules that return what they did before, one after the other, and compute nothing."""
    with _called_instead({module: _Replay(outputs) for module, outputs in returned.items()}):
        yield


@contextmanager
def _called_instead(calls: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules that something else is called instead of, hooks included.

    A module has a place for it: `torch.compile` puts compiled code there.
    """
    former = {module: vars(module).get(_INSTEAD) for module in calls}
    for module, call in calls.items():
        vars(module)[_INSTEAD] = call
    try:
        yield
    finally:
        for module, before in former.items():
            if before is None:
                del vars(module)[_INSTEAD]
            else:
                vars(module)[_INSTEAD] = before


class _Replay:
    """Returns outputs one after the other."""

    def __init__(self, outputs: Sequence[Any]) -> None:
        self._rest = iter(outputs)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return next(self._rest)


# --- which language models can be run so ------------------------------------------------------------------------------


def _asked(language_model: nn.Module, head: nn.Module, embeds: Tensor) -> _Answer:
    """The answer of a language model, which is asked once for each dtype."""
    known = _known(language_model)
    if embeds.dtype not in known:
        with torch.no_grad(), freezing.evaluating(language_model), compiling.eagerly():
            known[embeds.dtype] = _ask(language_model, head, embeds)
    return known[embeds.dtype]


def _known(language_model: nn.Module) -> dict[torch.dtype, _Answer]:
    return _ANSWERS.setdefault(freezing.unwrap(language_model), {})


def _ask(language_model: nn.Module, head: nn.Module, embeds: Tensor) -> _Answer:
    """Compare the loss of a few positions with that of their rows, and see that other labels would make another."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, _LENGTH, embeds.shape[-1], generator=generator).to(embeds)
    labels = torch.tensor([[-100, 1, -100, 2, 1], [-100, -100, 0, 1, -100]], device=embeds.device)
    arguments: dict[str, Any] = {"inputs_embeds": given, "labels": labels}
    arguments["attention_mask"] = torch.tensor([[1] * _LENGTH, [1] * 4 + [0]], device=embeds.device)
    taken = anatomy.language_model_arguments(freezing.unwrap(language_model)).names
    arguments |= {"use_cache": False} if "use_cache" in taken else {}
    targets = pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
    places = (targets != IGNORE_INDEX).nonzero()
    try:
        with _watched(freezing.unwrap(language_model), head) as returned:
            expected = language_model(**arguments).loss
        others = torch.where(labels == IGNORE_INDEX, labels, (labels + 1) % 3)
        apart = (language_model(**{**arguments, "labels": others}).loss - expected).abs()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever it fails with: it is run as it is then
        return _Answer(by_rows=False)
    in_half = embeds.dtype.itemsize < 4 or torch.is_autocast_enabled(embeds.device.type)
    tolerance = apart * (0.1 if in_half else 1e-3)
    # With what was returned the body need not run again; where that does not do, it does.
    for callees in (tuple(returned), None):
        try:
            with _returning(returned if callees is not None else {}):
                found = _of_rows(language_model, head, arguments, places, targets).loss
        except torch.OutOfMemoryError:
            raise
        except Exception:
            continue
        if _is_equal(found, expected, apart, tolerance):
            return _Answer(by_rows=True, callees=callees)
    return _Answer(by_rows=False)


def _is_equal(found: Tensor, expected: Tensor, apart: Tensor, tolerance: Tensor) -> bool:
    """Whether a loss is the one that was expected, and other labels would have shown it; a NaN is no answer."""
    if isinstance(found, FakeTensor):  # it has no values; that it runs so is all that can be seen
        return True
    return bool(apart > 0) and bool((found - expected).abs() <= tolerance)


@contextmanager
def _watched(base: nn.Module, head: nn.Module) -> Iterator[dict[nn.Module, list[Any]]]:
    """What the modules return that a forward calls itself, and not through others.

    The head is not among them, nor what it is in: of that, the modules before the head.
    """
    returned: dict[nn.Module, list[Any]] = {}
    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            returned.setdefault(module, []).append(output)

    around = {module for module in base.modules() if any(inner is head for inner in module.modules())}
    within = set(head.modules())
    hooks = []
    for module in base.modules():
        if module not in around and module not in within:
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield returned
    finally:
        for hook in hooks:
            hook.remove()
