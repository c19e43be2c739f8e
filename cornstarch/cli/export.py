"""`cornstarch export MODEL OUT [--format llava] [--merge-adapters] ...`."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoProcessor, ProcessorMixin

from cornstarch.cli.arguments import parser
from cornstarch.data import set_template
from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import export_to_hf
from cornstarch.models.multimodal_language_model.exporting import FORMATS
from cornstarch.training import building, provenance


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.

    Raises:
        ArgumentError: if the processor that is named is none.
    """
    parsing = parser("export", "Write a model as a checkpoint that plain transformers loads, with its processor.")
    parsing.add_argument(
        "model", help="a run folder, a checkpoint in it, or a folder with a model (also Hugging Face's)"
    )
    parsing.add_argument("out", help="the folder to write into; a former export in it is replaced")
    parsing.add_argument(
        "--format", choices=sorted(FORMATS), help="that of the model it was imported from, else llava, if left out"
    )
    parsing.add_argument(
        "--processor", metavar="NAME", help="of an imported model: the processor that came with it, to write `original`"
    )
    parsing.add_argument("--merge-adapters", action="store_true", help="write weights that hold the adapters")
    parsing.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of all weights; as they are if left out"
    )
    parsing.add_argument("--no-verify", action="store_true", help="skip the comparison with the model")
    parsing.add_argument("--max-shard-size", default="5GB", help="size above which weights are split into files")
    parsing.add_argument("--license", help="for the model card, as the hub names it, such as apache-2.0")
    parsing.add_argument(
        "--base-model", action="append", default=[], metavar="NAME", help="on the hub; may be given several times"
    )
    parsing.add_argument(
        "--dataset", action="append", default=[], metavar="NAME", help="on the hub; may be given several times"
    )
    parsing.add_argument("--trust-remote-code", action="store_true", help="run code that came with a part")
    options = parsing.parse_args(words)
    model, processor = building.load_run(options.model, trust_remote_code=options.trust_remote_code)
    set_template(processor.llm_tokenizer)
    chosen = processor if options.processor is None else _original_processor(options.processor)
    history = provenance.read(options.model)
    made = export_to_hf(
        model,
        chosen,
        options.out,
        options.format,
        merge_adapters=options.merge_adapters,
        dtype=options.dtype,
        verify=not options.no_verify,
        max_shard_size=options.max_shard_size,
        license=options.license,
        base_model=options.base_model or history.base_model,
        datasets=options.dataset,
        training=history.text,
    )
    checked = "not compared with the model" if made.difference is None else f"logits differ by {made.difference:.1e}"
    print(f"{made.directory}: format {made.format}, {checked}")
    for note in made.notes:
        print(f"note: {note}")
    return 0


def _original_processor(name: str) -> Any:
    try:
        found = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--processor: {name} has none: {str(error).splitlines()[0]}") from error
    if not isinstance(found, ProcessorMixin):
        raise ArgumentError(f"--processor: {name} has a {type(found).__name__}, which is no processor of a whole model")
    return found
