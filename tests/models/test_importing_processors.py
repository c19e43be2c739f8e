"""The processor of an imported model: the original's ids and tensors, and the original's outputs on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cornstarch import ArgumentError, CheckpointError, ModalityMismatchError, MultimodalModel, MultimodalProcessor
from cornstarch.models.multimodal_language_model.input_rules import InputRule
from tests import parts
from tests.models.original_processors import MADE, Saved

Pair = tuple[MultimodalModel, MultimodalProcessor]
# Of the language models, which count ids of features by themselves; ours find them in input_ids.
NOT_NEEDED = {"mm_token_type_ids", "token_type_ids"}
SIZES = [(40, 18), (11, 50), (16, 16), (30, 33)]


@pytest.fixture(params=MADE, scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return MADE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pair(saved: Saved) -> Pair:
    model = MultimodalModel.from_pretrained_multimodal_model(saved.folder)
    return model, MultimodalProcessor.from_pretrained_multimodal_model(saved.folder, model)


def inputs(saved: Saved, count: int) -> list[Any]:
    """Images of several sizes, or sounds of several lengths."""
    if takes_sounds(saved):
        return [parts.sound(3000 + 2500 * number, seed=number) for number in range(count)]
    return [parts.image(*SIZES[number % len(SIZES)], seed=number) for number in range(count)]


def takes_sounds(saved: Saved) -> bool:
    return hasattr(saved.processor, "feature_extractor")


def nested(media: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    rest = iter(media)
    return [[next(rest) for _ in range(count)] for count in counts]


def original(saved: Saved, media: Any, text: list[str], **options: Any) -> dict[str, Any]:
    named = {"audio": media, "sampling_rate": 16000} if takes_sounds(saved) else {"images": media}
    made = saved.processor(text=text, **named, return_tensors="pt", **options)
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


def ours(saved: Saved, processor: MultimodalProcessor, media: Any, text: list[str], **options: Any) -> dict[str, Any]:
    ((key, (argument, _)),) = processor.media_arguments.items()
    more = {"sampling_rate": 16000} if takes_sounds(saved) else {}
    return dict(processor({key: {argument: media, **more}}, {"text": text, **options}, return_tensors="pt"))


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() - NOT_NEEDED
    for name, value in found.items():
        assert value.shape == expected[name].shape, name
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


CASES = {
    "one": ([1], ["{}Which?"]),
    "several": ([2, 1], ["First {}\n\nand {} and", "{}\n"]),
    "side by side": ([3], ["{}{}\n{}"]),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_ids_and_tensors_are_the_originals(saved: Saved, pair: Pair, case: str, side: str) -> None:
    """Single inputs, several in a text, several texts with padding; inputs nested and, where all belong to one text,
    flat. Exactly."""
    _, processor = pair
    counts, text = CASES[case]
    text = [entry.replace("{}", saved.mark) for entry in text]
    media = inputs(saved, sum(counts))
    options = {"padding": True, "padding_side": side}
    forms = [media] if takes_sounds(saved) else [nested(media, counts), *([media] if len(counts) == 1 else [])]
    for given in forms:
        expected = original(saved, given, text, **options)
        same(ours(saved, processor, given, text, **options), expected)
        if takes_sounds(saved):
            same(ours(saved, processor, nested(media, counts), text, **options), expected)


def test_text_alone_is_the_originals(saved: Saved, pair: Pair) -> None:
    text = ["Nothing to see.", "\n\nand"]
    expected = saved.processor(text=text, padding=True, return_tensors="pt")
    found = pair[1](None, {"text": text, "padding": True}, return_tensors="pt")
    same(dict(found), dict(expected))


def test_chats_are_the_originals(saved: Saved, pair: Pair) -> None:
    """Typed content in several turns, and strings where the original's template writes them; the same text."""
    _, processor = pair
    kind = "audio" if takes_sounds(saved) else "image"
    chat = [
        {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A tree."}]},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": kind}, {"type": "text", "text": "?"}]},
    ]
    ((key, _),) = processor.tokens.items()
    by_key = [
        {**turn, "content": [{**part, "type": key} if part["type"] == kind else part for part in turn["content"]]}
        for turn in chat
    ]
    for generate in (False, True):
        expected = saved.processor.apply_chat_template(chat, add_generation_prompt=generate)
        assert saved.mark in expected
        assert processor.apply_chat_template(chat, add_generation_prompt=generate) == expected
        assert processor.apply_chat_template(by_key, add_generation_prompt=generate) == expected
    assert processor.apply_chat_template([chat, chat[:1]]) == saved.processor.apply_chat_template([chat, chat[:1]])
    string = [{"role": "user", "content": "Hello"}]
    as_parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert processor.apply_chat_template(string) == saved.processor.apply_chat_template(as_parts)
    text, media = processor.apply_chat_template(chat), inputs(saved, 2)
    given = media if takes_sounds(saved) else [media]
    same(ours(saved, processor, given, [text]), original(saved, given, [text]))


