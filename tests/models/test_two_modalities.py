"""Images and sounds in one sample, against embeddings spliced by hand."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cornstarch import ModalEncoderModule, ModalityMismatchError, MultimodalModel
from tests import tiny
from tests.tiny import IMAGE, SOUND

ROWS = {IMAGE: tiny.ROWS["clip"], SOUND: tiny.ROWS["whisper"]}
NAMES = {IMAGE: "pixel_values", SOUND: "input_features"}
INPUTS = {IMAGE: tiny.images, SOUND: tiny.sounds}

# What each sample holds, in order; a number is a text of that length.
LAYOUTS: dict[str, list[list[int]]] = {
    "one-of-each": [[2, IMAGE, 3, SOUND, 1]],
    "sound-first": [[1, SOUND, 1, IMAGE, 2]],
    "interleaved": [[1, IMAGE, 2, SOUND, 1, IMAGE, 1, SOUND, 1, IMAGE, 2]],
    "without-text-between": [[1, IMAGE, SOUND, SOUND, IMAGE, 1], [2, SOUND, IMAGE, 1]],
    "samples-of-all-kinds": [[2, SOUND, 2, IMAGE, 1], [3], [1, IMAGE, 2], [2, SOUND, 1], [1, IMAGE, IMAGE, SOUND, 2]],
    "only-sounds": [[1, SOUND, 2], [4]],
    "only-images": [[1, IMAGE, 2], [4, IMAGE, 1]],
}


def two_modalities(lm: str = "llama", first: str = "vision") -> MultimodalModel:
    """A CLIP tower with a linear projector and a Whisper encoder with an MLP around one language model, in fp64."""
    parts = {
        "vision": ModalEncoderModule(tiny.encoder("clip", torch.float64)),
        "audio": ModalEncoderModule(tiny.encoder("whisper", torch.float64)),
    }
    ordered = {key: parts[key] for key in sorted(parts, key=lambda key: key != first)}
    torch.manual_seed(0)
    model = MultimodalModel(ordered, tiny.language_model(lm, torch.float64), init_projector_type="mlp")
    model.set_modality_token_ids({"audio": SOUND, "vision": IMAGE})
    return model.eval()


def batch(layout: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    seeds = itertools.count(100)
    rows = [
        [
            token
            for piece in sample
            for token in ([piece] * ROWS[piece] if piece in ROWS else tiny.text(piece, next(seeds)))
        ]
        for sample in layout
    ]
    made: dict[str, Tensor] = tiny.padded(rows, side)
    first = made["attention_mask"].cumsum(-1) == 1  # nothing real stands before it to predict it from
    made["labels"] = made["input_ids"].masked_fill((made["attention_mask"] == 0) | first, -100)
    for token_id, name in NAMES.items():
        count = sum(sample.count(token_id) for sample in layout)
        if count:
            made[name] = INPUTS[token_id](count, torch.float64)
    return made


def by_hand(model: MultimodalModel, layout: list[list[int]], inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Logits of every sample, computed alone and without padding, and the mean loss over text positions of all."""
    waiting = {IMAGE: iter(inputs.get("pixel_values", ())), SOUND: iter(inputs.get("input_features", ()))}
    encoders = {IMAGE: model.encoders["vision"], SOUND: model.encoders["audio"]}
    table = model.language_model.get_input_embeddings()
    logits, losses = [], []
    for row, mask, sample in zip(inputs["input_ids"], inputs["attention_mask"], layout, strict=True):
        ids = [token for token, real in zip(row.tolist(), mask.tolist(), strict=True) if real]
        place, pieces, targets = 0, [], []
        for piece in sample:
            if piece in encoders:
                hidden = encoders[piece].module(next(waiting[piece])[None]).last_hidden_state
                pieces.append(encoders[piece].projector.projection(hidden)[0])
                targets += [-100] * ROWS[piece]
                place += ROWS[piece]
            else:
                pieces.append(table(torch.tensor(ids[place : place + piece], dtype=torch.long)))
                targets += ids[place : place + piece]
                place += piece
        logits.append(model.language_model(inputs_embeds=torch.cat(pieces)[None]).logits[0])
        losses.append(functional.cross_entropy(logits[-1][:-1], torch.tensor(targets[1:]), reduction="none"))
    every = torch.cat(losses)
    return logits, every.sum() / (every != 0).sum()


