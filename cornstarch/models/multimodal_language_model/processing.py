"""1. The processor: text and media -> `input_ids` and encoder inputs, so that text and model agree on positions."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from cornstarch.errors import ArgumentError, UnknownArgumentError
from cornstarch.models.multimodal_language_model import chat_templates, media, processor_files, routing
from cornstarch.models.multimodal_language_model import text as texts
from cornstarch.models.multimodal_language_model.concatenated_processing import ConcatenatedProcessor
from cornstarch.models.multimodal_language_model.feature_counts import FeatureCounter
from cornstarch.models.multimodal_language_model.input_rules import InputRule
from cornstarch.models.multimodal_language_model.limits import MediaLimits
from cornstarch.models.multimodal_language_model.media import Media
from cornstarch.models.multimodal_language_model.modeling import MultimodalModel
from cornstarch.models.multimodal_language_model.processed import Processed, ProcessedInput, own_tensors
from cornstarch.models.multimodal_language_model.remembering import remembered
from cornstarch.models.multimodal_language_model.text import Samples

CountFunction = Callable[[dict[str, Any], Any], int | list[int] | list[list[int]]]
_PLAIN = InputRule()


class _Encoded(NamedTuple):
    """An encoder's arguments, how many features each run of each input yields, and the text of each, if it has one."""

    tensors: dict[str, Any]
    counts: list[list[int]]
    texts: list[str] | None