@torch.no_grad()
def test_outputs_are_the_originals(saved: Saved, pair: Pair) -> None:
    """Logits at 1e-5 of the largest, and greedy text, of a padded batch; each model on its own processor's inputs."""
    model, processor = pair
    counts, text = CASES["several"]
    text = [entry.replace("{}", saved.mark) for entry in text]
    media = inputs(saved, sum(counts))
    given = media if takes_sounds(saved) else nested(media, counts)
    options = {"padding": True, "padding_side": "left"}
    made = saved.processor(
        text=text,
        **({"audio": given, "sampling_rate": 16000} if takes_sounds(saved) else {"images": given}),
        return_tensors="pt",
        **options,
    )
    mask = made["attention_mask"].bool()
    positions = {} if "mm_token_type_ids" in made else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    expected = saved.model(**made, **positions).logits[mask]
    mine = ours(saved, processor, given, text, **options)
    found = model(**mine).logits[mask]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert model.generate(**mine, **greedy).tolist() == saved.model.generate(**made, **greedy).tolist()


@pytest.mark.filterwarnings("ignore:truncation left out whole inputs")
def test_truncation_leaves_inputs_whole(saved: Saved, pair: Pair) -> None:
    """Every length: what is left is the beginning of the whole, with all of an input's text or none of it, and the
    model takes it."""
    model, processor = pair
    text = f"ab{saved.mark}c{saved.mark}d"
    media = inputs(saved, 2)
    whole = ours(saved, processor, [media], [text])["input_ids"][0].tolist()
    lengths = {}
    for limit in range(1, len(whole) + 1):
        batch = ours(saved, processor, [media], [text], truncation=True, max_length=limit)
        ids = batch["input_ids"][0].tolist()
        lengths[len(ids)] = batch
        if len(ids) <= 2 or len(ids) >= len(whole) - 1:
            assert whole[: len(ids)] == ids
    # a, ab, ab with the first, and c behind it; then the second and d. The text of an input may have taken c in; and
    # one input alone may take more positions than each of two, and then leave with the second.
    assert 4 <= len(lengths) <= 6
    assert len(whole) in lengths
    for batch in lengths.values():
        model(**batch)


def test_labels(saved: Saved, pair: Pair) -> None:
    """Spans are of the text as it was given: labels are those characters' tokens, also behind inputs."""
    _, processor = pair
    text = f"Q {saved.mark} and {saved.mark}: tree, sea"
    spans = [(0, 1), (text.index("tree"), text.index(","))]
    batch = ours(saved, processor, [inputs(saved, 2)], [text], label_spans=[spans])
    labels = batch["labels"][0]
    assert processor.decode(labels[labels != -100]) == "Qtree"
    spans = [(0, len(text))]
    labels = ours(saved, processor, [inputs(saved, 2)], [text], label_spans=[spans])["labels"][0]
    assert processor.decode(labels[labels != -100]).replace("\n", "") == "Q  and : tree, sea"


