"""Parts and batches of the zoo's rows; the composition of a pair, and the same composition by hand."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cornstarch import ModalEncoderModule, MultimodalModel
from tests import tiny
from tests.zoo.table import ENCODERS

KEY, MARK = "media", 200  # lies beyond every embedding table
F64 = torch.float64


def language_model(name: str, dtype: torch.dtype = F64) -> Any:
    """The language model of a row, in evaluation mode."""
    made = tiny.language_model(name, dtype).eval()
    if made._can_set_experts_implementation():
        made.set_experts_implementation("eager")  # grouped products have no fp64
    return made


def encoder(name: str, dtype: torch.dtype = F64) -> Any:
    """The encoder of a row, in evaluation mode."""
    return tiny.encoder(name, dtype).eval()


cached_encoder = functools.cache(encoder)  # for passes that change nothing in it


def media(name: str, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    """Two inputs of an encoder, under the names that its forward has."""
    made = {}
    generator = torch.Generator().manual_seed(2)
    for argument, value in ENCODERS[name].inputs.items():
        if isinstance(value, list):
            made[argument] = torch.tensor(value)
        else:
            shape = (2, *value) if isinstance(value, tuple) else value["together"]
            made[argument] = torch.randn(shape, generator=generator).to(dtype)
    return made


def rows_of(name: str) -> list[list[int]]:
    """Ids of two samples: some text, an input's marks, more text. The second is shorter by two, less than any window:
    of a position that sees padding alone, some models make what is no number."""
    first, second = ENCODERS[name].features
    text = ((2, 5), (3, 2 + first - second))
    return [
        tiny.text(before, 4) + [MARK] * features + tiny.text(after, 7)
        for (before, after), features in zip(text, (first, second), strict=True)
    ]


def batch(name: str, dtype: torch.dtype = F64, side: str = "right") -> dict[str, Tensor]:
    """Two samples of different lengths with an input each, labels where there is text."""
    made = tiny.padded(rows_of(name), side)
    # What stands at padding must not matter, so it is no padding id there.
    ids, mask = made["input_ids"], made["attention_mask"]
    labels = ids.masked_fill((mask == 0) | (ids == MARK), -100)
    first = mask.int().argmax(-1, keepdim=True)
    labels = labels.scatter(1, first, -100)  # with padding before it, a padded position would predict it
    return {**made, "labels": labels, **{f"{KEY}_{key}": value for key, value in media(name, dtype).items()}}


def compose(vision: Any, text: Any) -> MultimodalModel:
    """The pair as a model, in evaluation mode."""
    torch.manual_seed(5)
    made = MultimodalModel({KEY: ModalEncoderModule(vision)}, text)
    made.set_modality_token_ids({KEY: MARK})
    return made.eval()


def pair(encoder_name: str, language_model_name: str, dtype: torch.dtype = F64) -> MultimodalModel:
    """The model of two rows."""
    return compose(encoder(encoder_name, dtype), language_model(language_model_name, dtype))


# --- by hand ----------------------------------------------------------------------------------------------------------


def features_by_hand(name: str, module: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """(features, width) of two inputs one behind the other, out of what the encoder's own forward returns."""
    row = ENCODERS[name]
    output = module(**given)
    hidden = output if isinstance(output, Tensor) else output.last_hidden_state
    if row.layout == "merged":
        return output.pooler_output
    if row.layout == "packed":
        return hidden.reshape(-1, hidden.shape[-1])
    if row.layout == "maps":
        hidden = hidden.flatten(2).transpose(1, 2)
    return torch.cat([rows[:count] for rows, count in zip(hidden, row.features, strict=True)])


def by_hand(name: str, model: MultimodalModel, given: dict[str, Tensor]) -> Any:
    """The composition without any of this package's forward: encode, project, embed, scatter, run."""
    module, projection = model.encoders[KEY].module, model.encoders[KEY].projector.projection
    inputs = {key.removeprefix(f"{KEY}_"): value for key, value in given.items() if key.startswith(f"{KEY}_")}
    rows = functional.linear(features_by_hand(name, module, inputs), projection.weight, projection.bias)
    ids = given["input_ids"]
    marks = ids == MARK
    embeds = model.language_model.get_input_embeddings()(torch.where(marks, 0, ids))
    embeds = embeds.masked_scatter(marks.unsqueeze(-1), rows)
    labels = {"labels": given["labels"]} if "labels" in given else {}
    return model.language_model(inputs_embeds=embeds, attention_mask=given["attention_mask"], **labels)
