"""6. Saving and loading a model.

    config.json                          what the model is made of, what is frozen, modality token ids
    model.safetensors                    all weights under the names of `state_dict()`, adapters among them
      (or model-0000i-of-0000n.safetensors and model.safetensors.index.json)
    {part}/config.json                   each part's own Hugging Face config
    language_model/generation_config.json
    {part}/adapters/{name}/adapter_config.json   PEFT's own description of each adapter
    {part}/encoders/{name}/              the same of each encoder that is concatenated in a part

`{part}` is `{key}_encoder` or `language_model`. Nothing is pickled, and no code that a file names is run.
"""

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module

from cornstarch import _files
from cornstarch.errors import ArgumentError, CheckpointError, CornstarchError, MissingFileError
from cornstarch.models.multimodal_language_model import (
    anatomy,
    callbacks,
    freezing,
    library,
    manifest,
    quantized,
    weightless,
)
from cornstarch.models.multimodal_language_model.concatenation import ConcatenatedEncoders
from cornstarch.models.multimodal_language_model.configuration import projector_config
from cornstarch.models.multimodal_language_model.encoder import ModalEncoderModule
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.projector import MultimodalProjector

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_FORMAT = 1
_MOST_TIMES = 2  # that a part may be larger than what was saved; which weights are missing is said once it is built
_ADAPTER_NAME = re.compile(r"(?!.*\.\.)[^/\\]+")
_CALLBACK_NAMES = ("preprocess_callback", "postprocess_module_callback", "postprocess_projector_callback")
_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


# --- saving -----------------------------------------------------------------------------------------------------------


def save(
    model: MultimodalModel, directory: Path, state_dict: Mapping[str, Tensor] | None, max_shard_size: int | str
) -> None:
    """Write a model into a folder; see `MultimodalModel.save_pretrained`."""
    state = quantized.plain_state_dict(model) if state_dict is None else state_dict
    tensors, aliases = _without_aliases(_without_wrappers(model, state))
    with _files.replacing(directory, "model") as folder:
        description = {
            "model_type": "cornstarch",
            "architectures": [type(model).__name__],
            "format": _FORMAT,
            "transformers_version": transformers.__version__,
            "encoders": {
                key: _describe_encoder(encoder, folder / f"{key}_encoder")
                for key, encoder in model._modal_encoders.items()
            },
            "language_model": _describe_part(model.language_model, folder / "language_model"),
            "preprocess_llm_callback": _describe_callback(model.preprocess_llm_callback),
            "modality_token_ids": model.modality_token_ids,
            "origin": model.origin,
            "manifest": model.manifest,
            "trainable": {name: _describe_trainable(part) for name, part in _units(model)},
            "aliases": aliases,
        }
        description["weight_files"] = _write_weights(tensors, folder, max_shard_size)
        text = json.dumps(description, indent=2)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")


