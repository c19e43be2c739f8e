"""Data: what a model is shown, and the batches it is shown in.

Files stand in the order of the flow: rows, tables, shards, rescue -> media_folder, formats -> files, leaving_out,
digits, tones, digits_and_tones, mixtures, streams (the sources of samples) -> conversations -> collation, joining ->
loader, steps, budgets, lengths -> batches, stream_batches. Beside it: viewing and view (a sample as the model gets it),
doctor (all of them, checked), pages (what both are shown on).
"""

from cornstarch.data.batches import Batches
from cornstarch.data.budgets import Budget
from cornstarch.data.byte_level import byte_tokenizer
from cornstarch.data.collation import Collator
from cornstarch.data.conversations import TEMPLATES, render, set_template
from cornstarch.data.digits import DigitsSource, Example, digit_questions
from cornstarch.data.digits_and_tones import DigitsAndTonesSource, OmniExample
from cornstarch.data.files import LlavaSource, RowSource
from cornstarch.data.mixtures import MixtureSource
from cornstarch.data.samples import Sample, Source
from cornstarch.data.steps import BadSample, StepBatch, first_samples
from cornstarch.data.stream_batches import StreamBatches
from cornstarch.data.streams import StreamSource
from cornstarch.data.tones import Tone, draw_tone, synthesise_tone
from cornstarch.data.view import view_as_html, view_as_json, view_as_text
from cornstarch.data.viewing import CutView, MediumView, PositionView, SampleView, view_sample
from cornstarch.models.multimodal_language_model.sounds import read_audio, resample

__all__ = [
    "TEMPLATES",
    "BadSample",
    "Batches",
    "Budget",
    "Collator",
    "CutView",
    "DigitsAndTonesSource",
    "DigitsSource",
    "Example",
    "LlavaSource",
    "MediumView",
    "MixtureSource",
    "OmniExample",
    "PositionView",
    "RowSource",
    "Sample",
    "SampleView",
    "Source",
    "StepBatch",
    "StreamBatches",
    "StreamSource",
    "Tone",
    "byte_tokenizer",
    "digit_questions",
    "draw_tone",
    "first_samples",
    "read_audio",
    "render",
    "resample",
    "set_template",
    "synthesise_tone",
    "view_as_html",
    "view_as_json",
    "view_as_text",
    "view_sample",
]