class MultimodalProcessor:
    """One call from text and media to what `MultimodalModel` takes: `model(**processor(...))` always works.

    In the text, a mark (`<key>`, or `predefined_tokens[key]`) stands for one input. Each mark is repeated as often as
    its input yields features after the whole `ModalEncoderModule`, callbacks and projector included.

    Args:
        encoder_processors: modality key to Hugging Face image or video processor, or feature extractor.
        llm_tokenizer: the language model's tokenizer; the marks are added to it as special tokens.
        model: the model, which is told the marks' ids and asked how many features inputs yield.
        num_feature_calculation_funcs: modality key to `(inputs, outputs) -> counts`: what the encoder's processor was
            given and returned, to an int (the same for every input), a list (per input) or a list of lists (per
            sample). A key without one is counted by asking the model.
        predefined_tokens: modality key to the mark to use instead of `<key>`.
        rules: modality key to how its inputs are processed and written, where that is more than a mark for each.

    Attributes:
        origin_files: name to contents of the text files of the Hugging Face processor that this one was made of; saved
            with it, so that an export in the original's format can write them again.

        media_limits: how large images, sounds and videos may be; larger ones are refused before they are decoded.

    Raises:
        ArgumentError: for a key the model does not have, or one mark for two modalities.
    """

    def __init__(
        self,
        encoder_processors: Mapping[str, Any],
        llm_tokenizer: PreTrainedTokenizerBase,
        model: MultimodalModel,
        num_feature_calculation_funcs: Mapping[str, CountFunction] | None = None,
        predefined_tokens: Mapping[str, str] | None = None,
        rules: Mapping[str, InputRule] | None = None,
    ) -> None:
        for name, keys in (
            ("encoder_processors", encoder_processors),
            ("num_feature_calculation_funcs", num_feature_calculation_funcs or {}),
            ("predefined_tokens", predefined_tokens or {}),
            ("rules", rules or {}),
        ):
            unknown = [key for key in keys if key not in model.encoders]
            if unknown:
                raise ArgumentError(
                    f"{name}: unknown encoder key {unknown[0]!r}; the model's keys: {', '.join(model.encoders)}"
                )
        for key, processor in encoder_processors.items():
            if not callable(processor):
                raise ArgumentError(f"encoder_processors[{key!r}] must be callable, found {type(processor).__name__}")
            media.media_argument(processor)  # says what is wrong with one that takes no media
        self.encoder_processors = dict(encoder_processors)
        self.llm_tokenizer = llm_tokenizer
        self.num_feature_calculation_funcs = dict(num_feature_calculation_funcs or {})
        self.tokens = {key: (predefined_tokens or {}).get(key, f"<{key}>") for key in model.encoders}
        self.rules = {key: (rules or {}).get(key, _PLAIN) for key in model.encoders}
        self.feature_tokens = {key: self.rules[key].token or token for key, token in self.tokens.items()}
        taken = {llm_tokenizer.pad_token, llm_tokenizer.bos_token, llm_tokenizer.eos_token, llm_tokenizer.unk_token}
        for key, token in (*self.tokens.items(), *self.feature_tokens.items()):
            if not isinstance(token, str) or not token.strip() or token in taken:
                raise ArgumentError(f"predefined_tokens[{key!r}] must be a token of its own, found {token!r}")
        if any(len(set(names.values())) != len(names) for names in (self.tokens, self.feature_tokens)):
            raise ArgumentError(f"every modality needs a mark of its own, found {self.tokens}")
        self.origin_files: dict[str, str] = {}
        self.media_limits = MediaLimits()
        self._model = model
        self._counters = {key: FeatureCounter() for key in model.encoders}
        _add_special_tokens(llm_tokenizer, list(self.feature_tokens.values()))
        self.token_ids: dict[str, int] = {
            key: int(llm_tokenizer.convert_tokens_to_ids(token)) for key, token in self.feature_tokens.items()
        }
        model.set_modality_token_ids(self.token_ids)

    def __call__(
        self,
        encoder_inputs: Mapping[str, Mapping[str, Any] | None] | None = None,
        llm_inputs: Mapping[str, Any] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Process a batch.

        Args:
            encoder_inputs: modality key to its processor's arguments (`{"images": [...]}`). Media as a flat list (the
                i-th mark over the batch is the i-th input) or nested, one list per sample. Images are taken as a
                person would see them: turned upright (EXIF), arrays of two axes as greyscale, brightness of 16 bits
                scaled to 8 (whole numbers of 32 bits: from the range to 255 if all fit in it, else 65535; floats of
                PIL's mode F: 1, 255 or 65535), transparent ones over white. Sounds are samples at the processor's
                rate, or files, which are brought to it; videos are lists of frames, or files.
            llm_inputs: the tokenizer's arguments, with `text` a string or a list of them. As in Hugging Face's,
                `max_length` without `padding` truncates. With `label_spans`, for every text a list of (start, end) of
                its characters, the batch has `labels`: the ids of tokens with a character in a span, and -100
                everywhere else (other text, marks, padding). With `plain_spans`, in the same form, what stands there is
                text even if it looks like special tokens; `add_special_tokens` must be False.
            return_tensors: `"pt"`, `"np"`, or None for lists.
            **kwargs: go to whichever processor, or the tokenizer, takes them.

        Returns:
            `input_ids`, `attention_mask` and each encoder's tensors, and nothing that no part of the model takes. An
            encoder's argument whose name the language model or another encoder has too goes as `{key}_{name}`.

        Raises:
            ArgumentError: for arguments that cannot be used.
            UnknownArgumentError: for a keyword that neither a processor nor the tokenizer takes.
            ModalityMismatchError: if marks and inputs do not pair, naming the sample.
            MediaError: if a medium cannot be read or is larger than `media_limits` allows, naming it.
        """
        return self._processed(encoder_inputs, llm_inputs, return_tensors, **kwargs)[0]

    def look_into(
        self, encoder_inputs: Mapping[str, Mapping[str, Any] | None], llm_inputs: Mapping[str, Any]
    ) -> Processed:
        """Process one sample, and say what became of each of its inputs.

        Args:
            encoder_inputs: as for a call.
            llm_inputs: as for a call, with one text.

        Returns:
            The batch in tensors, and its inputs.
        """
        batch, made, media_of, places = self._processed(encoder_inputs, llm_inputs, "pt")
        found = {}
        for key, entry in made.items():
            own = own_tensors(entry.tensors, entry.counts)
            whole = zip(places[key], media_of[key].items, entry.counts, own, strict=True)
            found[key] = [
                ProcessedInput(key=key, place=place, item=item, runs=tuple(runs), tensors=tensors)
                for place, item, runs, tensors in whole
            ]
        return Processed(batch=batch, inputs=found)

    def _processed(
        self,
        encoder_inputs: Mapping[str, Mapping[str, Any] | None] | None,
        llm_inputs: Mapping[str, Any] | None,
        return_tensors: str | None,
        **kwargs: Any,
    ) -> tuple[BatchFeature, dict[str, "_Encoded"], dict[str, Media], dict[str, list[int]]]:
        """A batch; of its inputs what was encoded, the media, and which of those given they are."""
        text_options, shared = self._share(kwargs)
        text_options |= self._text_options(llm_inputs)
        inner = text_options.pop("return_tensors", None)
        return_tensors = inner if return_tensors is None else return_tensors
        if return_tensors not in ("pt", "np", None):
            raise ArgumentError(f"return_tensors must be 'pt', 'np' or None, found {return_tensors!r}")
        inputs = self._read_media(encoder_inputs or {}, shared)
        made = self._written(texts.texts(text_options), inputs)
        written = {self.tokens[key]: (self.token_ids[key], entry.texts) for key, entry in made.items() if entry.texts}
        places = {key: list(range(len(given.items))) for key, given in inputs.items()}
        samples = Samples.tokenize(self.llm_tokenizer, text_options, self.token_ids.values(), written)

        while True:
            for key, token in self.tokens.items():
                marks = samples.marks(self.token_ids[key])
                media.pair(key, token, inputs.get(key), marks)
                if key in inputs and inputs[key].items and key not in made:
                    made[key] = self._encode(key, inputs[key], marks)
            counts = {self.token_ids[key]: entry.counts for key, entry in made.items()}
            kept = dict(zip(made, samples.truncate(counts).values(), strict=True))
            if all(len(kept[key][0]) == len(entry.counts) for key, entry in made.items()):
                break
            _warn_of_left_out({key: (len(kept[key][0]), len(entry.counts)) for key, entry in made.items()})
            # Inputs fell off the end: what is left may be padded to another size, so it is processed anew.
            inputs = {key: inputs[key].keep(*kept[key]) for key in made}
            places = {key: [places[key][place] for place in kept[key][0]] for key in made}
            made = {}
        tensors = {key: entry.tensors for key, entry in made.items()}
        return self._batch(samples.expand(counts), tensors, return_tensors), made, inputs, places

    # --- media --------------------------------------------------------------------------------------------------------

    def _read_media(
        self, encoder_inputs: Mapping[str, Mapping[str, Any] | None], shared: Mapping[str, dict[str, Any]]
    ) -> dict[str, Media]:
        if not isinstance(encoder_inputs, Mapping):
            raise ArgumentError(
                "encoder_inputs must be a dict such as {'vision': {'images': [...]}}, found "
                f"{type(encoder_inputs).__name__}"
            )
        unknown = [key for key in encoder_inputs if key not in self.encoder_processors]
        if unknown:
            raise ArgumentError(
                f"encoder_inputs: no processor for {unknown[0]!r}; known keys: {', '.join(self.encoder_processors)}"
            )
        return {
            key: media.read(key, self.encoder_processors[key], given, shared[key], self.media_limits)
            for key, given in encoder_inputs.items()
            if given is not None
        }

    def _written(self, text: list[str], inputs: Mapping[str, Media]) -> dict[str, "_Encoded"]:
        """Inputs for which texts stand, which their processors' output decides: these run before the tokenizer."""
        made = {}
        for key, rule in self.rules.items():
            if rule.text is None:
                continue
            mark, token = self.tokens[key], self.feature_tokens[key]
            if mark != token and any(token in entry for entry in text):
                raise ArgumentError(f"the text holds {token!r}, which the processor writes itself: write {mark!r}")
            marks = media.pair(key, mark, inputs.get(key), [entry.count(mark) for entry in text])
            if key in inputs and inputs[key].items:
                made[key] = self._encode(key, inputs[key], marks)
        return made

    def _encode(self, key: str, inputs: Media, marks: list[int]) -> "_Encoded":
        """An encoder's arguments for a batch of inputs, how many features each yields, and their texts."""
        rule, encoder, counter = self.rules[key], self._model._modal_encoders[key], self._counters[key]
        nesting = rule.nesting(inputs.per_sample, marks)
        outputs = self._process(key, inputs.arguments(nesting))
        taken, number = self._taken(key, outputs), len(inputs.items)
        token = self.feature_tokens[key]
        written = None if rule.text is None else rule.text(outputs, token, number)
        runs = [1] * number if written is None else [entry.count(token) for entry in written]
        if len(runs) != number or not all(runs):
            raise ArgumentError(
                f"rules[{key!r}].text must make a text for each of the {number} inputs, with {token!r} in each, found "
                f"{written!r:.200}"
            )
        function = self.num_feature_calculation_funcs.get(key)
        if function is not None:
            totals = _as_counts(key, function(inputs.as_given(), outputs), inputs)
            return _Encoded(taken, [_spread(key, *pair) for pair in zip(totals, runs, strict=True)], written)
        inner = self._inner(key, taken)
        if written is not None:
            if nesting is not None:
                inner = _one_by_one(inner, nesting, runs)
            return _Encoded(taken, counter.count_runs(encoder, inner, runs), written)

        def process_one(index: int) -> dict[str, Any]:
            return self._taken(key, self._process(key, inputs.keep([index], [1]).arguments()))

        return _Encoded(taken, [[count] for count in counter.count(encoder, inner, number, process_one)], None)

    def _process(self, key: str, arguments: dict[str, Any]) -> Any:
        rule = self.rules[key]
        # Checks may run under autocast, which would have a processor's own products (spectra) in bfloat16 too.
        with torch.autocast("cpu", enabled=False):
            outputs = self.encoder_processors[key](**{**rule.arguments, **arguments, "return_tensors": "pt"})
        return {rule.renamed.get(name, name): value for name, value in outputs.items()} if rule.renamed else outputs

    def _taken(self, key: str, outputs: Any) -> dict[str, Any]:
        """What of a processor's output the encoder takes, under the processor's names."""
        names = set(routing.encoder_names(key, self._model._modal_encoders[key], frozenset()))
        return {name: value for name, value in outputs.items() if name in names}

    def _inner(self, key: str, taken: Mapping[str, Any]) -> dict[str, Any]:
        """The same under the names that the encoder's forward uses."""
        names = routing.encoder_names(key, self._model._modal_encoders[key], frozenset())
        return {names[name]: value for name, value in taken.items()}

    # --- text ---------------------------------------------------------------------------------------------------------

    def _share(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Keywords for the tokenizer, and for each encoder's processor, each given what it takes."""
        takers = {key: _keywords(processor) for key, processor in self.encoder_processors.items()}
        text = _keywords(self.llm_tokenizer)
        carried = {media.media_argument(processor): key for key, processor in self.encoder_processors.items()}
        for name in kwargs:
            if name in carried:
                key = carried[name]
                raise UnknownArgumentError(
                    f"media go into encoder_inputs: encoder_inputs={{{key!r}: {{{name!r}: ...}}}}"
                )
            if name not in text and not any(name in names for names in takers.values()):
                raise UnknownArgumentError(f"neither a processor nor the tokenizer takes the argument {name!r}")
        return (
            {name: value for name, value in kwargs.items() if name in text},
            {key: {n: value for n, value in kwargs.items() if n in names} for key, names in takers.items()},
        )

    def _text_options(self, llm_inputs: Any) -> dict[str, Any]:
        """The tokenizer's arguments as given, checked against what it takes."""
        if llm_inputs is not None and not isinstance(llm_inputs, Mapping):
            raise ArgumentError(
                f"llm_inputs must be a dict such as {{'text': [...]}}, found {type(llm_inputs).__name__}"
            )
        options = dict(llm_inputs or {})
        known = _keywords(self.llm_tokenizer) | {"return_tensors", "label_spans", "plain_spans"}
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise UnknownArgumentError(f"llm_inputs: the tokenizer takes no argument {name!r}.{hint}")
        return options

    # --- the batch ----------------------------------------------------------------------------------------------------

    def _batch(
        self, text: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]], return_tensors: str | None
    ) -> BatchFeature:
        encoders = self._model._modal_encoders
        reserved = routing.language_model_names(self._model.language_model)
        shared = routing.shared_names(encoders, reserved)
        data = {name: _whole_numbers(value, return_tensors) for name, value in text.items() if name in reserved}
        for key, outputs in tensors.items():
            extra = encoders[key].additional_args
            for name, value in outputs.items():
                plain = (name not in reserved or name in extra) and name not in shared
                data[name if plain else f"{key}_{name}"] = _converted(value, return_tensors)
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def media_arguments(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Modality key to the argument by which its processor takes media, and the types of typed content that mean it.

        The types are the key itself and, where only one modality is of that kind, `image`, `video` or `audio`.
        """
        kinds = _marks_by_kind(self.encoder_processors, self.tokens)
        return {
            key: (
                media.media_argument(processor),
                (key, *(kind for kind, token in kinds.items() if token == self.tokens[key])),
            )
            for key, processor in self.encoder_processors.items()
        }

    @property
    def most_positions(self) -> int | None:
        """How many positions the model's language model has in a table; None where any number will do."""
        return self._model.most_positions

    # --- the tokenizer's side -----------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """`llm_tokenizer`, under the name that Hugging Face's processors have for it."""
        return self.llm_tokenizer

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's `decode`."""
        return self.llm_tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's `batch_decode`."""
        return self.llm_tokenizer.batch_decode(*args, **kwargs)

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """The tokenizer's `apply_chat_template`, with media parts of typed content written as marks.

        A template that writes marks of typed content itself, as those of multimodal models do, is given it as it is.

        Args:
            conversation: messages, or a list of conversations. Content is a string, or a list of parts such as
                `{"type": "text", "text": ...}` and `{"type": key}`; where only one modality has a processor for
                images, videos or audio, `"image"`, `"video"` and `"audio"` stand for it too.
            *args: passed on.
            tokenize: whether to return ids instead of text; ids hold one id per mark, so they are for text only.
            **kwargs: passed on.

        Returns:
            The text to give to the processor, or what the tokenizer returns with `tokenize=True`.

        Raises:
            ArgumentError: for a part whose type names no modality.
        """
        marks = {**_marks_by_kind(self.encoder_processors, self.tokens), **self.tokens}
        template = kwargs.get("chat_template", args[2] if len(args) > 2 else None)
        kinds = {key: next(iter(kinds[1:]), None) for key, (_, kinds) in self.media_arguments.items()}
        written_by = {kind: self.tokens[key] for key, kind in kinds.items() if kind is not None}
        form = chat_templates.form_of(self.llm_tokenizer, template, written_by) if all(kinds.values()) else None
        if form is None:
            written = [chat_templates.with_marks(entry, marks) for entry in conversation]
        else:
            known = {**{kind: kind for kind in written_by}, **{key: str(kind) for key, kind in kinds.items()}}
            written = [chat_templates.typed(entry, known, form) for entry in conversation]
        return self.llm_tokenizer.apply_chat_template(written, *args, tokenize=tokenize, **kwargs)

    # --- saving -------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Save the tokenizer, every encoder's processor and the marks; a former save stays whole until it is done.

        Args:
            save_directory: made if it is not there; may be a model's.
        """
        processor_files.save(self, Path(save_directory))

    @classmethod
    def from_pretrained(
        cls,
        save_directory: str | Path,
        model: MultimodalModel,
        num_feature_calculation_funcs: Mapping[str, CountFunction] | None = None,
        encoder_processors: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        rules: Mapping[str, InputRule] | None = None,
    ) -> "MultimodalProcessor":
        """Load what `save_pretrained` saved, for a model.

        Args:
            save_directory: the folder.
            model: the model it is for.
            num_feature_calculation_funcs: the caller's own counting functions, which are not saved.
            encoder_processors: processors that are no classes of `transformers`, which are not loaded.
            trust_remote_code: run code that came with the tokenizer.
            rules: rules with text functions of the caller's own, which are not saved.

        Returns:
            The processor.

        Raises:
            CheckpointError: if a file is missing or damaged, or something of the caller's own must be given again.
        """
        functions = dict(num_feature_calculation_funcs or {})
        processors, tokenizer, tokens, origin_files, own = processor_files.read(
            Path(save_directory), functions, dict(encoder_processors or {}), rules or {}, trust_remote_code
        )
        processor = cls(processors, tokenizer, model, functions, tokens, own)
        processor.origin_files = origin_files
        return processor

    @classmethod
    def from_pretrained_multimodal_model(
        cls, name_or_path: str | Path, model: MultimodalModel, **kwargs: Any
    ) -> "MultimodalProcessor":
        """Make the processor of a model that was taken out of a pretrained Hugging Face multimodal model.

        Texts, media and chat messages become the ids and tensors that the original's own processor makes of them; the
        marks are the original's. No video is taken.

        Args:
            name_or_path: a folder or a name on the hub, from which the model was loaded.
            model: from `MultimodalModel.from_pretrained_multimodal_model`, or one that was saved since.
            **kwargs: for the `from_pretrained` of the tokenizer and of the encoder's processor, such as `revision`.

        Returns:
            The processor.

        Raises:
            ArgumentError: if the model was not imported, or the checkpoint lacks a processor or a tokenizer for it.
        """
        from cornstarch.models.multimodal_language_model import importing_processors

        return importing_processors.from_hugging_face(cls, name_or_path, model, **kwargs)


def _add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Make `tokens` special, keeping the special tokens that are there."""
    known = set(tokenizer.all_special_tokens)
    new = [token for token in tokens if token not in known]
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)


