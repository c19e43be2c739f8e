"""6d. In from Hugging Face: the processor that belongs to a model that was taken apart."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer
from transformers.utils import cached_file

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import parts
from cornstarch.models.multimodal_language_model.input_rules import FramedPictures, InputRule, TiledPictures
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processing import MultimodalProcessor

# What Hugging Face's processors write beside the tokenizer's own files.
_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_WHERE = ("cache_dir", "local_files_only", "revision", "token")


class _Known(NamedTuple):
    """What a processor's rules are made of: its tokenizer, and the token of the id that marks features."""

    tokenizer: Any
    token: str

    def named(self, name: str, otherwise: str) -> str:
        """The special token that the tokenizer has under a name of its own."""
        found = getattr(self.tokenizer, name, None)
        return found if isinstance(found, str) else otherwise


class _Marked(NamedTuple):
    """The mark that texts for the original's processor have for an input, and the rule, if more is done."""

    mark: str
    rule: InputRule | None = None


def _repeated(known: _Known) -> _Marked:
    return _Marked(known.token)


def _tiles(known: _Known) -> _Marked:
    return _Marked(known.token, InputRule(arguments={"do_pad": True}, nested="as_given"))


def _framed(known: _Known) -> _Marked:
    """Crops are made only if the caller, or the image processor's settings, say so."""
    start, end = known.named("boi_token", "<start_of_image>"), known.named("eoi_token", "<end_of_image>")
    text = FramedPictures(
        before=f"\n\n{start}",
        after=f"{end}\n\n",
        whole="Here is the original image ",
        crops=" and here are some crops to help you see better ",
        between=" ",
    )
    arguments = {
        "do_convert_rgb": True,
        "do_pan_and_scan": False,
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    return _Marked(start, InputRule(arguments=arguments, text=text, token=known.token))


def _tiled(known: _Known) -> _Marked:
    text = TiledPictures(
        edge=known.named("fake_image_token", "<fake_token_around_image>"),
        tile="<row_{row}_col_{column}>",
        whole=known.named("global_image_token", "<global-img>"),
    )
    return _Marked(known.token, InputRule(arguments={"return_row_col_info": True}, nested="always", text=text))


def _masked(known: _Known) -> _Marked:
    arguments = {"return_attention_mask": True, "padding": "max_length"}
    return _Marked(known.token, InputRule(arguments=arguments, renamed={"attention_mask": "feature_attention_mask"}))


# By the name of the model's shape, what its processor does beside repeating a mark.
_RULES: dict[str, Callable[[_Known], _Marked]] = {
    "tiles": _tiles,
    "features_see_each_other": _framed,
    "shuffled_pixels": _tiled,
    "sounds": _masked,
}


def from_hugging_face(
    cls: type[MultimodalProcessor], name_or_path: str | Path, model: MultimodalModel, **kwargs: Any
) -> MultimodalProcessor:
    """See `MultimodalProcessor.from_pretrained_multimodal_model`."""
    origin = model.origin or {}
    if "shape" not in origin or len(model.encoders) != 1:
        raise ArgumentError(
            "the model was not taken out of a Hugging Face multimodal model: load it with "
            "MultimodalModel.from_pretrained_multimodal_model, or make its processor with MultimodalProcessor(...)"
        )
    files = read_files(name_or_path, **{name: value for name, value in kwargs.items() if name in _WHERE})
    ((key, encoder),) = model._modal_encoders.items()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{name_or_path} has no tokenizer: {str(error).splitlines()[0]}") from error
    template = chat_template(files)
    if template is not None:
        tokenizer.chat_template = template
    token = tokenizer.convert_ids_to_tokens(model.modality_token_ids[key])
    if not isinstance(token, str):
        raise ArgumentError(
            f"{name_or_path}: its tokenizer has no token of the id {model.modality_token_ids[key]}, which marks an "
            "input in the model's config"
        )
    make = _RULES.get(origin["shape"], _repeated)
    mark, rule = make(_Known(tokenizer, token))
    processors = {key: parts.load_processor(encoder.module, name_or_path, **kwargs)}
    rules = {key: rule} if rule is not None else None
    processor = cls(processors, tokenizer, model, predefined_tokens={key: mark}, rules=rules)
    processor.origin_files = files
    return processor


def read_files(name_or_path: str | Path, **where: Any) -> dict[str, str]:
    """The text files of a checkpoint's processor, but for its tokenizer's.

    Args:
        name_or_path: a folder or a name on the hub.
        **where: for the hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        Name to contents, of those that there are.
    """
    found = {}
    for name in _FILES:
        path = cached_file(
            str(name_or_path),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
        if path is not None:
            found[name] = Path(path).read_text(encoding="utf-8")
    return found


def chat_template(files: Mapping[str, str]) -> Any:
    """The chat template in a processor's files; None if only the tokenizer has one."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    for name in ("chat_template.json", "processor_config.json"):
        found = json.loads(files.get(name, "{}")).get("chat_template")
        if found is not None:
            return found
    return None


def with_template(files: Mapping[str, str], template: str) -> dict[str, str]:
    """A processor's files with another chat template.

    Args:
        files: name to contents.
        template: in the place of theirs.

    Returns:
        The files; those without a template stay as they are.
    """
    made = {name: contents for name, contents in files.items() if name != "chat_template.json"}
    config = json.loads(made.get("processor_config.json", "{}"))
    if config.pop("chat_template", None) is not None:
        made["processor_config.json"] = json.dumps(config, indent=2) + "\n"
    return {**made, "chat_template.jinja": template}
