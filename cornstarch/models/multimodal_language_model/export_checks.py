"""7d. What is written against the model: logits of a small batch, then ids and pixels of the processors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, BatchFeature

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import anatomy, shells
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor
from cornstarch.models.multimodal_language_model.shells import Shell

# The largest difference of logits that is rounding, as a share of the largest logit.
_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_SIZES = ((64, 48), (40, 72), (50, 50))  # of the images, width and height
_PIXELS = 1e-5  # difference of pixel values that is rounding
_OTHER_BACKEND = 5e-2  # the same between image processors on PIL and on torchvision, which interpolate differently


def probe_images() -> list[Image.Image]:
    """Three images of noise, of different sizes."""
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in _SIZES]


def probe_inputs(processor: MultimodalProcessor, key: str) -> list[dict[str, Any]]:
    """What each of the images becomes by itself, for formats that take `pixel_values` and nothing else.

    Args:
        processor: of the model.
        key: the images' modality.

    Returns:
        `input_ids` and `pixel_values` of every image.

    Raises:
        ArgumentError: if the encoder takes more.
    """
    found = []
    for image in probe_images():
        batch = processor({key: {"images": [image]}}, {"text": [processor.tokens[key]]}, return_tensors="pt")
        more = sorted(set(batch) - {"input_ids", "attention_mask", "pixel_values"})
        if more:
            raise ArgumentError(
                f"modality {key!r}: its encoder takes {', '.join(more)} beside pixel_values (images of different "
                "sizes, packed or padded), for which this format has no counterpart"
            )
        found.append(dict(batch))
    return found


def image_key(processor: MultimodalProcessor) -> str:
    """The modality of images.

    Args:
        processor: of a model.

    Returns:
        The first key whose processor takes images.

    Raises:
        ArgumentError: if there is none.
    """
    for key, (argument, _) in processor.media_arguments.items():
        if argument == "images":
            return key
    raise ArgumentError(f"no modality of this model takes images: {', '.join(processor.tokens)}")


def check_model(reference: MultimodalModel, shell: Shell, processor: Any, kind: str) -> float:
    """Compare the logits of a model and of what is to be written.

    Args:
        reference: a replica of the model.
        shell: what is to be written.
        processor: of the model; or the one of Hugging Face's that came with it.
        kind: the format.

    Returns:
        The largest difference as a share of the largest logit.

    Raises:
        ArgumentError: if they differ by more than rounding.
    """
    batches = _our_batches(processor) if isinstance(processor, MultimodalProcessor) else _their_batches(processor)
    worst = 0.0
    for what, batch in batches:
        difference = _difference(reference, shell, batch, kind, what)
        bound = _ROUNDING.get(anatomy.parameter_dtype(reference) or torch.float32, 1e-4)
        if not difference <= bound:
            raise ArgumentError(
                f"the logits of the {kind} checkpoint would differ from the model's on {what}, by {difference:.3g} of "
                f"the largest (rounding is up to {bound:.0e}). {_reason(reference, shell, batch, bound)}"
            )
        worst = max(worst, difference)
    return worst


def _our_batches(processor: MultimodalProcessor) -> list[tuple[str, dict[str, Tensor]]]:
    """Batches of ours, and what is in each."""
    ((key, (argument, _)),) = list(processor.media_arguments.items())[:1]
    mark, (first, second, third) = processor.tokens[key], _probe_media(processor, key)
    texts = [f"Compare {mark} with {mark}, please.", "There is nothing here, only words.", f"{mark} What is it?"]
    whole = _batches(processor, key, texts, [[first, second], [], [third]])
    words = _batches(processor, key, texts[1:2] * 2, None)
    return [*((f"{argument} and text", batch) for batch in whole), *(("text alone", batch) for batch in words)]


def _probe_media(processor: MultimodalProcessor, key: str) -> list[Any]:
    """Three images of noise, or three sounds, of different sizes."""
    if processor.media_arguments[key][0] == "images":
        return list(probe_images())
    noise = np.random.default_rng(0)
    rate = int(processor.encoder_processors[key].sampling_rate)
    return [noise.standard_normal(rate * part // 10).astype(np.float32) for part in (10, 6, 8)]


def _arguments(processor: MultimodalProcessor, key: str, media: Any) -> dict[str, Any]:
    """Arguments of the encoder's processor."""
    argument = processor.media_arguments[key][0]
    rate = {} if argument == "images" else {"sampling_rate": processor.encoder_processors[key].sampling_rate}
    return {argument: media, **rate}


