"""5c. What generation must be told about a prompt that holds modality tokens.

The language model's own `generate` runs on the merged embeddings. It also reads the prompt's ids, to penalise
repetition, and modality ids may lie beyond the vocabulary. Logits processors ignore such ids in current versions of
`transformers`; in older ones they fail, so there the ids are replaced while processors look.
"""

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy, freezing


@functools.cache
def processors_ignore_unknown_ids() -> bool:
    """Whether logits processors of the installed `transformers` pass over ids beyond the vocabulary."""
    ids, scores = torch.tensor([[9, 9, 9]]), torch.zeros(1, 4)
    try:
        NoRepeatNGramLogitsProcessor(2)(ids, scores)
        RepetitionPenaltyLogitsProcessor(2.0)(ids, scores)
    except (IndexError, RuntimeError):
        return False
    return True


def check(language_model: nn.Module) -> None:
    """Refuse to generate with a language model that cannot go on from a merged prompt.

    Args:
        language_model: wrapped or not.

    Raises:
        ArgumentError: with the reason.
    """
    base = freezing.unwrap(language_model)
    if freezing.learns_prompt(language_model):
        raise ArgumentError(
            "generate does not work with PEFT's prompt learning (prompt tuning, prefix tuning, p-tuning): PEFT puts "
            "its vectors before token ids, and a merged prompt is embeddings. Training and forward work; to generate, "
            "use adapters of another kind, such as LoRA"
        )
    if not anatomy.generates_from_embeddings(base):
        raise ArgumentError(
            f"{type(base).__name__}'s own generate cannot start from embeddings (its prepare_inputs_for_generation "
            "takes no inputs_embeds), and a merged prompt is embeddings. Training and forward work; to generate, call "
            "forward for every token, or use another language model"
        )


# Ways to generate that take the prompt in pieces, or ids behind it, from `input_ids`: they lose sight of embeddings.
_FROM_IDS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "prefill_chunk_size")


def check_way(language_model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Refuse ways to generate that do not go on from embeddings: `transformers` gives other text then, without a word.

    Args:
        language_model: wrapped or not.
        arguments: of `generate`.

    Raises:
        ArgumentError: naming the argument.
    """
    config = arguments.get("generation_config")
    if config is None:
        config = getattr(freezing.unwrap(language_model), "generation_config", None)
    asked = (name for name in _FROM_IDS if arguments.get(name, getattr(config, name, None)) is not None)
    name = next(asked, None)
    if name is not None:
        raise ArgumentError(
            f"generate does not work with {name}: transformers reads the prompt's ids then, and a merged prompt is "
            "embeddings. Leave it out"
        )


# What `generate` itself carries from the prompt to the tokens after it, counting on.
_CARRIED = frozenset({"inputs_embeds", "position_ids", "attention_mask"})


def split_prompt_arguments(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell what is for all of generation from what is for the prompt alone.

    Args:
        before: arguments of `generate`.
        after: the same once a callback changed them.

    Returns:
        Arguments of `generate`; and those that the callback added (or a mask in a form that `generate` cannot carry
        on), which stand for positions of the prompt.
    """
    once = {name: value for name, value in after.items() if name not in before and name not in _CARRIED}
    once = {name: value for name, value in once.items() if not hasattr(GenerationConfig(), name)}
    everywhere = {name: value for name, value in after.items() if name not in once}
    mask = after.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        once["attention_mask"] = mask
        everywhere["attention_mask"] = before.get("attention_mask")
    return everywhere, once


@contextmanager
def with_prompt(
    language_model: nn.Module, arguments: Mapping[str, Any], masks: Sequence[Tensor], input_ids: Tensor
) -> Iterator[None]:
    """Give a language model further arguments while it reads the prompt, and not for the tokens after it.

    Args:
        language_model: wrapped or not.
        arguments: by name; tensors (and dicts of tensors) whose first axis is the batch, or lists of tensors (N, D)
            with a row for every position of `masks`.
        masks: (B, S) each.
        input_ids: (B, S), the prompt.

    Yields:
        Nothing.

    Raises:
        ArgumentError: while generating, if a cache holds a part of the prompt already.
    """
    if not arguments:
        yield
        return
    length, batch = input_ids.shape[1], input_ids.shape[0]
    per_sample = sum((mask.sum(-1) for mask in masks), torch.zeros(batch, dtype=torch.long)).tolist()
    mine = threading.get_ident()  # other threads may generate with the same model meanwhile

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        embeds = kwargs.get("inputs_embeds")
        if embeds is None or threading.get_ident() != mine:
            return args, kwargs
        if embeds.shape[1] != length:
            raise ArgumentError(
                f"{', '.join(arguments)} belong to a prompt of {length} positions, of which the language model is to "
                f"read {embeds.shape[1]}: generate without a cache that holds the others"
            )
        times = embeds.shape[0] // batch  # beams, samples drawn
        added = {name: _repeated(value, times, per_sample) for name, value in arguments.items()}
        cache = next((kwargs[name] for name in anatomy.CACHE_NAMES if kwargs.get(name) is not None), None)
        if "attention_mask" in added and cache is not None:
            added["attention_mask"] = _for_cache(added["attention_mask"], cache)
        return args, {**kwargs, **added}

    handle = freezing.unwrap(language_model).register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _repeated(value: Any, times: int, per_sample: Sequence[int]) -> Any:
    """A value for every sample, each as often as generation has copies of it."""
    if times == 1:
        return value
    if isinstance(value, Mapping):
        return {name: _repeated(entry, times, per_sample) for name, entry in value.items()}
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, dim=0)
    return [torch.cat([block for block in rows.split(list(per_sample)) for _ in range(times)]) for rows in value]


