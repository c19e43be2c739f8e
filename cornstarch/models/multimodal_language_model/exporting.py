"""7. Out to Hugging Face: checkpoints that plain transformers loads, without this package.

    the model --replica--> parts of its own, adapters merged --format--> a shell of Hugging Face's class
    --check--> the same logits --save_pretrained--> a folder --check--> the same ids and pixels --> in its place

`FORMATS` has a function for every format; what has no counterpart in one is refused there, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cornstarch import _files
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import (
    anatomy,
    export_checks,
    export_two_linears,
    freezing,
    model_card,
    quantized,
    returning,
    shells,
)
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor
from cornstarch.models.multimodal_language_model.shells import Format, Processor

ORIGINAL, DEFAULT_FORMAT = "original", "llava"
FORMATS: dict[str, Format] = {"llava": export_two_linears.shell, ORIGINAL: returning.shell}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to.

    Attributes:
        directory: where the checkpoint is.
        format: in which it is written.
        difference: the largest difference between logits of the model and of the checkpoint, as a share of the largest
            logit; None if it was not checked.
        notes: what is not as in the model.
    """

    directory: Path
    format: str
    difference: float | None
    notes: tuple[str, ...]


def export_to_hf(
    model: MultimodalModel,
    processor: Processor,
    directory: str | Path,
    format: str | None = None,
    *,
    merge_adapters: bool = False,
    dtype: torch.dtype | str | None = None,
    verify: bool = True,
    max_shard_size: int | str = "5GB",
    license: str | None = None,
    base_model: Sequence[str] = (),
    datasets: Sequence[str] = (),
    training: str | None = None,
) -> Exported:
    """Write a model and its processor as a checkpoint that plain transformers loads.

    `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained` read it where this package is not
    installed. Logits are those of the model on its vocabulary. Neither model nor processor is changed.

    Args:
        model: in any mode, on any device; what is frozen does not matter.
        processor: of the model; its tokenizer's chat template goes along, and takes content in parts then. Or, of a
            model that was imported, the one of Hugging Face's that came with it.
        directory: made if it is not there; a former export is replaced as a whole, files of others are not.
        format: a name in `FORMATS`; None takes `"original"` (that of the model that was imported), and `"llava"` for
            one that was composed.
        merge_adapters: write the weights with the active adapters merged into them.
        dtype: of all weights; None keeps theirs.
        verify: run the model and what is to be written on a small batch and compare, before anything is replaced.
        max_shard_size: bytes, or a string such as `"5GB"`, above which weights are split into several files.
        license: for the model card, as the hub names it.
        base_model: names on the hub of what the model is made of, for the model card.
        datasets: names on the hub of what it was trained on, for the model card.
        training: how it was trained, as Markdown, for the model card.

    Returns:
        Where it is, and how well it agrees.

    Raises:
        ArgumentError: if something has no counterpart in the format, with the reason; if what is to be written differs
            from the model, with the largest difference; or if files of others are in the way.
    """
    name, target = format or _format_of(model, processor), Path(directory)
    if name not in FORMATS:
        raise ArgumentError(f"unknown format {name!r}; known formats: {', '.join(FORMATS)}")
    if isinstance(processor, MultimodalProcessor) and processor.token_ids != model.modality_token_ids:
        raise ArgumentError(
            f"the processor marks inputs with the ids {processor.token_ids}, the model expects "
            f"{model.modality_token_ids}: give the processor that was made for this model"
        )
    _check_free(target, ["config.json"])  # what else there will be shows once it is written
    _check_parts(model, merge_adapters)
    weights = shells.written(model, _dtype(model, dtype))
    reference, copy = shells.replica(model, weights), shells.replica(model, weights)
    shells.make_plain(copy)
    shell = FORMATS[name](copy, processor)
    difference = export_checks.check_model(reference, shell, processor, name) if verify else None
    with _files.replacing(target, "export", main="config.json") as folder:
        _save(shell, folder, max_shard_size)
        unchecked = export_checks.check_processor(processor, shell, folder, name) if verify else None
        shell = replace(shell, notes=(*shell.notes, unchecked)) if unchecked is not None else shell
        card = model_card.write(
            model,
            shell,
            format=name,
            license=license,
            base_model=base_model or model_card.origins(model),
            datasets=datasets,
            training=training,
            difference=difference,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        _check_free(target, [path.name for path in folder.iterdir()])
    return Exported(directory=target, format=name, difference=difference, notes=shell.notes)


def _format_of(model: MultimodalModel, processor: Processor) -> str:
    """The format that a model was imported from; the usual one if it was not."""
    if not isinstance(processor, MultimodalProcessor):
        return ORIGINAL
    if model.origin is None or "shape" not in model.origin:
        return DEFAULT_FORMAT
    kind = str(model.origin["config"].get("model_type"))
    return kind if kind in FORMATS and not processor.origin_files else ORIGINAL


def _check_free(target: Path, names: Sequence[str]) -> None:
    """Refuse to overwrite what is no former export."""
    if target.exists() and not target.is_dir():
        raise ArgumentError(f"{target} is a file; choose a folder")
    in_the_way = _files.strangers(target, "export", names)
    if in_the_way:
        raise ArgumentError(
            f"{target} holds files that are no former export and would be lost: {', '.join(in_the_way[:5])}; choose "
            "another folder"
        )


def _check_parts(model: MultimodalModel, merge_adapters: bool) -> None:
    for name, (part, *_) in model.parts.items():
        if quantized.is_quantized(part):
            raise ArgumentError(
                f"{name} holds its weights in fewer bits, which a plain checkpoint does not: save the model "
                "(model.save_pretrained writes whole weights), load what was saved, and export that"
            )
        if not merge_adapters and freezing.has_adapters(part):
            raise ArgumentError(
                f"{name} has adapters ({', '.join(freezing.adapter_configs(part)) or 'of PEFT'}), for which a plain "
                "checkpoint has no place: pass merge_adapters=True (--merge-adapters) to write weights that hold them"
            )


def _dtype(model: MultimodalModel, wanted: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype to cast to; None where every weight keeps the one that all have."""
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if wanted is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ArgumentError(f"dtype must be a torch.dtype such as 'bfloat16', found {wanted!r}")
    dtypes = {name: anatomy.parameter_dtype(part) for name, (part, *_) in model.parts.items()}
    if found is None and len(set(dtypes.values()) - {None}) > 1:
        listed = ", ".join(f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items())
        raise ArgumentError(
            f"the parts have different dtypes ({listed}), and transformers loads a checkpoint in one: say which with "
            "dtype (--dtype)"
        )
    return found


def _save(shell: shells.Shell, folder: Path, max_shard_size: int | str) -> None:
    """Write weights, configs and processor."""
    try:
        with torch.no_grad():
            shell.model.save_pretrained(folder, max_shard_size=max_shard_size)
    except ValueError as error:  # a generation config that contradicts itself is not saved
        raise ArgumentError(f"transformers refuses to save the model: {error}") from error
    shell.processor.save_pretrained(folder)
    image_processor: Any = getattr(shell.processor, "image_processor", None)
    if image_processor is not None:  # releases and tools that do not read processor_config.json look for its own file
        image_processor.save_pretrained(folder)
