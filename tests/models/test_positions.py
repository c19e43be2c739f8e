"""How many positions a sample may take: as many as the language model has in a table, where it has one."""

import pytest
import torch
import transformers
from torch import nn

from cornstarch.errors import ArgumentError
from tests import tiny


@pytest.mark.parametrize("family", ["opt", "gpt2", "gptj", "bert"])
def test_more_positions_than_the_language_model_has(family: str) -> None:
    """Those that stand in a table are counted first: refused with both numbers, in forward and generate; padding takes
    none, and as many as there are pass."""
    most, features = 12, tiny.ROWS["clip"]
    if family == "bert":
        config = transformers.BertConfig(**{**tiny.LM_SIZES, "max_position_embeddings": most}, is_decoder=True)
        lm = transformers.BertLMHeadModel(config)
    else:
        lm = tiny.language_model(family, max_position_embeddings=most)
    model = tiny.model(lm=lm).eval()
    fitting = torch.tensor([tiny.text(most - features) + [tiny.IMAGE] * features])
    assert torch.isfinite(model(input_ids=fitting, pixel_values=tiny.images(1)).logits).all()
    padded = nn.functional.pad(fitting, (2, 0))
    mask = nn.functional.pad(torch.ones_like(fitting), (2, 0))
    model(input_ids=padded, attention_mask=mask, pixel_values=tiny.images(1))

    longer = torch.cat([fitting, fitting[:, :3]], dim=1)
    for call in (model, model.generate):
        with pytest.raises(ArgumentError, match=rf"takes {most + 3} positions.* has {most}:"):
            call(input_ids=longer, pixel_values=tiny.images(1))
    with pytest.warns(UserWarning, match="4 new tokens behind 10 positions are more than the 12"):
        model.generate(
            input_ids=fitting[:, 2:], pixel_values=tiny.images(1), max_new_tokens=4, eos_token_id=None, max_time=0.0
        )


def test_any_number_of_positions_where_they_are_in_no_table() -> None:
    model = tiny.model(lm=tiny.language_model("llama", max_position_embeddings=4)).eval()
    assert model(**tiny.vision_batch()).logits.isfinite().all()
