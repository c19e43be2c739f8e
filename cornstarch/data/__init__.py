"""Data: what a model is shown, and the batches it is shown in.

Files stand in the order of the flow: samples (and the sources digits and llava) -> conversations -> collation ->
batches.
"""

from cornstarch.data.audio import read_audio, resample
from cornstarch.data.batches import Batches, StepBatch, first_samples
from cornstarch.data.byte_level import byte_tokenizer
from cornstarch.data.collation import Collator
from cornstarch.data.conversations import TEMPLATES, render, set_template
from cornstarch.data.digits import DigitsSource, Example, digit_questions
from cornstarch.data.llava_json import LlavaSource
from cornstarch.data.samples import Sample, Source

__all__ = [
    "TEMPLATES",
    "Batches",
    "Collator",
    "DigitsSource",
    "Example",
    "LlavaSource",
    "Sample",
    "Source",
    "StepBatch",
    "byte_tokenizer",
    "digit_questions",
    "first_samples",
    "read_audio",
    "render",
    "resample",
    "set_template",
]
