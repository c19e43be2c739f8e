"""Turns in templates that are odd, cut, or marked by somebody else; references are written out or Hugging Face's."""

import itertools
import pickle
from datetime import datetime, timedelta
from typing import Any

import pytest
import transformers.utils.chat_template_utils
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from cornstarch import ArgumentError, Collator, SampleError, UnlabelledError, render, set_template
from cornstarch.data.conversations import TEMPLATES, _name_of_template
from tests import parts
from tests.data.families import FAMILIES, Turns, stored
from tests.data.test_labels import TALKS, messages, processor

THOUGHT = "<think>\nLight is scattered.\n</think>\n\nBecause."
NO_PROMPT = "{% for m in messages %}<{{ m['role'] }}>{{ '\\n' + m['content'] + '</s>' }}{% endfor %}"
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
OTHER_END = (  # one token ends the last turn, another the ones before, as in gpt-oss
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}"
    "{{ '</s>' if loop.last and m['role'] == 'assistant' else '<s>' }}{% endfor %}"
)
DOUBLE = "{% for m in messages %}{{ m['content'] + m['content'] + '</s>' }}{% endfor %}"
LOUD = (  # changes what is said, but has a prompt to generate and writes turns alike
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | upper + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def labelled(used: Any, turns: Turns, last: bool = False) -> list[str]:
    """Runs of labelled tokens as text."""
    batch = Collator(used, turns="last" if last else "all")([messages(turns)])
    runs = itertools.groupby(batch["labels"][0].tolist(), lambda label: label != -100)
    return [used.decode(list(run)) for inside, run in runs if inside]


@pytest.fixture
def odd() -> Any:
    """A processor of the family `plain`, whose template a test changes."""
    used = processor("plain")
    before = used.llm_tokenizer.chat_template
    yield used
    used.llm_tokenizer.chat_template = before


@pytest.fixture
def thinking() -> Any:
    return processor("qwen3")


def test_ends_of_turns_are_known() -> None:
    """Also where the template goes on with a line break or ends the whole text, or the token is not the tokenizer's."""
    for family, row in FAMILIES.items():
        text = row.write([("user", "a"), ("assistant", "b")])
        token = text[text.index("⟦") : text.index("⟧")].strip("⟦ ").removeprefix("b").strip()
        made = processor(family).llm_tokenizer
        assert Collator(processor(family)).end_of_turn == made.convert_tokens_to_ids(token), family


# --- cut --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:truncation left out")
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_labels_are_the_first_of_the_whole(family: str) -> None:
    """At every length: an image is whole or away with all behind it, and a sample without a label is refused."""
    used = processor(family)
    sample, mark = messages(TALKS["images"]), used.token_ids["vision"]
    whole = Collator(used)([sample])
    ids, labels = whole["input_ids"][0].tolist(), whole["labels"][0].tolist()
    refused = 0
    for length in range(1, len(ids) + 2):
        kept = min(length, len(ids))
        run = next(n for n in range(kept, -1, -1) if n == 0 or ids[n - 1] != mark)
        kept = kept if (kept - run) % 5 == 0 else run  # five positions an image
        if all(label == -100 for label in labels[1:kept]):
            refused += 1
            with pytest.raises(UnlabelledError, match=rf"^a talk: no labelled token within its first {length} pos"):
                Collator(used, max_length=length)([sample])
            continue
        batch = Collator(used, max_length=length)([sample])
        assert batch["input_ids"][0].tolist() == ids[:kept]
        assert batch["labels"][0].tolist() == labels[:kept]
        assert len(batch["pixel_values"]) == ids[:kept].count(mark) // 5
    assert 5 < refused < len(ids)


def test_samples_without_labels_are_told_apart() -> None:
    """Which they are, and the first by its name, also where the error comes from another process."""
    collator = Collator(processor("chatml"))
    asked, answered = messages([("user", "a")]), messages([("user", "a"), ("assistant", "b")])
    with pytest.raises(UnlabelledError, match="a talk: no labelled token: labels are on") as caught:
        collator([answered, asked, answered, asked])
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.places, error.sample, str(error)) == ((1, 3), "a talk", str(caught.value))
    other = pickle.loads(pickle.dumps(SampleError("it is wrong", "it")))
    assert (other.sample, str(other)) == ("it", "it is wrong")


