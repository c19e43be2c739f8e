"""`cornstarch generate RUN_OR_MODEL --prompt "..." --image FILE --audio FILE ...`, or `--input FILE.jsonl`."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from cornstarch.cli.arguments import parser, positive
from cornstarch.data import Collator, Sample, read_audio, set_template
from cornstarch.data.samples import numbered_lines
from cornstarch.errors import ArgumentError, CornstarchError
from cornstarch.models.multimodal_language_model import MultimodalModel, MultimodalProcessor
from cornstarch.training import building
from cornstarch.training.config import EvaluationConfig
from cornstarch.training.devices import pick_device
from cornstarch.training.evaluation import answer

_KINDS = ("image", "audio")


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code; 1 if a line of the input file could not be answered.

    Raises:
        ArgumentError: if there is nothing to answer.
    """
    options = _parse(words)
    _check(options)
    model, processor = building.load_run(options.model, trust_remote_code=options.trust_remote_code)
    model.to(pick_device(options.device), getattr(torch, options.dtype) if options.dtype else None)
    set_template(processor.llm_tokenizer)
    collator = Collator(processor)
    torch.manual_seed(options.seed)
    if options.input is not None:
        return _answer_file(options, model, collator)
    asked = {"prompt": options.prompt, "image": options.image, "audio": options.audio}
    sample, how = make_sample(processor, asked, "--prompt"), _sampling(options)
    if options.beams == 1:  # beams are known only at their end
        tokenizer: Any = processor.llm_tokenizer
        how["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    texts = answer(model, collator, [sample], _sizes(options), **how)
    if options.beams > 1:
        print(texts[0])
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse options that cannot be, or would do nothing."""
    if (options.prompt is None) == (options.input is None):
        raise ArgumentError("give --prompt, or --input with a file of prompts: one of them")
    if options.input is not None and (options.image or options.audio):
        raise ArgumentError("--image and --audio go with --prompt; the lines of --input name their own files")
    if options.output is not None:
        if options.input is None:
            raise ArgumentError("--output is for the answers to --input; an answer to --prompt is printed")
        if Path(options.output).resolve() == Path(options.input).resolve():
            raise ArgumentError("--output is the file of --input, which would be lost; name another")
    if not options.temperature >= 0 or not 0 < options.top_p <= 1 or not 0 <= options.seed < 2**63:
        raise ArgumentError("--temperature must not be negative, --top-p be above 0 and at most 1, --seed not negative")
    if options.temperature > 0 and options.beams > 1:
        raise ArgumentError("--beams is for answers without a --temperature")


def make_sample(processor: MultimodalProcessor, entry: Mapping[str, Any], name: str) -> Sample:
    """A prompt and its media as a conversation.

    Args:
        processor: of the model.
        entry: `prompt`, and files as `image` and `audio`, one or a list. Each `<image>` and `<audio>` in the prompt
            stands for the next file; files without any go before the text. Or `messages`, as in `Sample`.
        name: what it is called in messages.

    Returns:
        The conversation.

    Raises:
        ArgumentError: if marks and files do not pair, or there is no prompt.
    """
    if isinstance(entry.get("messages"), list):
        return Sample(messages=tuple(entry["messages"]), name=name)
    prompt = entry.get("prompt")
    if not isinstance(prompt, str):
        raise ArgumentError(f"{name}: expected `prompt` (text) or `messages` (a list), found {sorted(entry)}")
    files = {kind: _listed(entry.get(kind)) for kind in _KINDS}
    for kind, names in files.items():
        marks = prompt.count(f"<{kind}>")
        if marks and marks != len(names):
            raise ArgumentError(f"{name}: {marks} marks <{kind}> in the prompt but {len(names)} files of --{kind}")
        prompt = prompt if marks else f"<{kind}>" * len(names) + prompt
    rest = {kind: iter([_medium(processor, kind, file) for file in names]) for kind, names in files.items()}
    parts = [
        {"type": text[1:-1], text[1:-1]: next(rest[text[1:-1]])}
        if text[1:-1] in _KINDS and text.startswith("<")
        else {"type": "text", "text": text}
        for text in re.split(f"({'|'.join(f'<{kind}>' for kind in _KINDS)})", prompt)
        if text
    ]
    return Sample(messages=({"role": "user", "content": parts},), name=name)


def _medium(processor: MultimodalProcessor, kind: str, file: str) -> Any:
    if kind != "audio":
        return file
    key = next((key for key, (_, kinds) in processor.media_arguments.items() if kind in kinds), None)
    if key is None:
        raise ArgumentError(
            f"{file}: no modality, or more than one, of this model takes sounds: {', '.join(processor.tokens)}; with "
            "--input, messages can name the modality"
        )
    return read_audio(file, int(processor.encoder_processors[key].sampling_rate))


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _answer_file(options: argparse.Namespace, model: MultimodalModel, collator: Collator) -> int:
    """Answer every line, write it with its `answer` or its `error`, and say by the exit code whether all were."""
    failed = 0
    groups = list(_groups(_lines(Path(options.input)), options.batch_size))  # before the output is opened
    with open(options.output, "w", encoding="utf-8") if options.output else nullcontext(sys.stdout) as output:
        for group in groups:
            for entry, found in _answer_group(options, model, collator, group):
                failed += "error" in found
                line = json.dumps({**entry, **found}, ensure_ascii=False)
                # Half a character, which JSON may hold and UTF-8 may not, becomes the escape that JSON has for it.
                print(line.encode("utf-8", "backslashreplace").decode(), file=output, flush=True)
    if failed:
        print(f"{failed} lines could not be answered; each has an `error`", file=sys.stderr)
    return 1 if failed else 0


def _answer_group(
    options: argparse.Namespace, model: MultimodalModel, collator: Collator, group: list[tuple[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    samples: list[Sample | CornstarchError] = []
    for name, entry in group:
        try:
            if not isinstance(entry, Mapping):
                raise ArgumentError(f"{name}: this is no JSON object: {entry!r:.100}")
            sample = make_sample(collator.processor, entry, name)
            collator.prompts([sample])  # reads its media
            samples.append(sample)
        except CornstarchError as error:
            samples.append(error)
        except Exception as error:  # a line may hold anything, and must not keep others from their answers
            samples.append(ArgumentError(f"{name}: {type(error).__name__}: {error}"))
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    texts = iter(answer(model, collator, whole, _sizes(options), **_sampling(options)) if whole else [])
    for (_, entry), made in zip(group, samples, strict=True):
        given = dict(entry) if isinstance(entry, Mapping) else {"line": entry}
        yield given, {"answer": next(texts)} if isinstance(made, Sample) else {"error": str(made)}


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error
    for number, line in numbered_lines(text):
        try:
            yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError:
            yield f"{path}, line {number}", line


def _groups(lines: Iterator[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    found = list(lines)
    return (found[start : start + size] for start in range(0, len(found), size))


def _sizes(options: argparse.Namespace) -> EvaluationConfig:
    return EvaluationConfig(batch_size=options.batch_size, max_new_tokens=options.max_new_tokens)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    if options.temperature == 0:
        return {"num_beams": options.beams} if options.beams > 1 else {}
    return {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parsing = parser("generate", "Have a model answer a prompt, or every line of a file.")
    parsing.add_argument(
        "model", help="a run folder, a checkpoint in it, or a folder with a model (also Hugging Face's)"
    )
    parsing.add_argument("--prompt", help="what to ask; <image> and <audio> in it stand for the next file")
    parsing.add_argument("--image", action="append", metavar="FILE", help="an image; may be given several times")
    parsing.add_argument("--audio", action="append", metavar="FILE", help="a sound; may be given several times")
    parsing.add_argument(
        "--input", metavar="FILE", help="JSON objects with prompt, image, audio (or messages), one a line"
    )
    parsing.add_argument(
        "--output", metavar="FILE", help="of --input: where to write the objects, each with its answer"
    )
    parsing.add_argument("--batch-size", type=positive, default=8, help="of --input: prompts at once")
    parsing.add_argument("--max-new-tokens", type=positive, default=128, help="longest answer")
    parsing.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token; above, by chance")
    parsing.add_argument("--top-p", type=float, default=1.0, help="with a temperature: only so much of the likeliest")
    parsing.add_argument("--beams", type=positive, default=1, help="without a temperature: beams to search with")
    parsing.add_argument("--seed", type=int, default=0, help="of chance")
    parsing.add_argument("--trust-remote-code", action="store_true", help="run code that came with a part")
    parsing.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parsing.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of all weights; as saved if left out"
    )
    return parsing.parse_args(words)