@remembered
def _keywords(processor: Any) -> frozenset[str]:
    """Every keyword that a Hugging Face processor or tokenizer takes by name."""
    if isinstance(processor, ConcatenatedProcessor):
        return frozenset[str]().union(*(_keywords(inner) for inner in processor.processors.values()))
    names: set[str] = set(getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {}))
    for method in (processor, *(getattr(processor, name, None) for name in ("preprocess", "_encode_plus"))):
        if method is not None:
            parameters = inspect.signature(method).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return frozenset(names - {"self", "return_tensors"})


def _as_counts(key: str, counts: Any, inputs: Media) -> list[int]:
    """What a counting function returned, as one count per input."""
    number, counts = len(inputs.items), _without_tensors(counts)
    if _is_count(counts):
        return [int(counts)] * number
    if isinstance(counts, Sequence) and counts and all(isinstance(c, list | tuple) for c in counts):
        if inputs.per_sample is not None and [len(c) for c in counts] != inputs.per_sample:
            raise ArgumentError(
                f"num_feature_calculation_funcs[{key!r}] counted {[len(c) for c in counts]} inputs per sample, "
                f"expected {inputs.per_sample}"
            )
        counts = [count for sample in counts for count in sample]
    if not isinstance(counts, Sequence) or len(counts) != number or not all(_is_count(count) for count in counts):
        raise ArgumentError(
            f"num_feature_calculation_funcs[{key!r}] must return an int, a list with one int for each of the {number} "
            f"inputs, or one such list per sample, found {counts!r}"
        )
    return [int(count) for count in counts]