def _their_batches(processor: Any) -> list[tuple[str, dict[str, Tensor]]]:
    """Batches that a processor of Hugging Face's makes, and what is in each; of one sample, as not all can pad."""
    made = [("text alone", dict(processor(text=["There are only words here."], return_tensors="pt")))]
    image, sound = (getattr(processor, f"{kind}_token", None) for kind in ("image", "audio"))
    if isinstance(image, str) and getattr(processor, "image_processor", None) is not None:
        text = [f"Compare {image} with {image}, please."]
        batch = processor(text=text, images=[probe_images()[:2]], return_tensors="pt")
        made.append(("images and text", dict(batch)))
    if isinstance(sound, str) and getattr(processor, "feature_extractor", None) is not None:
        rate = processor.feature_extractor.sampling_rate
        noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
        batch = processor(text=[f"{sound} What is it?"], audio=[noise], sampling_rate=rate, return_tensors="pt")
        made.append(("sound and text", dict(batch)))
    return made


def _batches(processor: MultimodalProcessor, key: str, texts: list[str], images: Any) -> list[dict[str, Tensor]]:
    """One right-padded batch; a batch for each text where the tokenizer cannot pad."""
    if processor.llm_tokenizer.pad_token is None:
        alone = [(texts[i : i + 1], images and images[i : i + 1]) for i in range(len(texts))]
    else:
        alone = [(texts, images)]
    made = []
    for some_texts, some_images in alone:
        media = {key: _arguments(processor, key, some_images)} if some_images and any(map(len, some_images)) else {}
        options = {"padding": True, "padding_side": "right"} if len(some_texts) > 1 else {}
        made.append(dict(processor(media, {"text": some_texts, **options}, return_tensors="pt")))
    return made


def _difference(reference: MultimodalModel, shell: Shell, batch: Mapping[str, Tensor], kind: str, what: str) -> float:
    """The largest difference of logits at real positions, as a share of the largest logit."""
    placed = {name: value.to(reference.device) for name, value in batch.items()}
    real = placed["attention_mask"].bool()
    with torch.no_grad():
        expected = reference(**placed).logits[real]
        found = _run(shell, placed, kind, what).logits[real][:, : expected.shape[-1]]
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny))


def _run(shell: Shell, batch: Mapping[str, Tensor], kind: str, what: str) -> Any:
    dtype = shell.model.dtype
    arguments = {n: v.to(dtype) if v.is_floating_point() else v for n, v in shell.inputs(batch).items()}
    try:
        return shell.model(**arguments)
    except Exception as error:  # whatever a class of Hugging Face's fails with
        raise ArgumentError(
            f"{type(shell.model).__name__}, the class of the format {kind!r}, fails on {what} with the model's parts: "
            f"{error}"
        ) from error


def _reason(reference: MultimodalModel, shell: Shell, batch: Mapping[str, Tensor], bound: float) -> str:
    """Where the difference comes from, as far as it can be told."""
    encoder = next(iter(reference._modal_encoders.values()))
    with torch.no_grad():
        if set(batch) == {"input_ids", "attention_mask", "pixel_values"}:
            pixels = batch["pixel_values"].to(reference.device)
            expected = encoder(pixel_values=pixels)
            theirs = shell.model.get_image_features(pixels.to(shell.model.dtype), return_dict=True)
            found = theirs.pooler_output
            pairs = list(zip(expected, found, strict=False))
            if any(ours.shape != theirs.shape for ours, theirs in pairs):
                shapes_of = [tuple(rows[0].shape) for rows in (found, expected)]
                return f"The features of an image have shape {shapes_of[0]} instead of {shapes_of[1]}."
            largest = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
            if largest > bound * max(float(ours.abs().max()) for ours in expected):
                return f"The features of the images differ already, by {largest:.3g}."
    name = type(reference.language_model).__name__
    return (
        "The features of images are not why: in the checkpoint logits are the product of the backbone's last hidden "
        f"state and the head; {name} does more to them (a soft-cap, a scale, a bias), or runs its backbone with other "
        "arguments."
    )


# --- what was written -------------------------------------------------------------------------------------------------


def check_processor(processor: Any, shell: Shell, folder: Path, kind: str) -> str | None:
    """Load configs and processor as anybody would, and compare what processors make of the same texts and messages.

    Args:
        processor: of the model.
        shell: what was written.
        folder: with the checkpoint.
        kind: the format.

    Returns:
        Why the processors could not be compared here; None if they were.

    Raises:
        ArgumentError: if other weights would be looked for, or ids or pixels differ.
    """
    shells.check_weights(shell.model, shells.weight_shapes(shells.on_meta(AutoConfig.from_pretrained(folder))), kind)
    try:
        theirs: Any = AutoProcessor.from_pretrained(folder)
    except ImportError as error:  # a package that is not here, which whoever loads the checkpoint will have
        return f"The processor was not loaded here: {str(error).strip().splitlines()[0]}"
    except Exception as error:
        raise ArgumentError(f"transformers cannot load the {kind} checkpoint that was written: {error}") from error
    if not isinstance(processor, MultimodalProcessor):
        _compare_same_kind(processor, theirs, kind)
        return None
    key = next(iter(processor.media_arguments))
    if processor.media_arguments[key][0] != "images" or not isinstance(shell.processor, shells.OriginalProcessor):
        _compare_texts(processor, key, theirs, kind)
    if processor.media_arguments[key][0] == "images" and processor.llm_tokenizer.chat_template is not None:
        _compare_chats(processor, theirs, kind)
    return None


