"""7e. The model card (README.md) of an exported checkpoint: what it is made of, where from, how it was trained."""

import os
import re
from collections.abc import Sequence
from typing import Any

import transformers
from huggingface_hub import ModelCardData

from cornstarch.models.multimodal_language_model import freezing
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.shells import Shell, auto_class
from cornstarch.version import __version__

_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_USE = """\
```python
import torch
from transformers import {cls}, AutoProcessor

folder = "path/to/this/folder"
model = {cls}.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
{inputs}
generated = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=64)
print(processor.batch_decode(generated[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)[0])
```"""
_CHAT = """\
messages = [
    {"role": "user", "content": [{"type": "image", "image": "photo.jpg"}, {"type": "text", "text": "What is this?"}]}
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)"""
_PLAIN = """\
from PIL import Image

inputs = processor(text="MARKWhat is this?", images=Image.open("photo.jpg"), return_tensors="pt")"""


def origin_of(model: MultimodalModel) -> dict[str, Any]:
    """What a model knows of the one that it was imported from: `path`, `config`, ...; empty if it was composed."""
    return dict(model.origin or {})


def origins(model: MultimodalModel) -> list[str]:
    """The names on the hub of what a model is made of, as far as it knows them."""
    names = [origin_of(model).get("path"), *(_origin(model, part) for part in model.parts)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and is_on_the_hub(name)))


def _origin(model: MultimodalModel, part: str) -> str | None:
    """The name on the hub of what a part came from."""
    sources = (entry["path"] for name, entry in model.manifest.items() if name.partition(".")[0] == part)
    return next((path for path in sources if path is not None and is_on_the_hub(path)), None)


def is_on_the_hub(name: str) -> bool:
    """Whether a name can be one on the hub, and is no folder on this machine."""
    return _ON_THE_HUB.fullmatch(name) is not None and not os.path.exists(name)


def write(
    model: MultimodalModel,
    shell: Shell,
    *,
    format: str,
    license: str | None,
    base_model: Sequence[str],
    datasets: Sequence[str],
    training: str | None,
    difference: float | None,
) -> str:
    """The text of a model card.

    Args:
        model: that was exported.
        shell: what is written.
        format: in which.
        license: as the hub names it; None says that nobody stated one.
        base_model: names on the hub.
        datasets: names on the hub.
        training: how it was trained, as Markdown.
        difference: of logits, if they were compared.

    Returns:
        Markdown, with YAML before it.
    """
    hears = getattr(shell.processor, "hears", getattr(shell.processor, "feature_extractor", None) is not None)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-text-to-text" if hears else "image-text-to-text",
        license=license,
        base_model=list(base_model) or None,
        datasets=list(datasets) or None,
        tags=[format, "cornstarch"],
    )
    named = [*base_model] or ["parts of no name on the hub"]
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# A model that takes {'sounds' if hears else 'images'} and text\n",
        f"Composed with Cornstarch {__version__} of {', '.join(named)}, and written in the format `{format}` of "
        "transformers, which loads it without Cornstarch.\n",
        "## Use\n",
        _use(shell),
        "\n## Parts\n",
        "| part | class | parameters | from |\n|---|---|---|---|",
        *(_row(model, name, shell) for name in model.parts),
        "\n## Training\n",
        training or "Nothing is recorded of how it was trained.",
        "\n## Notes\n",
        *(f"- {note}" for note in _notes(hears, shell, license, difference)),
    ]
    return "\n".join(lines) + "\n"


def _use(shell: Shell) -> str:
    has_template = shell.processor.chat_template is not None
    mark = getattr(shell.processor, "image_token", None)
    inputs = _CHAT if has_template or mark is None else _PLAIN.replace("MARK", mark)
    return _USE.replace("{cls}", auto_class(shell.model.config).__name__).replace("{inputs}", inputs)


def _row(model: MultimodalModel, name: str, shell: Shell) -> str:
    part = freezing.unwrap(model.parts[name][0])
    number = sum(parameter.numel() for parameter in part.parameters())
    return f"| {name} | {type(part).__name__} | {number:,} | {_origin(model, name) or 'not recorded'} |"


def _notes(hears: bool, shell: Shell, license: str | None, difference: float | None) -> list[str]:
    if license is None:
        terms = (
            "No licence was stated for this model. It comes as it is; the licences of the models and of the data that "
            "it is made of hold for it."
        )
    else:
        terms = "The licences of the models and of the data that it is made of hold for it too."
    if difference is None:
        checked = "It was not compared with the model that it was exported from."
    else:
        media = "sounds" if hears else "images"
        checked = (
            f"Its logits were compared with those of the model it was exported from, on {media} and text, with "
            f"transformers {transformers.__version__}: they differ by {difference:.1e} of the largest."
        )
    return [checked, *shell.notes, terms]