def _without_wrappers(model: MultimodalModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names they have without what stands around parts (torch.compile, DDP)."""
    prefixes = {}
    for key, wrapper in model.encoders.items():
        inner = model._modal_encoders[key]
        path = next(name for name, module in wrapper.named_modules() if module is inner)
        prefixes[f"{key}_encoder.{path}."] = f"{key}_encoder."
    renamed = {}
    for place, value in state.items():
        prefix = next((prefix for prefix in prefixes if place.startswith(prefix)), "")
        name = prefixes.get(prefix, "") + place.removeprefix(prefix)
        renamed[name.replace("_orig_mod.", "")] = value
    return renamed


def _without_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and under which name a tensor that has several was kept (tied weights)."""
    kept: dict[Any, str] = {}
    storages: set[int] = set()
    tensors, aliases = {}, {}
    for name, value in state.items():
        tensor = value.detach()
        if type(tensor) is not Tensor or tensor.is_meta:
            raise ArgumentError(
                f"{name} is a {type(tensor).__name__} on {tensor.device}, which cannot be written as it is; gather or "
                "dequantise the weights and pass them as state_dict"
            )
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and identity in kept:
            aliases[name] = kept[identity]
            continue
        kept[identity] = name
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    return tensors, aliases


def _write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_size: int | str) -> list[str]:
    """Write the weights into one file or several, and return their names."""
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for name, members in plan.filename_to_tensors.items():
        try:
            save_file({member: tensors[member] for member in members}, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{folder / name} cannot be written: {error}") from error
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return list(plan.filename_to_tensors)


def _describe_part(part: nn.Module, folder: Path) -> dict[str, Any]:
    """A part's class, dtype and adapters; its configs are written into `folder`."""
    base = freezing.unwrap(part)
    folder.mkdir(parents=True)
    dtype = anatomy.parameter_dtype(base)
    description: dict[str, Any] = {"class": library.path_of(type(base)), "dtype": str(dtype).removeprefix("torch.")}
    if isinstance(base, PreTrainedModel):
        config = copy.deepcopy(base.config)
        if quantized.is_quantized(base):  # its weights are saved whole
            del config.quantization_config
        config.save_pretrained(folder)
        if base._auto_class is not None:  # code that came with the model goes with it
            custom_object_save(base, folder, config=base.config)
            description["class"] = f"{type(base).__module__.rpartition('.')[2]}.{type(base).__name__}"
            description["remote_code"] = True
        generation = getattr(base, "generation_config", None)
        if generation is not None and base.can_generate():
            generation.save_pretrained(folder)
        description["left_out"] = anatomy.left_out_modules(base)
    if type(base) is ConcatenatedEncoders:
        description["concatenated"] = {
            name: _describe_part(encoder, folder / "encoders" / name) for name, encoder in base.encoders.items()
        }
        description["arguments"] = {"skip_first": base.skip_first, "layers": base.layers}
    adapters = freezing.adapter_configs(part)
    for name, config in adapters.items():
        _check_adapter_name(name)
        config.save_pretrained(str(folder / "adapters" / name))
    description["adapters"] = list(adapters)
    description["adapters_inside"] = freezing.holds_adapters(part)
    description["active_adapters"] = freezing.active_adapters(part)
    return description


def _describe_encoder(encoder: ModalEncoderModule, folder: Path) -> dict[str, Any]:
    projector = encoder.projector
    assert projector is not None, "a model gives every encoder a projector"
    config = None if projector.is_custom or projector.config is None else projector.config.to_dict()
    return {
        **_describe_part(encoder.module, folder),
        "projector": config,
        "projector_dtype": str(anatomy.parameter_dtype(projector)).removeprefix("torch."),
        "additional_args": list(encoder.additional_args),
        **{name: _describe_callback(getattr(encoder, name)) for name in _CALLBACK_NAMES},
    }


def _describe_callback(callback: Any) -> dict[str, Any] | None:
    if callback is None:
        return None
    return callbacks.describe(callback) or {"custom": getattr(callback, "__qualname__", type(callback).__qualname__)}


def _units(model: MultimodalModel) -> Iterator[tuple[str, nn.Module]]:
    for key, encoder in model._modal_encoders.items():
        for name, child in encoder.named_children():
            yield f"{key}_encoder.{name}", child
    yield "language_model", model.language_model
    if isinstance(model.preprocess_llm_callback, nn.Module):
        yield "preprocess_llm_callback", model.preprocess_llm_callback


def _describe_trainable(part: nn.Module) -> bool | list[str]:
    flags = {name: parameter.requires_grad for name, parameter in part.named_parameters()}
    if len(set(flags.values())) < 2:
        return not freezing.is_frozen(part)
    return [name for name, flag in flags.items() if flag]


# --- loading ----------------------------------------------------------------------------------------------------------


def load(cls: type[MultimodalModel], directory: Path, **options: Any) -> MultimodalModel:
    """Read a model of class `cls` from a folder; see `MultimodalModel.from_pretrained`."""
    return _files.read(directory, "model", _CONFIG, lambda folder: _load(cls, folder, **options))


def _load(
    cls: type[MultimodalModel],
    folder: Path,
    *,
    dtype: torch.dtype | str | None,
    custom_objects: Mapping[str, Any],
    attn_implementation: str | None,
    trust_remote_code: bool,
    weights: bool = True,
) -> MultimodalModel:
    """Read a model from a folder in which nothing changes; without weights, its parameters stay on the meta device."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder; expected one that save_pretrained wrote")
    description = library.read_json(folder / _CONFIG)
    if description.get("model_type") != "cornstarch" or "language_model" not in description:
        raise CheckpointError(
            f"{folder / _CONFIG} is no config of a MultimodalModel (model_type {description.get('model_type')!r}); "
            "for a multimodal model of Hugging Face's use from_pretrained_multimodal_model"
        )
    if description["format"] > _FORMAT:
        raise CheckpointError(f"{folder} has format {description['format']}, this version reads up to {_FORMAT}")
    for key in description["encoders"]:
        if not key.isidentifier():
            raise CheckpointError(f"{folder / _CONFIG} has the modality key {key!r}, which is no identifier")
    _check_custom_objects(description, custom_objects)
    wanted = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(wanted, torch.dtype):
        raise ArgumentError(f"dtype must be a torch.dtype or the name of one such as 'bfloat16', found {dtype!r}")
    options = {
        "dtype": wanted,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
        "saved": _saved_elements(folder, description),
    }
    encoders = {
        key: _build_encoder(key, entry, folder, custom_objects, options)
        for key, entry in description["encoders"].items()
    }
    language_model = _build_part("language_model", description["language_model"], folder, custom_objects, options)
    callback = _build_callback("preprocess_llm_callback", description["preprocess_llm_callback"], custom_objects)
    model = cls(encoders, language_model, callback)
    if weights:
        _read_weights(model, folder, description, wanted)
    model.origin = description.get("origin")
    manifest.restore({name: part for name, (part, *_) in model.parts.items()}, description.get("manifest", {}))
    if description["modality_token_ids"]:
        model.set_modality_token_ids(description["modality_token_ids"])
    for name, part in _units(model):
        trainable = description["trainable"].get(name, True)
        for parameter_name, parameter in part.named_parameters():
            wants = trainable if isinstance(trainable, bool) else parameter_name in trainable
            parameter.requires_grad_(wants and parameter.is_floating_point())
    return model.eval()  # type: ignore[no-any-return]


def _check_custom_objects(description: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Name everything of the caller's own that was not given again, at once."""
    needed: dict[str, str] = {}
    for key, entry in description["encoders"].items():
        needed |= _own_classes(f"{key}_encoder.module", entry)
        if entry["projector"] is None:
            needed[f"{key}_encoder.projector"] = "a projector"
        for name in _CALLBACK_NAMES:
            if entry[name] is not None and "custom" in entry[name]:
                needed[f"{key}_encoder.{name}"] = entry[name]["custom"]
    entry = description["preprocess_llm_callback"]
    if entry is not None and "custom" in entry:
        needed["preprocess_llm_callback"] = entry["custom"]
    missing = {name: what for name, what in needed.items() if name not in given}
    if missing:
        listed = ", ".join(f"{name!r} ({what})" for name, what in missing.items())
        raise CheckpointError(
            f"this model was saved with objects of the caller's own, which are not saved: {listed}. Give them again: "
            f"from_pretrained(..., custom_objects={{{next(iter(missing))!r}: ...}})"
        )


def _own_classes(place: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Classes of the caller's own, by their places in the model."""
    if "concatenated" in entry:
        inner = [_own_classes(_inside(place, entry, name), one) for name, one in entry["concatenated"].items()]
        return {name: cls for found in inner for name, cls in found.items()}
    known = entry["class"].startswith("transformers.") or entry.get("remote_code")
    return {} if known else {place: entry["class"]}


def _build_encoder(
    key: str, entry: Mapping[str, Any], folder: Path, custom_objects: Mapping[str, Any], options: Mapping[str, Any]
) -> ModalEncoderModule:
    place = f"{key}_encoder"
    projector = custom_objects.get(f"{place}.projector")
    if projector is None:
        config = projector_config(entry["projector"])
        dtype = options["dtype"] or _dtype(entry["projector_dtype"])
        projector = weightless.make(lambda: MultimodalProjector(config).to(dtype))
    return ModalEncoderModule(
        _build_part(place, entry, folder, custom_objects, options, custom=f"{place}.module"),
        projector,
        entry["additional_args"],
        *(_build_callback(f"{place}.{name}", entry[name], custom_objects) for name in _CALLBACK_NAMES),
    )


def _build_callback(place: str, entry: Mapping[str, Any] | None, custom_objects: Mapping[str, Any]) -> Any:
    if place in custom_objects:
        return custom_objects[place]
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("arguments"), Mapping) or "name" not in entry:
        raise CheckpointError(
            f"{place} is saved as {entry!r:.100}, expected a name and arguments: the config is damaged"
        )
    try:
        return callbacks.build(entry)
    except CornstarchError:
        raise
    except Exception as error:  # arguments of kinds that nobody would write
        raise CheckpointError(f"{place}: {entry['name']} cannot be made of {entry['arguments']}: {error}") from error


def _saved_elements(folder: Path, description: Mapping[str, Any]) -> dict[str, int]:
    """How many numbers the files hold for each weight, by their headers alone."""
    elements: dict[str, int] = {}
    for path in weight_files(folder, description["weight_files"]):
        with _opened(path) as file:
            elements |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return elements | {alias: elements.get(kept, 0) for alias, kept in description["aliases"].items()}


def _check_size(
    cls: Any, config: Any, entry: Mapping[str, Any], folder: Path, saved: Mapping[str, int], prefix: str
) -> None:
    """Refuse a config that makes a far larger part than was saved, before memory is spent on it.

    A config that lost its entries stands for its class's defaults, which are those of a full-sized model.
    """
    elements = anatomy.elements_by_config(cls, config, entry["left_out"])
    found = sum(count for name, count in saved.items() if name.startswith(prefix))
    if elements is not None and elements > _MOST_TIMES * found:
        raise CheckpointError(
            f"{folder / _CONFIG} describes a {cls.__name__} of {elements:,} numbers, the weight files hold {found:,} "
            "for it: the config is damaged or of another model"
        )


def _build_part(
    place: str,
    entry: Mapping[str, Any],
    folder: Path,
    custom_objects: Mapping[str, Any],
    options: Mapping[str, Any],
    custom: str | None = None,
) -> nn.Module:
    """An encoder or a language model without its weights, adapters in place."""
    part = custom_objects.get(custom or place)
    if part is None and "concatenated" in entry:
        part = _build_concatenated(place, entry, folder, custom_objects, options, custom or place)
    if part is not None:
        return _adapted(part, entry, folder / place)
    cls = _part_class(place, entry, folder, options["trust_remote_code"])
    # Without the file, defaults would be taken for it.
    _refuse_kernels(library.read_json(folder / place / "config.json"), folder / place / "config.json")
    config = cls.config_class.from_pretrained(folder / place)
    _check_size(cls, config, entry, folder / place, options["saved"], f"{custom or place}.")
    _adapter_folders(folder / place, entry["adapters"])  # refuses names that are none

    def build() -> nn.Module:
        return _adapted(_part_of(cls, copy.deepcopy(config), entry, folder / place, options), entry, folder / place)

    return weightless.make(build)


def _refuse_kernels(values: Any, path: Path) -> None:
    """Refuse a config that names code on the hub, which transformers would fetch and run as a part is made."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name.endswith(("attn_implementation", "attn_implementation_internal", "experts_implementation")):
            if "/" in str(value):
                raise CheckpointError(
                    f"{path} asks for {name} {value!r}, which is code from the hub: take the entry out, or choose with "
                    "attn_implementation when loading"
                )
        else:
            _refuse_kernels(value, path)


def _part_of(cls: Any, config: Any, entry: Mapping[str, Any], folder: Path, options: Mapping[str, Any]) -> nn.Module:
    """A Hugging Face model of the class, as it was saved but for its weights."""
    attention = options["attn_implementation"]
    extra = {} if attention is None else {"attn_implementation": attention}
    try:
        part = cls._from_config(config, dtype=options["dtype"] or _dtype(entry["dtype"]), **extra)
    except Exception as error:  # configs that make no sense fail in ways of their own
        raise CheckpointError(f"{folder / _CONFIG} makes no {cls.__name__}: {error}") from error
    for name in entry["left_out"]:
        owner, _, leaf = name.rpartition(".")
        setattr(part.get_submodule(owner), leaf, None)
    if (folder / "generation_config.json").is_file():
        part.generation_config = GenerationConfig.from_pretrained(folder)
    return part  # type: ignore[no-any-return]


def _adapted(part: nn.Module, entry: Mapping[str, Any], folder: Path) -> nn.Module:
    """A part with its adapters in place."""
    if not entry["adapters"]:
        return part
    adapters = _adapter_folders(folder, entry["adapters"])
    return freezing.wrap(part, adapters, entry["active_adapters"], entry["adapters_inside"])


def _build_concatenated(
    place: str,
    entry: Mapping[str, Any],
    folder: Path,
    custom_objects: Mapping[str, Any],
    options: Mapping[str, Any],
    module: str,
) -> ConcatenatedEncoders:
    for name in entry["concatenated"]:
        if not name.isidentifier():
            raise CheckpointError(f"{place} has an encoder called {name!r}, which is no identifier")
    encoders = {
        name: _build_part(
            f"{place}/encoders/{name}", inner, folder, custom_objects, options, custom=_inside(module, entry, name)
        )
        for name, inner in entry["concatenated"].items()
    }
    return ConcatenatedEncoders(encoders, **entry["arguments"])


def _inside(place: str, entry: Mapping[str, Any], name: str) -> str:
    """The place in the model of an encoder concatenated at a place, below a wrapper of PEFT's if there is one."""
    wrapped = ".base_model.model" if entry["adapters"] and not entry["adapters_inside"] else ""
    return f"{place}{wrapped}.encoders.{name}"


def _check_adapter_name(name: str) -> None:
    if _ADAPTER_NAME.fullmatch(name) is None:
        raise CheckpointError(f"the adapter name {name!r} cannot name a folder; give the adapter another name")


def _adapter_folders(folder: Path, names: list[str]) -> dict[str, Path]:
    for name in names:
        _check_adapter_name(name)
    return {name: folder / "adapters" / name for name in names}


def _part_class(place: str, entry: Mapping[str, Any], folder: Path, trust_remote_code: bool) -> Any:
    if not entry.get("remote_code"):
        cls = library.find_class(entry["class"], place)
    elif trust_remote_code:
        cls = get_class_from_dynamic_module(entry["class"], folder / place)
    else:
        raise CheckpointError(
            f"{place} comes with code of its own ({entry['class']}): pass trust_remote_code=True to run it"
        )
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise CheckpointError(f"{place}: {entry['class']} is no model class of transformers")
    return cls


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else torch.get_default_dtype()


def _read_weights(
    model: MultimodalModel, folder: Path, description: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Give every parameter and buffer its saved value, one file at a time; tied ones become one tensor again."""
    expected = set(model.state_dict())
    seen: set[str] = set()
    for path in weight_files(folder, description["weight_files"]):
        tensors = {name: copied(tensor, dtype) for name, tensor in mapped_tensors(path)}
        strange = sorted(tensors.keys() - expected)
        if strange:
            raise CheckpointError(
                f"{path} holds weights that the model {_CONFIG} describes does not have: {', '.join(strange[:5])}. "
                "If a part was changed after it was made, give it again in custom_objects"
            )
        try:
            model.load_state_dict(tensors, strict=False, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit the model that {_CONFIG} describes: {error}") from error
        seen |= tensors.keys()
    for alias, kept in description["aliases"].items():
        if alias in expected and kept in seen:
            owner, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(owner), leaf, _tensor_at(model, kept))
            seen.add(alias)
    missing = sorted(expected - seen)
    if missing:
        raise CheckpointError(
            f"{folder} is incomplete: no weights for {', '.join(missing[:5])} ({len(missing)} in all)"
        )


def load_weights(model: MultimodalModel, directory: Path) -> None:
    """Give a model that is made already the weights of a saved one, in place.

    Args:
        model: of the same parts, adapters included. Weights that it holds in fewer bits stay: they do not train.
        directory: where the other was saved.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights are another model's.
    """
    folder = _files.current(directory, "model")
    description = library.read_json(folder / _CONFIG)
    mine = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    places = model.state_dict().keys()
    seen: set[str] = set()
    for path in weight_files(folder, description["weight_files"]):
        for name, value in mapped_tensors(path):
            seen.add(name)
            target = mine.get(name)
            if target is None or (target.is_floating_point() and target.shape != value.shape):
                raise CheckpointError(f"{path} holds {name} of shape {tuple(value.shape)}, which the model has not so")
            if target.is_floating_point() or target.shape == value.shape:
                target.data.copy_(value)
    seen |= set(description["aliases"])
    missing = sorted(name for name in places if name in mine and name not in seen)
    if missing:
        raise CheckpointError(f"{folder} has no weights for {', '.join(missing[:5])} ({len(missing)} in all)")


def _tensor_at(model: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def weight_files(folder: Path, names: list[str]) -> list[Path]:
    """The files with weights that a saved model's description names."""
    for name in names:
        if _WEIGHT_FILE.fullmatch(name) is None:
            raise CheckpointError(f"{folder / _CONFIG} names {name!r}, which is no file of a saved model")
    return [folder / name for name in names]


def mapped_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a file's tensors, mapped from it: to be copied, for the file may not stay as it is."""
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise MissingFileError(f"{path} is not there: the save it belongs to is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy in memory of its own: where a file is mapped, addresses change what a matrix product rounds to."""
    return tensor.to(dtype if tensor.is_floating_point() else None, copy=True)