def _for_cache(mask: Any, cache: Any) -> Any:
    """A ready mask, or one for each kind of layer, as wide as what a cache of a fixed length hands to its layers."""
    if isinstance(mask, Mapping):
        return {kind: _widened(entry, cache, kind == "sliding_attention") for kind, entry in mask.items()}
    return _widened(mask, cache, False)


def _widened(mask: Any, cache: Any, sliding: bool) -> Any:
    if not (isinstance(mask, Tensor) and mask.is_floating_point()):
        return mask
    layer = next((index for index, slides in enumerate(getattr(cache, "is_sliding", ())) if slides == sliding), None)
    if layer is None:
        return mask
    room = cache.get_mask_sizes(mask.shape[-2], layer)[0] - mask.shape[-1]
    return functional.pad(mask, (0, room), value=torch.finfo(mask.dtype).min) if room > 0 else mask


def ids_within_vocabulary(
    input_ids: Tensor, attention_mask: Tensor | None, vocabulary: int, padding: int | None
) -> Tensor:
    """The prompt with every id beyond the vocabulary replaced by a token its row has anyway.

    Processors that look at which tokens occurred (repetition penalties) then see the set of tokens they would have
    seen, and no padding appears where there was none. Processors that look at sequences of tokens may see one more.

    Args:
        input_ids: (B, S).
        attention_mask: (B, S) or None.
        vocabulary: number of logits.
        padding: the padding id, which is never used as a replacement.

    Returns:
        (B, S), a new tensor unless nothing was replaced.
    """
    beyond = input_ids >= vocabulary
    if not beyond.any():
        return input_ids
    usable = ~beyond if padding is None else ~beyond & (input_ids != padding)
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        usable &= attention_mask.bool()
    first = input_ids.gather(1, usable.int().argmax(-1, keepdim=True))
    fallback = torch.full_like(first, 1 if padding == 0 else 0)
    return torch.where(beyond, torch.where(usable.any(-1, keepdim=True), first, fallback), input_ids)


def restore_prompt(generated: Any, input_ids: Tensor) -> Any:
    """Put the caller's prompt (B, S) back in front of what was generated, a tensor or an output with `sequences`."""
    sequences = generated if isinstance(generated, Tensor) else generated.sequences
    copies = sequences.shape[0] // max(input_ids.shape[0], 1)  # beams returned, samples drawn
    prompt = input_ids.repeat_interleave(copies, dim=0).to(sequences.device)
    sequences = torch.cat([prompt, sequences[:, input_ids.shape[1] :]], dim=1)
    if isinstance(generated, Tensor):
        return sequences
    generated.sequences = sequences
    return generated


class PromptStreamer:
    """A streamer that is shown the caller's prompt first, then every new token."""

    def __init__(self, streamer: Any, input_ids: Tensor) -> None:
        self._streamer = streamer
        self._prompt: Tensor | None = input_ids

    def put(self, value: Tensor) -> None:
        """Pass tokens on; the first call carries the prompt."""
        self._streamer.put(value if self._prompt is None else self._prompt.cpu())
        self._prompt = None

    def end(self) -> None:
        """Say that no token follows."""
        self._streamer.end()