def test_saved_and_loaded(saved: Saved, pair: Pair, tmp_path: Path) -> None:
    """Nothing but data is saved, and the same ids and tensors come of it."""
    model, processor = pair
    processor.save_pretrained(tmp_path)
    again = MultimodalProcessor.from_pretrained(tmp_path, model)
    text, media = [f"a{saved.mark}b{saved.mark}"], [inputs(saved, 2)]
    same(ours(saved, again, media, text), ours(saved, processor, media, text))
    assert again.rules == processor.rules
    assert again.apply_chat_template([{"role": "user", "content": "a"}])


def test_inputs_and_marks_must_pair(saved: Saved, pair: Pair) -> None:
    with pytest.raises(ModalityMismatchError, match="sample 1 has 0 marks"):
        ours(saved, pair[1], nested(inputs(saved, 2), [1, 1]), [saved.mark, "none"])


def test_text_files_are_kept(saved: Saved, pair: Pair, tmp_path: Path) -> None:
    """As they are, also after saving and loading."""
    model, processor = pair
    names = {path.name for path in saved.folder.iterdir() if "processor" in path.name or "template" in path.name}
    assert names
    assert set(processor.origin_files) == names
    for name in names:
        assert processor.origin_files[name] == (saved.folder / name).read_text(encoding="utf-8")
    processor.save_pretrained(tmp_path)
    assert MultimodalProcessor.from_pretrained(tmp_path, model).origin_files == processor.origin_files


def test_only_for_imported_models(saved: Saved) -> None:
    with pytest.raises(ArgumentError, match="was not taken out of"):
        MultimodalProcessor.from_pretrained_multimodal_model(saved.folder, parts.vision_model())


def test_crops(tmp_path: Path) -> None:
    """Of images much longer than wide, if asked for; as the original's processor has them."""
    saved = MADE["gemma3"](tmp_path)
    model = MultimodalModel.from_pretrained_multimodal_model(tmp_path)
    processor = MultimodalProcessor.from_pretrained_multimodal_model(tmp_path, model)
    media, text = [[parts.image(40, 18), parts.image(16, 16)]], [f"See {saved.mark} and {saved.mark}."]
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8}
    batch = processor({"vision": {"images": media, **crops}}, {"text": text}, return_tensors="pt")
    same(dict(batch), original(saved, media, text, **crops))
    assert batch["pixel_values"].shape[0] > 2
    model(**batch)
    with pytest.raises(ArgumentError, match="the processor writes itself"):
        processor(None, {"text": "<image_soft_token>"})


def _numbered(outputs: Any, token: str, number: int) -> list[str]:
    return [f"[{index}: {token}|{token}]" for index in range(number)]


def test_texts_of_ones_own(tmp_path: Path) -> None:
    """Any function makes them; features are spread over its marks, and it must be given again after saving."""
    model = parts.vision_model()
    rule = InputRule(text=_numbered, token="<f>")
    count = {"vision": lambda given, outputs: 6}
    arguments = ({"vision": parts.clip_processor()}, parts.tokenizer(), model, count)
    processor = MultimodalProcessor(*arguments, rules={"vision": rule})
    given = {"vision": {"images": [parts.image(), parts.image()]}}
    ids = processor(given, {"text": "a<vision><vision>"})["input_ids"][0]
    features = "<f>" * 3
    assert processor.decode(ids) == f"a[0: {features}|{features}][1: {features}|{features}]"
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"a text function of the caller's own for vision .*_numbered"):
        MultimodalProcessor.from_pretrained(tmp_path, model, count)
    again = MultimodalProcessor.from_pretrained(tmp_path, model, count, rules={"vision": rule})
    assert again(given, {"text": "a<vision><vision>"})["input_ids"][0] == ids
    odd = MultimodalProcessor(*arguments[:3], {"vision": lambda given, outputs: 5}, rules={"vision": rule})
    with pytest.raises(ArgumentError, match="counted 5 features for an input whose text has 2 runs"):
        odd(given, {"text": "a<vision><vision>"})
    none = MultimodalProcessor(*arguments, rules={"vision": InputRule(text=lambda *_: ["no mark", "no mark"])})
    with pytest.raises(ArgumentError, match="must make a text for each of the 2 inputs"):
        none(given, {"text": "a<vision><vision>"})
