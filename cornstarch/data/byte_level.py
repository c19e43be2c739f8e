"""A tokenizer that needs no file and no training: every byte of UTF-8 is a token."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
# The bytes that the byte-level alphabet shows as the Latin-1 character of the same number; all others it shows as the
# characters from 256 on, in order, so that no token is a blank or a control character.
_SHOWN_AS_THEMSELVES = {*range(33, 127), *range(161, 173), *range(174, 256)}


def byte_tokenizer(padding_side: str = "left") -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer: ids 0 to 255 are the bytes, then `<pad>`, `<bos>` and `<eos>`.

    Text is never changed, so decoding what was encoded gives the text back exactly. Nothing is put around a text;
    special tokens are those that stand in it.

    Args:
        padding_side: `"left"`, as generation needs it, or `"right"`.

    Returns:
        A tokenizer of 259 tokens that saves and reloads like any of Hugging Face's.
    """
    characters = _byte_characters()
    vocabulary = {character: byte for byte, character in enumerate(characters)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, padding_side=padding_side, clean_up_tokenization_spaces=False, **SPECIAL_TOKENS
    )


def _byte_characters() -> list[str]:
    """The character that stands for each byte in the byte-level alphabet."""
    others = (byte for byte in range(256) if byte not in _SHOWN_AS_THEMSELVES)
    moved = {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]