def _spread(key: str, count: int, runs: int) -> list[int]:
    """The features of an input over the runs in its text, all of one length."""
    if count % runs:
        raise ArgumentError(
            f"num_feature_calculation_funcs[{key!r}] counted {count} features for an input whose text has {runs} runs, "
            "all of one length; expected a multiple"
        )
    return [count // runs] * runs


def _one_by_one(inputs: Mapping[str, Any], per_sample: Sequence[int], runs: Sequence[int]) -> dict[str, Any]:
    """Pictures that are padded to the most of any sample, (samples, K, ...), as (M, 1, ...) without padding."""
    rest = iter(runs)
    pictures = [sum(next(rest) for _ in range(count)) for count in per_sample]
    return {
        name: torch.cat([own[:count] for own, count in zip(value, pictures, strict=True)]).unsqueeze(1)
        if isinstance(value, Tensor) and value.dim() > 1
        else value
        for name, value in inputs.items()
    }


def _without_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    return [_without_tensors(item) for item in value] if isinstance(value, list | tuple) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _warn_of_left_out(numbers: Mapping[str, tuple[int, int]]) -> None:
    left_out = {key: given - kept for key, (kept, given) in numbers.items() if kept < given}
    listed = ", ".join(f"{number} of modality {key!r}" for key, number in left_out.items())
    warnings.warn(
        f"truncation left out whole inputs, whose positions did not fit max_length: {listed}", UserWarning, stacklevel=4
    )


def _whole_numbers(rows: Any, return_tensors: str | None) -> Any:
    """Rows of ids or flags as they are, or whole numbers where there is nothing that would tell their dtype."""
    if any(rows) or return_tensors is None:
        return rows
    empty = np.zeros((len(rows), 0), dtype=np.int64)
    return torch.from_numpy(empty) if return_tensors == "pt" else empty


def _converted(value: Any, return_tensors: str | None) -> Any:
    if not isinstance(value, Tensor) or return_tensors == "pt":
        return value
    array = value.to(torch.float32).numpy() if value.dtype is torch.bfloat16 else value.numpy()
    return array if return_tensors == "np" else list(array)


def _marks_by_kind(processors: Mapping[str, Any], tokens: Mapping[str, str]) -> dict[str, str]:
    """`image`, `video` and `audio` to a mark, where only one modality is of that kind."""
    by_kind: dict[str, list[str]] = {}
    for key, processor in processors.items():
        by_kind.setdefault(media.kind_of(processor), []).append(tokens[key])
    return {kind: marks[0] for kind, marks in by_kind.items() if len(marks) == 1}
