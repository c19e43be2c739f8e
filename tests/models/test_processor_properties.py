"""Properties over random batches: positions equal features, and the merge is the slow obvious one."""

from dataclasses import dataclass
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cornstarch import MultimodalModel, MultimodalProcessor
from tests import parts


@dataclass(frozen=True)
class Sample:
    """Words and inputs in their order: a string is text, a tuple is (modality, size, seed)."""

    pieces: tuple


PIECES = st.one_of(
    st.text(alphabet="ab <>é", max_size=4),
    st.tuples(st.just("vision"), st.integers(8, 40), st.integers(0, 5)),
    st.tuples(st.just("audio"), st.integers(500, 9000), st.integers(0, 5)),
    st.tuples(st.just("speech"), st.integers(60, 400), st.integers(0, 5)),
)
SAMPLES = st.lists(st.lists(PIECES, min_size=1, max_size=5).map(lambda pieces: Sample(tuple(pieces))), max_size=3)


@cache
def _model_and_processor() -> tuple[MultimodalModel, MultimodalProcessor]:
    model, processor = parts.three_modalities()
    return model.double(), processor


def _make(kind: str, size: int, seed: int) -> object:
    return parts.image(size, size + 3, seed) if kind == "vision" else parts.sound(size, seed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(samples=SAMPLES.filter(bool), nested=st.booleans(), side=st.sampled_from(["left", "right"]))
def test_positions_equal_features_and_the_merge_is_the_obvious_one(
    samples: list[Sample], nested: bool, side: str
) -> None:
    """Against a loop over samples and positions that embeds a token or takes a modality's next feature; fp64, 1e-12."""
    model, processor = _model_and_processor()
    text = ["".join(p if isinstance(p, str) else f"<{p[0]}>" for p in sample.pieces) for sample in samples]
    encoder_inputs = {}
    for key, argument in (("vision", "images"), ("audio", "raw_speech"), ("speech", "raw_speech")):
        mine = [[_make(*p) for p in s.pieces if not isinstance(p, str) and p[0] == key] for s in samples]
        given_inputs = mine if nested else [item for sample in mine for item in sample]
        encoder_inputs[key] = {argument: given_inputs}
        if key != "vision":
            encoder_inputs[key] |= {"sampling_rate": 16000, "padding": True} | (
                {"padding": "max_length"} if key == "audio" else {}
            )
    batch = processor(
        encoder_inputs=encoder_inputs,
        llm_inputs={"text": text, "padding": True, "padding_side": side},
        return_tensors="pt",
    )
    if batch["input_ids"].shape[1] == 0:
        return
    seen: dict[str, torch.Tensor] = {}
    model.preprocess_llm_callback = lambda inputs: seen.update(inputs) or inputs
    with torch.no_grad():
        model(**batch)
        torch.testing.assert_close(seen["inputs_embeds"], _slow_merge(model, processor, batch), rtol=0, atol=1e-12)


def _slow_merge(model: MultimodalModel, processor: MultimodalProcessor, batch: dict) -> torch.Tensor:
    embedding = model.get_input_embeddings()
    following = {}
    names = {"vision": {"pixel_values": "pixel_values"}, "audio": {"input_features": "input_features"}}
    names["speech"] = {"input_values": "input_values", "speech_attention_mask": "attention_mask"}
    for key, own in names.items():
        inputs = {inner: batch[name] for name, inner in own.items() if name in batch}
        rows = model.encoders[key](**inputs) if inputs else []
        following[key] = iter([row for block in rows for row in block])
    modality = {token_id: key for key, token_id in processor.token_ids.items()}
    merged = [
        [next(following[modality[i]]) if i in modality else embedding(torch.tensor(i)) for i in sample]
        for sample in batch["input_ids"].tolist()
    ]
    assert all(next(rows, None) is None for rows in following.values())
    return torch.stack([torch.stack(rows) for rows in merged])
