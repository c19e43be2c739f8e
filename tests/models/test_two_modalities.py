"""Two modalities, interleaved in one sample, against a hand-written composition."""

import pytest
import torch
from torch import Tensor

from cornstarch import ModalEncoderModule, MultimodalModel
from tests import parts

SEE, HEAR = 400, 401


def model_of_two() -> MultimodalModel:
    encoders = {"vision": ModalEncoderModule(parts.clip()), "audio": ModalEncoderModule(parts.whisper())}
    model = MultimodalModel(encoders, parts.llama(), init_projector_type="mlp").double()
    model.set_modality_token_ids({"vision": SEE, "audio": HEAR})
    return model.train()


def batch() -> dict[str, Tensor]:
    """Text, sound, text, image, text, image in the first sample; image, sound in the second; padding on the left."""
    text = lambda count: torch.randint(3, 200, (count,)).tolist()  # noqa: E731
    first = [*text(2), *[HEAR] * 50, *text(3), *[SEE] * 5, *text(1), *[SEE] * 5]
    second = [*[SEE] * 5, *text(2), *[HEAR] * 50, *text(1)]
    padding = len(first) - len(second)
    return {
        "input_ids": torch.tensor([first, [0] * padding + second]),
        "attention_mask": torch.tensor([[1] * len(first), [0] * padding + [1] * len(second)]),
        "pixel_values": torch.randn(3, 3, 16, 16, dtype=torch.float64),
        "input_features": torch.randn(2, 8, 100, dtype=torch.float64),
    }


def by_hand(model: MultimodalModel, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Features spliced in by a loop over samples and positions; the loss from logits, shifted by hand."""
    seen = model.vision_encoder.projector(model.vision_encoder.module(inputs["pixel_values"]).last_hidden_state)
    heard = model.audio_encoder.projector(model.audio_encoder.module(inputs["input_features"]).last_hidden_state)
    following = {SEE: iter(seen.flatten(0, 1)), HEAR: iter(heard.flatten(0, 1))}
    embedding = model.language_model.get_input_embeddings()
    rows = [
        torch.stack([next(following[i]) if i in following else embedding(torch.tensor(i)) for i in sample])
        for sample in inputs["input_ids"].tolist()
    ]
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model.language_model(inputs_embeds=torch.stack(rows), attention_mask=mask, position_ids=positions).logits
    targets = labels.masked_fill((inputs["input_ids"] == SEE) | (inputs["input_ids"] == HEAR), -100)
    scores = logits.float()  # Hugging Face's loss is computed in single precision, whatever the model's
    return logits, torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def test_interleaved_equals_the_composition_by_hand() -> None:
    """Logits, loss and every gradient, fp64, 1e-10; labels at modality positions are given and must not count."""
    model, inputs = model_of_two(), batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    logits, loss = by_hand(model, inputs, labels)
    loss.backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    output = model(**inputs, labels=labels, output_logits=True)
    output.loss.backward()
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(output.logits[kept], logits[kept], rtol=0, atol=1e-10)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=1e-10)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10)


def test_order_of_the_encoders_dict_changes_nothing() -> None:
    """The same weights under keys in another order: equal logits."""
    model, inputs = model_of_two().eval(), batch()
    encoders = {"audio": model.audio_encoder, "vision": model.vision_encoder}
    other = MultimodalModel(encoders, model.language_model).eval()
    other.set_modality_token_ids({"audio": HEAR, "vision": SEE})
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, other(**inputs).logits)


@pytest.mark.parametrize("missing", ["pixel_values", "input_features"])
def test_one_of_two_inputs_missing(missing: str) -> None:
    """The error names the modality whose input is not there."""
    model, inputs = model_of_two(), batch()
    inputs.pop(missing)
    with pytest.raises(ValueError, match="vision" if missing == "pixel_values" else "audio"):
        model(**inputs)