def _compare_same_kind(processor: Any, theirs: Any, kind: str) -> None:
    """A processor of Hugging Face's and what was written of it."""
    for (what, ours), (_, found) in zip(_their_batches(processor), _their_batches(theirs), strict=True):
        for name, value in ours.items():
            if name not in found or not torch.equal(torch.as_tensor(value), torch.as_tensor(found[name])):
                raise ArgumentError(
                    f"the processor of the {kind} checkpoint makes another {name} of {what} than the one given"
                )


def _compare_texts(processor: MultimodalProcessor, key: str, theirs: Any, kind: str) -> None:
    mark, (first, second, third) = processor.tokens[key], _probe_media(processor, key)
    texts = [f"Compare {mark} with {mark}.", f"{mark}What is it?"]
    padding = {"padding": True} if processor.llm_tokenizer.pad_token is not None else {}
    media = [[first, second], [third]]
    if not padding:
        texts, media = texts[:1], media[:1]
    ours = processor({key: _arguments(processor, key, media)}, {"text": texts, **padding}, return_tensors="pt")
    given = _arguments(processor, key, media)
    if "sampling_rate" in given:  # which Hugging Face's takes as one flat list, under a name of its own
        given = {"audio": [sound for sounds in media for sound in sounds], "sampling_rate": given["sampling_rate"]}
    found = theirs(text=texts, **given, return_tensors="pt", **padding)
    _compare(processor, theirs, ours, found, kind, "a text")


def _compare_chats(processor: MultimodalProcessor, theirs: Any, kind: str) -> None:
    key = image_key(processor)
    first, _, third = probe_images()
    media = [{"type": "image", "image": first}, {"type": "image", "image": third}]
    said = ["What is this?", "Noise.", "And this?"]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [media[0], {"type": "text", "text": said[0]}]},
        {"role": "assistant", "content": [{"type": "text", "text": said[1]}]},
        {"role": "user", "content": [{"type": "text", "text": said[2]}, media[1]]},
    ]
    try:
        text = processor.apply_chat_template(_copies(turns), add_generation_prompt=True)
        inputs = {"text": [text], "add_special_tokens": False}  # a template writes special tokens itself
        ours = processor({key: {"images": [[first, third]]}}, inputs, return_tensors="pt")
    except Exception:  # a template that refuses such an exchange, as it would have in training
        return
    try:
        found = theirs.apply_chat_template(
            _copies(turns), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except Exception as error:
        raise ArgumentError(f"the chat template of the {kind} checkpoint fails on what ours writes: {error}") from error
    _compare(processor, theirs, ours, found, kind, "a conversation")


def _copies(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages that may be changed, as Hugging Face's processors do."""
    return [{**turn, "content": list(turn["content"])} for turn in turns]


def _compare(processor: MultimodalProcessor, theirs: Any, ours: BatchFeature, found: Any, kind: str, what: str) -> None:
    if not torch.equal(ours["input_ids"], found["input_ids"].to(ours["input_ids"].dtype)):
        read = [processor.decode(batch["input_ids"][0].tolist())[:200] for batch in (ours, found)]
        raise ArgumentError(
            f"the processor of the {kind} checkpoint makes other ids of {what} ({read[1]!r}) than the model's "
            f"({read[0]!r}). If it puts special tokens around what a chat template wrote, the template must begin with "
            "the tokenizer's bos_token, or the tokenizer must add none"
        )
    mine = next(iter(processor.encoder_processors.values()))
    other = getattr(theirs, "image_processor", None) or theirs.feature_extractor
    bound = _PIXELS if type(mine) is type(other) else _OTHER_BACKEND
    for name, value in ours.items():
        if not value.is_floating_point() or name not in found:
            continue
        difference = float((value - found[name]).abs().max()) if value.shape == found[name].shape else float("inf")
        if not difference <= bound:
            raise ArgumentError(
                f"the processor of the {kind} checkpoint ({type(other).__name__}) makes other {name} of {what} than "
                f"the model's ({type(mine).__name__}): they differ by {difference:.3g}"
            )