# --- templates with marks for what the assistant says -----------------------------------------------------------------


@pytest.mark.parametrize(
    "family, beyond",
    [
        ("llama3", []),
        ("cohere", []),
        ("gemma", ["\n", "\n"]),
        ("phi3", ["\n", "\n<|endoftext|>"]),
        ("qwen2_5", ["\n", "\n", "\n", "\n"]),  # before each text, and after each end
        ("qwen3", ["<think>\n\n</think>\n\n", "\n", "<think>\n\n</think>\n\n", "\n"]),
    ],
)
def test_marked_templates_say_the_same(family: str, beyond: list[str]) -> None:
    """Hugging Face's mask of TRL's templates; `beyond` is what TRL marks and nobody said."""
    used = processor(family.replace("_", "."))
    tokenizer, turns = used.llm_tokenizer, TALKS["several"][:4]
    chat = [{"role": role, "content": said} for role, said in turns]
    before, tokenizer.chat_template = tokenizer.chat_template, stored(f"{family}_training")
    try:
        theirs = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        batch = Collator(used)([messages(turns)])
    finally:
        tokenizer.chat_template = before
    ids, ours = batch["input_ids"][0].tolist(), (batch["labels"][0] != -100).tolist()
    assert ids == list(theirs["input_ids"])
    pairs = list(zip(ids, ours, theirs["assistant_masks"], strict=True))
    assert all(their for _, our, their in pairs if our)
    runs = itertools.groupby(pairs, lambda pair: bool(pair[2]) and not pair[1])
    found = [used.decode([token_id for token_id, _, _ in run]) for more, run in runs if more]
    assert [text.strip(" ") for text in found] == beyond


# --- thoughts ---------------------------------------------------------------------------------------------------------


def test_thoughts_of_the_last_turn_are_learnt(thinking: Any) -> None:
    """They follow the prompt to generate; without any, the template's empty ones are part of the prompt."""
    turns = [("user", "Why?"), ("assistant", THOUGHT)]
    assert labelled(thinking, turns) == [f"{THOUGHT}<|im_end|>"]
    asked = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert render(thinking, messages(turns), generate=True).text == asked
    silent = [("user", "Why?"), ("assistant", "Because.")]
    assert labelled(thinking, silent) == ["Because.<|im_end|>"]
    for sample in (messages(silent), messages(silent[:1])):
        assert render(thinking, sample, generate=True).text == f"{asked}<think>\n\n</think>\n\n"


def test_thoughts_that_are_left_out_later_are_refused(thinking: Any) -> None:
    """Template and turn are named; the last turn can be trained on all the same."""
    thinking.llm_tokenizer.name_or_path = "acme/thinker"
    turns = [("user", "Why?"), ("assistant", THOUGHT), ("user", "Sure?"), ("assistant", "Yes.")]
    message = r"a talk: the chat template of the tokenizer 'acme/thinker' .* writes turn 1 differently .*data.turns"
    with pytest.raises(SampleError, match=message):
        Collator(thinking)([messages(turns)])
    assert labelled(thinking, turns, last=True) == ["Yes.<|im_end|>"]
    # Where the thoughts are empty nothing is left out, and every turn is known.
    turns[1] = ("assistant", "Because.")
    assert labelled(thinking, turns) == ["Because.<|im_end|>", "Yes.<|im_end|>"]


def test_a_prompt_that_turns_do_not_begin_with(odd: Any) -> None:
    """DeepSeek R1's prompt opens thoughts, which written turns lack: only what was said is labelled."""
    odd.llm_tokenizer.chat_template = stored("deepseek_r1_distill")
    turns = [("user", "Why?"), ("assistant", "Because."), ("user", "Sure?"), ("assistant", "Yes.")]
    end = "<\uff5cend▁of▁sentence\uff5c>"
    assert labelled(odd, turns) == [f"Because.{end}", f"Yes.{end}"]
    assert render(odd, messages(turns), generate=True).text.endswith("<\uff5cAssistant\uff5c>")
    with pytest.raises(SampleError, match="writes turn 1 differently"):
        render(odd, messages([("user", "Why?"), ("assistant", THOUGHT)]))


# --- odd templates ----------------------------------------------------------------------------------------------------


