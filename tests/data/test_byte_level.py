"""The byte tokenizer: nothing is lost, nothing is added."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cornstarch.data import byte_tokenizer

TOKENIZER = byte_tokenizer()
SPECIAL = ("<pad>", "<bos>", "<eos>")  # are no bytes; the next test has them
# Surrogates are no text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: not any(word in text for word in SPECIAL))


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_ids_are_the_bytes_and_text_comes_back(text: str) -> None:
    """Reference: Python's own UTF-8."""
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<pad>", "<bos>", "<eos>", " ", "a", "\n", "é", "<", "eos>", " ,", " 's"])))
def test_special_tokens_in_the_text_come_back_too(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


@pytest.mark.parametrize("text", ["", "\0", "  two  blanks ", "\r\n", "中文 🙂 e\u0301", "I 'm . ,", "\ufeff\u200d"])
def test_text_that_tokenizers_like_to_change(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_special_tokens() -> None:
    """They follow the bytes, are skipped on demand, and are not put around a text."""
    assert len(TOKENIZER) == 259
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (256, 257, 258)
    assert TOKENIZER("a<eos>")["input_ids"] == [97, 258]
    assert TOKENIZER.decode([97, 258, 256], skip_special_tokens=True) == "a"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side(side: str) -> None:
    ids = byte_tokenizer(side)(["a", "bc"], padding=True)["input_ids"]
    assert ids == [[256, 97] if side == "left" else [97, 256], [98, 99]]


def test_saves_and_reloads(tmp_path: Path) -> None:
    """The same ids, special tokens and padding side, through `AutoTokenizer`."""
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "  ünï<eos> \t'll "
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.special_tokens_map == TOKENIZER.special_tokens_map
    assert loaded.padding_side == "left"


def test_two_tokenizers_share_nothing() -> None:
    first, second = byte_tokenizer(), byte_tokenizer()
    first.add_special_tokens({"extra_special_tokens": ["<mark>"]})
    assert len(second) == 259
