"""Text and labels of conversations, against a slow obvious reference for templates people use."""

import random
from typing import Any

import pytest
from PIL import Image

from cornstarch import ArgumentError, Collator, ModalityMismatchError, Sample, render, set_template
from cornstarch.data.conversations import TEMPLATES
from tests import parts

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\\n\\n' }}"
    "{{ m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
FORGETFUL = (  # writes what the assistant said shorter once something follows, as templates of reasoning models do
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}{{ 'A: ' + m['content'][:1] }}"
    "{% else %}{{ m['role'] + ': ' + m['content'] }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def pair(template: str | None = None) -> tuple[Any, Any]:
    model, processor = parts.vision_pair()
    if template is None or template in TEMPLATES:
        set_template(processor.llm_tokenizer, template)
    else:
        processor.llm_tokenizer.chat_template = template
    return model, processor


def talk(*turns: str, image: bool = False, system: str | None = None) -> Sample:
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for number, text in enumerate(turns):
        content: Any = text
        if image and number == 0:
            content = [{"type": "image", "image": Image.new("RGB", (16, 16))}, {"type": "text", "text": text}]
        messages.append({"role": "user" if number % 2 == 0 else "assistant", "content": content})
    return Sample(messages=tuple(messages), name="a talk")


def said(processor: Any, batch: Any, row: int = 0) -> list[str]:
    """Runs of labelled tokens as text."""
    runs, run = [], []
    for label in [*batch["labels"][row].tolist(), -100]:
        if label != -100:
            run.append(label)
        elif run:
            runs.append(processor.decode(run))
            run = []
    return runs


@pytest.mark.parametrize(
    "template, end",
    [("plain", "<eos>"), ("vicuna", "<eos>"), (CHATML, "<|im_end|>"), (LLAMA3, "<|eot|>"), (MISTRAL, "<eos>")],
    ids=["plain", "vicuna", "chatml", "llama3", "mistral"],
)
@pytest.mark.parametrize("image", [False, True])
def test_labels_are_on_what_the_assistant_says(template: str, end: str, image: bool) -> None:
    """Every turn of the assistant's and the token that ends it, nothing else; the last turn alone when asked."""
    model, processor = pair(template)
    sample = talk("What is this?", "A cat.", "Sure?", "Yes, sure!", image=image)
    batch = Collator(processor)([sample])
    runs = [text.strip() for text in said(processor, batch)]
    assert runs == [f"A cat.{end}", f"Yes, sure!{end}"]
    assert [t.strip() for t in said(processor, Collator(processor, turns="last")([sample]))] == [f"Yes, sure!{end}"]
    labelled = batch["labels"] != -100
    assert (batch["labels"][labelled] == batch["input_ids"][labelled]).all()
    assert model(**batch).loss.isfinite()


def test_a_prompt_is_what_stands_before_the_labels() -> None:
    """Token for token, for a template that writes a header before the answer."""
    _, processor = pair(CHATML)
    collator = Collator(processor)
    sample = talk("Why?", "Because.", image=True, system="Be brief.")
    batch, prompt = collator([sample]), collator.prompts([sample])
    first = (batch["labels"][0] != -100).nonzero()[0].item()
    assert prompt["input_ids"][0].tolist() == batch["input_ids"][0, :first].tolist()
    assert "labels" not in prompt


def test_rows_of_different_length_are_padded() -> None:
    """Right for training, left for prompts; padding carries no label even where it is the end token."""
    _, processor = pair("plain")
    processor.llm_tokenizer.pad_token = processor.llm_tokenizer.eos_token
    collator = Collator(processor)
    samples = [talk("a", "b"), talk("longer question", "c", image=True)]
    batch, prompts = collator(samples), collator.prompts(samples)
    assert [said(processor, batch, row) for row in (0, 1)] == [["b<eos>"], ["c<eos>"]]
    assert batch["attention_mask"][0, -1] == 0
    assert prompts["attention_mask"][:, -1].all()
    assert prompts["attention_mask"][0, 0] == 0


def test_truncation_keeps_labels_in_their_places() -> None:
    _, processor = pair("plain")
    whole = Collator(processor)([talk("abc", "defg", image=True)])
    cut = Collator(processor, max_length=11)([talk("abc", "defg", image=True)])
    assert cut["input_ids"].shape == (1, 11)
    assert (cut["labels"][0] == whole["labels"][0, :11]).all()


