"""Rows that an encoder yields at padding are no features: patches of images of any size, text, packed sounds."""

import pytest
import torch
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from cornstarch import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch.errors import ModalityMismatchError
from tests import parts, tiny
from tests.tiny import assert_near
from tests.zoo import making


def _features(name: str, **changes: torch.Tensor) -> list[torch.Tensor]:
    model = tiny.model(making.encoder(name, torch.float32)).eval()
    with torch.no_grad():
        return list(model.vision_encoder(**(making.media(name, torch.float32) | changes)))


def test_padding_on_either_side_of_text() -> None:
    """The features of a text padded before or behind are those of the text alone, in their order."""
    text = torch.tensor([[9, 8, 7]])
    position_ids = torch.arange(3)[None]
    (alone,) = _features("bert", input_ids=text, attention_mask=torch.ones_like(text), position_ids=position_ids)
    for pad in ((2, 0), (0, 2)):
        ids, mask, positions = (
            torch.nn.functional.pad(value, pad) for value in (text, torch.ones_like(text), position_ids)
        )
        (found,) = _features("bert", input_ids=ids, attention_mask=mask, position_ids=positions)
        assert_near(found, alone, 1e-5)


def test_images_of_any_size_take_as_many_positions_as_they_have_patches() -> None:
    """SigLIP 2's processor pads patches: the processor writes a mark for each patch that is none, and each image's
    features are those it has alone."""
    encoder = tiny.encoder("siglip2", num_patches=16).eval()
    model = MultimodalModel({"vision": ModalEncoderModule(encoder)}, parts.llama()).eval()
    images = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=12)
    processor = MultimodalProcessor({"vision": images}, parts.tokenizer(padding_side="left"), model)
    given = [parts.image(40, 40), parts.image(10, 50)]
    text = ["<vision> what is it?", "a <vision>"]
    batch = processor({"vision": {"images": given}}, {"text": text, "padding": True}, return_tensors="pt")
    sizes = batch["spatial_shapes"].prod(-1).tolist()
    assert sizes != [12, 12]
    marks = batch["input_ids"] == model.modality_token_ids["vision"]
    assert marks.sum(-1).tolist() == sizes
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert torch.isfinite(model(**batch, labels=labels).loss)
    together = model.vision_encoder(
        **{name: batch[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    )
    for image, size, rows in zip(given, sizes, together, strict=True):
        alone = images(image, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**alone).last_hidden_state[0, :size]
            assert_near(rows, model.vision_encoder.projector(hidden), 1e-5)


def test_packed_sounds_may_not_be_shared_by_samples() -> None:
    """Sounds in one sequence are told apart by their lengths, so that none straddles two samples."""
    model = making.pair("qwen2.5-omni", "llama", torch.float32)
    batch = making.batch("qwen2.5-omni", torch.float32)
    ids, mark = batch["input_ids"].clone(), making.MARK
    first = int((ids[0] == mark).int().argmax())
    ids[0, first], ids[1, 0] = 5, mark  # as many marks, one of them in the other sample
    with pytest.raises(ModalityMismatchError, match=r"\[3, 2\].*may not be shared"):
        model(**{**batch, "input_ids": ids})