def gradients(model: MultimodalModel, logits: list[Tensor]) -> dict[str, Tensor | None]:
    """Gradients of a sum of logits with fixed weights; Hugging Face's own loss leaves fp64."""
    generator = torch.Generator().manual_seed(0)
    weighted = [(rows * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)).sum() for rows in logits]
    pairs = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = zip(*pairs, strict=True)  # Whisper's positions never train
    found = torch.autograd.grad(sum(weighted), parameters, allow_unused=True)  # type: ignore[arg-type]
    return dict(zip(names, found, strict=True))


def check(model: MultimodalModel, layout: list[list[int]], side: str) -> None:
    inputs = batch(layout, side)
    expected, expected_loss = by_hand(model, layout, inputs)
    output = model(**inputs)
    logits = [rows[mask] for rows, mask in zip(output.logits, inputs["attention_mask"].bool(), strict=True)]
    for found_rows, rows in zip(logits, expected, strict=True):
        tiny.assert_near(found_rows, rows, what="logits")
    tiny.assert_near(output.loss.double(), expected_loss, 1e-6, "loss")
    found, wanted = gradients(model, logits), gradients(model, expected)
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            tiny.assert_near(found[name], gradient, what=name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_equals_embeddings_spliced_by_hand(layout: list[list[int]], side: str) -> None:
    """Logits and every gradient equal samples spliced by a loop and run alone, 1e-10 in fp64; the loss 1e-6 in fp32."""
    check(two_modalities(), layout, side)


@pytest.mark.parametrize("lm", ["opt", "gpt2", "falcon-alibi", "qwen3"])
def test_with_language_models_that_count_positions(lm: str) -> None:
    """Logits and every gradient equal samples spliced by a loop and run alone, 1e-10 in fp64; the loss 1e-6 in fp32."""
    check(two_modalities(lm), LAYOUTS["samples-of-all-kinds"], "left")


def test_order_of_the_encoders_does_not_matter() -> None:
    """Logits are bit-equal whichever modality was named first."""
    inputs = batch(LAYOUTS["samples-of-all-kinds"])
    vision_first = two_modalities(first="vision")
    audio_first = two_modalities(first="audio")
    audio_first.load_state_dict(vision_first.state_dict())
    assert torch.equal(vision_first(**inputs).logits, audio_first(**inputs).logits)


def test_generate_equals_a_loop_by_hand() -> None:
    """Greedy tokens of one sample equal arg max over the splice by hand, run anew for every token."""
    model, layout = two_modalities(), [[2, IMAGE, 3, SOUND, 1, IMAGE, 2]]
    inputs = batch(layout)
    del inputs["labels"]
    found = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)[
        0, inputs["input_ids"].shape[1] :
    ]
    tokens: list[int] = []
    for _ in range(5):
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([tokens]).long()], dim=1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        logits, _ = by_hand(model, [[*layout[0], len(tokens)]], longer)
        tokens.append(int(logits[0][-1].argmax()))
    assert found.tolist() == tokens


@pytest.mark.parametrize("absent", ["pixel_values", "input_features"])
def test_an_absent_modality_is_named(absent: str) -> None:
    """Positions of one of two modalities without its input are an error that names that modality."""
    inputs = batch(LAYOUTS["one-of-each"])
    del inputs[absent]
    key = {"pixel_values": "vision", "input_features": "audio"}[absent]
    with pytest.raises(
        ModalityMismatchError, match=f"'{key}'.*{ROWS[IMAGE] if key == 'vision' else ROWS[SOUND]} positions"
    ):
        two_modalities()(**inputs)


def test_only_the_modality_that_is_there_runs() -> None:
    """The encoder of an absent modality is not called at all."""
    model = two_modalities()
    called: list[Any] = []
    model.vision_encoder.module.register_forward_hook(lambda *_: called.append(1))
    model(**batch(LAYOUTS["only-sounds"]))
    assert not called
    model(**batch(LAYOUTS["one-of-each"]))
    assert len(called) == 1