def test_headers_are_not_labelled_without_a_prompt_to_generate(odd: Any) -> None:
    odd.llm_tokenizer.chat_template = NO_PROMPT
    assert labelled(odd, TALKS["several"][:4]) == ["Because.</s>", "Yes, because.\n\nThat is all.</s>"]
    assert render(odd, messages(TALKS["single"]), generate=True).text.endswith("</s><assistant>\n")
    assert render(odd, messages(TALKS["single"][:1]), generate=True).text.endswith("</s><assistant>\n")


def test_without_a_token_that_ends_turns_the_text_alone_is_labelled(odd: Any) -> None:
    odd.llm_tokenizer.chat_template = NO_END
    assert labelled(odd, TALKS["several"][:4]) == [" Because.", " Yes, because.\n\nThat is all."]
    assert Collator(odd).end_of_turn is None


def test_ends_that_differ_are_refused(odd: Any) -> None:
    odd.llm_tokenizer.chat_template = OTHER_END
    with pytest.raises(SampleError, match="ends turn 1 differently"):
        Collator(odd)([messages(TALKS["several"])])
    assert labelled(odd, TALKS["several"], last=True) == ["I am not.</s>"]


def test_text_that_is_written_twice_is_refused(odd: Any) -> None:
    odd.llm_tokenizer.chat_template = DOUBLE
    with pytest.raises(SampleError, match="leaves out or repeats turn 1"):
        Collator(odd)([messages(TALKS["single"])])


def test_text_that_is_changed_is_what_follows_the_prompt(odd: Any) -> None:
    odd.llm_tokenizer.chat_template = LOUD
    assert labelled(odd, TALKS["several"][:4]) == ["BECAUSE.</s>", "YES, BECAUSE.\n\nTHAT IS ALL.</s>"]


def test_changed_text_without_a_prompt_is_refused(odd: Any) -> None:
    """Nothing says where it begins, and the header must not be taken for it."""
    odd.llm_tokenizer.chat_template = NO_PROMPT.replace("m['content']", "m['content'] | upper")
    with pytest.raises(SampleError, match="writes turn 1 differently"):
        render(odd, messages(TALKS["single"]))


def test_blanks_at_the_end_are_labelled() -> None:
    """Also by a tokenizer that leaves them out of its offsets, where no token ends the turn."""
    used = processor("chatml", True)
    before, used.llm_tokenizer.chat_template = used.llm_tokenizer.chat_template, NO_END
    try:
        assert labelled(used, [("user", "x"), ("assistant", "a  "), ("user", "y")]) == [" a  "]
    finally:
        used.llm_tokenizer.chat_template = before


def test_what_stands_first_is_not_learnt(odd: Any) -> None:
    """A label there has no part in the loss."""
    odd.llm_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UnlabelledError):
        Collator(odd)([messages([("user", ""), ("assistant", "a")])])
    assert labelled(odd, [("user", ""), ("assistant", "ab")]) == ["ab"]


def test_templates_have_names(odd: Any) -> None:
    """Those of this package their own, others that of the tokenizer and how they begin."""
    for name in TEMPLATES:
        set_template(odd.llm_tokenizer, name)
        assert _name_of_template(odd.llm_tokenizer) == f"the chat template {name!r}"
    odd.llm_tokenizer.chat_template = DOUBLE
    assert _name_of_template(odd.llm_tokenizer).endswith(f"({DOUBLE[:40]!r}...)")


def test_midnight_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that writes the date is rendered several times; the day may change between any two."""

    class Clock:
        calls = 0

        @classmethod
        def now(cls) -> datetime:
            cls.calls += 1
            return datetime(2026, 1, 1) + timedelta(days=cls.calls > cls.midnight)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Clock)
    days = set()
    for midnight in range(8):
        Clock.calls, Clock.midnight = 0, midnight  # type: ignore[attr-defined]
        text, spans, _ = render(processor("llama3.2"), messages(TALKS["several"][:4]))
        assert [text[start:end] for start, end in spans] == [
            "Because.<|eot_id|>",
            "Yes, because.\n\nThat is all.<|eot_id|>",
        ]
        days |= {day for day in ("01 Jan", "02 Jan") if day in text}
    assert days == {"01 Jan", "02 Jan"}


@pytest.mark.parametrize(
    "name, mark, special, blank",
    [
        ("smolvlm", "<image>", ["<end_of_utterance>"], " "),
        ("qwen2_5_vl", "<|image_pad|>", ["<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>"], ""),
    ],
)
def test_templates_that_take_content_in_parts(name: str, mark: str, special: list[str], blank: str) -> None:
    """They write images themselves, and SmolVLM's takes no strings at all."""
    tokenizer = parts.tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
    tokenizer.chat_template = stored(name)
    images = {"vision": parts.clip_processor()}
    used = parts.MultimodalProcessor(images, tokenizer, parts.vision_model(), predefined_tokens={"vision": mark})
    for talk in ("single", "several", "system", "images", "nothing said"):
        turns = TALKS[talk]
        expected = [f"{blank}{said}{special[0]}" for role, said in turns if role == "assistant"]
        assert labelled(used, turns) == expected
        assert render(used, messages(turns)).text.endswith(f"{expected[-1]}\n")
    assert Collator(used).end_of_turn == tokenizer.convert_tokens_to_ids(special[0])


