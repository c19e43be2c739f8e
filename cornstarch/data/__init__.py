"""Data: what a model is shown, and the batches it is shown in."""

from cornstarch.data.byte_tokenizer import byte_tokenizer
from cornstarch.data.digits import Example, digit_questions

__all__ = ["Example", "byte_tokenizer", "digit_questions"]
