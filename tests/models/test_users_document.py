"""The snippets of the users' document on training and freezing, typed as they stand (its two typos mended)."""

import pytest
import torch

from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel
from tests import parts, tiny

FIXED = "embed_positions.weight"  # Whisper's sinusoids, which Hugging Face never trains


def mllm_and_inputs() -> tuple[MultimodalModel, dict[str, torch.Tensor]]:
    encoders = {"vision": ModalEncoderModule(parts.clip()), "audio": ModalEncoderModule(parts.whisper())}
    model = MultimodalModel(encoders=encoders, language_model=parts.llama())
    model.set_modality_token_ids({"vision": 300, "audio": 301})
    ids = torch.randint(0, 200, (1, 70))
    ids[:, 2:7], ids[:, 10:60] = 300, 301
    return model, {
        "input_ids": ids,
        "labels": ids.clone(),
        "pixel_values": torch.randn(1, 3, 16, 16),
        "input_features": torch.randn(1, 8, 100),
    }


def trains(model: MultimodalModel) -> dict[str, bool]:
    names = ["language_model"]
    names += [f"{key}_encoder.{part}" for key in model.encoders for part in ("module", "projector")]
    parameters = {name: model.get_submodule(name).named_parameters() for name in names}
    flags = {name: {p.requires_grad for n, p in found if n != FIXED} for name, found in parameters.items()}
    assert all(len(values) == 1 for values in flags.values())
    return {name: values == {True} for name, values in flags.items()}


def test_training() -> None:
    """Called as any torch.nn.Module: output, loss, backward, step."""
    mllm, inputs = mllm_and_inputs()
    optimizer = torch.optim.SGD(mllm.parameters(), lr=0.1)
    output = mllm(**inputs)
    loss = output.loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert mllm(**inputs).loss < loss


def test_freezing() -> None:
    """An encoder and a projector are frozen each by itself; a frozen language model gets no gradient."""
    mllm, inputs = mllm_and_inputs()
    mllm.train(
        encoders_mode={
            "vision": (False, True),  # encoder and projector, respectively
            "audio": (True, True),
        },
        llm_mode=False,
    )
    assert trains(mllm) == {
        "language_model": False,
        "vision_encoder.module": False,
        "vision_encoder.projector": True,
        "audio_encoder.module": True,
        "audio_encoder.projector": True,
    }
    mllm(**inputs).loss.backward()
    assert all(p.grad is None for p in mllm.language_model.parameters())
    assert all(p.grad is None for p in mllm.vision_encoder.module.parameters())
    assert all(p.grad is not None for p in mllm.vision_encoder.projector.parameters())


def test_llm_mode_alone_is_all_encoders_too() -> None:
    """`train(llm_mode=True)` is `train({every encoder: (True, True)}, llm_mode=True)`."""
    first, _ = mllm_and_inputs()
    second, _ = mllm_and_inputs()
    for mllm in (first, second):
        mllm.train(llm_mode=False)
        assert not any(trains(mllm).values())
    first.train(llm_mode=True)
    second.train(dict.fromkeys(second.encoders, (True, True)), llm_mode=True)
    assert trains(first) == trains(second)
    assert not first.audio_encoder.module.embed_positions.weight.requires_grad
    assert all(trains(first).values())


def test_an_encoder_key_that_does_not_exist() -> None:
    """A ValueError that lists the keys there are."""
    mllm, _ = mllm_and_inputs()
    with pytest.raises(ValueError, match="vision, audio"):
        mllm.train("non_existing_encoder", mode=False)
    with pytest.raises(ValueError, match=r"non_existing_encoder.*vision, audio"):
        mllm.train(encoders_mode={"non_existing_encoder": (True, True)})


def test_mode_false_switches_the_mode_and_freezes_nothing() -> None:
    """`train(mode=False)` is evaluation mode as in PyTorch; gradients are computed as before."""
    mllm, inputs = mllm_and_inputs()
    assert mllm.train(mode=False) is mllm
    assert not mllm.language_model.training
    assert all(p.requires_grad for p in mllm.vision_encoder.parameters())
    mllm(**inputs).loss.backward()
    assert all(p.grad is not None for p in mllm.vision_encoder.projector.parameters())


def test_custom_tokens_lie_outside_the_table() -> None:
    """Looking up the ids would fail; the model masks them with 0, and what stands at id 0 changes nothing there."""
    mllm, inputs = mllm_and_inputs()
    table = mllm.get_input_embeddings()
    with pytest.raises(IndexError):
        table(inputs["input_ids"])
    inputs["input_ids"] = inputs["input_ids"].clamp(min=1)  # no text token is 0
    mllm.eval()
    with torch.no_grad():
        before = mllm(**inputs).logits
        table.weight[0] += 10
        assert torch.equal(mllm(**inputs).logits, before)
    assert table.weight.shape[0] == parts.VOCABULARY, "the table is never resized"


def test_encoders_run_first_then_the_embedding_then_the_layers() -> None:
    """The order that the document states, told by hooks; the embedding sees id 0 at modality positions."""
    mllm, inputs = mllm_and_inputs()
    tiny.ask(mllm)
    order: list[str] = []
    seen: list[torch.Tensor] = []
    places = {
        "vision": mllm.vision_encoder,
        "audio": mllm.audio_encoder,
        "embedding": mllm.get_input_embeddings(),
        "layer": mllm.language_model.model.layers[0],
    }
    for name, module in places.items():
        module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    places["embedding"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mllm(**inputs)
    assert order == ["vision", "audio", "embedding", "layer"]
    ids = inputs["input_ids"]
    assert torch.equal(seen[0], torch.where(ids < 300, ids, 0))