# --- special tokens ---------------------------------------------------------------------------------------------------


def test_a_text_begins_once(odd: Any) -> None:
    """Where template and tokenizer both begin a text, it is the template that does."""
    family = processor("llama3")
    tokenizer = family.llm_tokenizer
    inner = tokenizer.backend_tokenizer
    before, first = inner.post_processor, tokenizer.bos_token
    inner.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    try:
        assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        for said in ("Because.", "<|eot_id|> is text"):
            batch = Collator(family)([messages([("user", "Why?"), ("assistant", said)])])
            assert batch["input_ids"][0].tolist().count(tokenizer.bos_token_id) == 1
    finally:
        inner.post_processor = before


def test_headers_that_swallow_blanks_are_not_labelled() -> None:
    """Phi 3's tokens take what blanks follow; those of the text are gone with the header, which nobody said."""
    used = parts.vision_pair()[1]
    tokenizer, row = used.llm_tokenizer, FAMILIES["phi3"]
    tokens = [AddedToken(token, special=True, rstrip=True, normalized=False) for token in row.special]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    tokenizer.chat_template = row.template
    turns = [("user", "Why?"), ("assistant", "\n\n So. "), ("user", " Oh."), ("assistant", " "), ("user", "!")]
    assert labelled(used, turns) == ["So. <|end|>", "<|end|>"]


def test_plain_spans_are_text(odd: Any) -> None:
    """With the offsets of the whole; labels and special tokens around them stay."""
    text = "a</s>b</s>c"
    options = {"text": [text], "add_special_tokens": False, "plain_spans": [[(1, 5)]], "label_spans": [[(1, 10)]]}
    batch = odd(None, options)
    end = odd.llm_tokenizer.convert_tokens_to_ids("</s>")
    assert batch["input_ids"][0].count(end) == 1
    assert odd.decode(batch["input_ids"][0]) == text
    assert odd.decode([label for label in batch["labels"][0] if label != -100]) == "</s>b</s>"
    with pytest.raises(ArgumentError, match="plain_spans needs add_special_tokens=False"):
        odd(None, {**options, "add_special_tokens": True})
    with pytest.raises(ArgumentError, match=r"plain_spans: sample 0 has \(1, 50\)"):
        odd(None, {**options, "plain_spans": [[(1, 50)]]})


def test_no_blank_is_put_where_a_text_is_taken_apart() -> None:
    """SentencePiece's begin of a text is that of the whole text alone."""
    used = processor("mistral")
    options = {"text": ["a</s>b"], "add_special_tokens": False, "plain_spans": [[(1, 5)]]}
    assert used.llm_tokenizer.convert_ids_to_tokens(used(None, options)["input_ids"][0])[1] == "<0x3C>"
    assert used.decode(used(None, options)["input_ids"][0]) == "a</s>b"


def test_special_tokens_that_cannot_be_text_are_refused() -> None:
    """A tokenizer of whole words knows them as words too."""
    words = ["<pad>", "<end>", "<unk>", "a", "b"]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    made.chat_template = "{% for m in messages %}{{ m['content'] + ' ' + eos_token + ' ' }}{% endfor %}"
    used = parts.MultimodalProcessor({"vision": parts.clip_processor()}, made, parts.vision_model())
    with pytest.raises(ArgumentError, match="the text holds '<end>', of which the tokenizer makes a special"):
        Collator(used)([messages([("user", "a"), ("assistant", "b <end> b")])])