def test_the_token_that_ends_a_turn_is_found() -> None:
    _, processor = pair("plain")
    assert Collator(processor).end_of_turn == processor.llm_tokenizer.eos_token_id
    processor.llm_tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<|im_end|>"]}, replace_extra_special_tokens=False
    )
    processor.llm_tokenizer.chat_template = CHATML
    assert Collator(processor).end_of_turn == processor.llm_tokenizer.convert_tokens_to_ids("<|im_end|>")
    processor.llm_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert Collator(processor).end_of_turn is None


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """Naming sample and turn; the last turn can be trained on all the same."""
    _, processor = pair(FORGETFUL)
    sample = talk("What?", "A cat.", "Sure?", "Yes.")
    with pytest.raises(ArgumentError, match=r"a talk: .* writes turn 1 differently .*data.turns"):
        Collator(processor)([sample])
    assert said(processor, Collator(processor, turns="last")([sample])) == ["Yes.<eos>"]


def test_a_template_that_refuses_a_role_is_named() -> None:
    _, processor = pair(MISTRAL)
    with pytest.raises(ArgumentError, match=r"a talk: .*refuses a conversation of system, user, assistant: only"):
        Collator(processor)([talk("a", "b", system="c")])


def test_text_that_looks_like_a_mark_is_refused_by_name() -> None:
    """It would become an image's place; the sample is named."""
    _, processor = pair("plain")
    with pytest.raises(ArgumentError, match=r"a talk: the text holds '<vision>'"):
        render(processor, talk("see <vision>?", "no"))


def test_media_without_a_modality_are_refused() -> None:
    _, processor = pair("plain")
    messages = ({"role": "user", "content": [{"type": "audio", "audio": [0.0]}]}, {"role": "assistant", "content": "x"})
    with pytest.raises((ArgumentError, ModalityMismatchError), match="audio"):
        Collator(processor)([Sample(messages=messages, name="a sound")])


@pytest.mark.parametrize(
    "message, expected",
    [
        ({"role": "robot", "content": "x"}, "role 'robot'; known roles: system, user, assistant"),
        ({"role": "user", "content": 3}, "must have text or a list of parts"),
        ({"role": "user", "content": [{"type": "image"}]}, "names no type and its content"),
    ],
)
def test_samples_are_checked(message: dict[str, Any], expected: str) -> None:
    with pytest.raises(ArgumentError, match=f"it: message 0 .*{expected}"):
        Sample(messages=(message,), name="it")


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_keeps_its_own_template_unless_told() -> None:
    tokenizer = parts.tokenizer()
    tokenizer.chat_template = CHATML
    set_template(tokenizer)
    assert tokenizer.chat_template == CHATML
    set_template(tokenizer, "vicuna")
    assert "USER: " in tokenizer.chat_template


def test_text_begins_as_the_tokenizer_would_begin_it() -> None:
    """With its first token where it puts one before text by itself, once; and without where it does not."""
    for with_bos in (True, False):
        tokenizer = parts.tokenizer(with_bos_and_eos=with_bos)
        set_template(tokenizer, "plain")
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        assert text == ("<bos>a\n" if with_bos else "a\n")


def test_templates_from_files(tmp_path: Any) -> None:
    tokenizer = parts.tokenizer()
    (tmp_path / "mine.jinja").write_text(CHATML)
    set_template(tokenizer, str(tmp_path / "mine.jinja"))
    assert tokenizer.chat_template == CHATML
    with pytest.raises(ArgumentError, match=r"'viccuna' is none of plain, vicuna, vicuna_v1, and no file"):
        set_template(tokenizer, "viccuna")


# --- the processor's spans --------------------------------------------------------------------------------------------


def test_label_spans_against_a_loop_over_characters() -> None:
    """Random texts and spans of bytes as tokens: each token is labelled if its character is in a span."""
    _, processor = pair("plain")
    chance = random.Random(0)
    for _ in range(50):
        text = "".join(chance.choice("abc de") for _ in range(chance.randint(1, 30)))
        cuts = sorted(chance.sample(range(len(text) + 1), min(len(text) + 1, chance.choice([0, 2, 4]))))
        spans = list(zip(cuts[::2], cuts[1::2], strict=False))
        side = chance.choice(["left", "right"])
        options = {"text": [text, "x" * 40], "label_spans": [spans, []], "padding": True, "padding_side": side}
        batch = processor(None, options, return_tensors="pt")
        inside = [any(start <= place < end for start, end in spans) for place in range(len(text))]
        expected = [ord(character) if kept else -100 for character, kept in zip(text, inside, strict=True)]
        byte = [processor.decode([label]) if label != -100 else None for label in batch["labels"][0].tolist()]
        padding = [None] * (40 - len(text))
        wanted = [chr(label) if label != -100 else None for label in expected]
        assert byte == (padding + wanted if side == "left" else wanted + padding)
        assert set(batch["labels"][1].tolist()) == {-100}


@pytest.mark.parametrize("spans", [[[(0, 9)]], [[(2, 1)]], [[], []]])
def test_spans_outside_the_text_are_refused(spans: Any) -> None:
    _, processor = pair("plain")
    with pytest.raises(ArgumentError, match="label_spans"):
        processor(None, {"text": ["abc"], "label_spans": spans})
