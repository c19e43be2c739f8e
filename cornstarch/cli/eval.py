"""`cornstarch eval RUN_OR_MODEL [--config FILE] [--output FILE] [--any.key value ...]`."""

import json
from collections.abc import Sequence
from pathlib import Path

from cornstarch.cli.arguments import parser
from cornstarch.data import set_template
from cornstarch.errors import ArgumentError
from cornstarch.training import building, provenance, sourcing
from cornstarch.training.devices import autocast, pick_device
from cornstarch.training.evaluation import evaluate, is_right
from cornstarch.training.folder import write_whole
from cornstarch.training.reading import read_config
from cornstarch.training.run import usable_samples, warn_of_broken


def main(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: its arguments.

    Returns:
        The exit code.

    Raises:
        ArgumentError: if there is no config, or no data in it.
    """
    parsing = parser("eval", "Check a trained model on data.test (else data.validation) of its run's config.")
    parsing.add_argument(
        "model", help="a run folder, a checkpoint in it, or a folder with a model (also Hugging Face's)"
    )
    parsing.add_argument("--config", help="a config with data; the run's own if left out")
    parsing.add_argument("--output", help="write every answer there, one JSON object a line")
    parsing.add_argument("--trust-remote-code", action="store_true", help="run code that came with a part")
    options, overrides = parsing.parse_known_args(words)
    config = read_config(options.config or find_config(Path(options.model)), overrides)
    chosen = config.data.test or config.data.validation
    if chosen is None:
        raise ArgumentError("data.test must be given: there is nothing to check the model on")
    if options.output is not None and not config.evaluation.generate:
        raise ArgumentError("--output is for answers, and evaluation.generate is false: there are none")
    model, processor = building.load_run(options.model, trust_remote_code=options.trust_remote_code)
    set_template(processor.llm_tokenizer, config.data.template)
    device = pick_device(config.training.device)
    model.to(device)
    collator = sourcing.make_collator(processor, config.data)
    source = sourcing.make_source(chosen, salvage=config.data.bad_samples != "stop")
    warn_of_broken(source)
    samples = usable_samples(config, collator, source, config.evaluation.samples)
    precision = autocast(device, config.training.precision)
    found = evaluate(model, collator, samples, config.evaluation, autocast=precision)
    if options.output is not None:
        rows = [
            {"name": sample.name, "expected": sample.answer, "answer": text, "right": is_right(sample, text)}
            for sample, text in zip(samples, found.answers, strict=bool(found.answers))
        ]
        write_whole(Path(options.output), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"samples {len(samples)}  " + "  ".join(f"{name} {value:.4f}" for name, value in found.figures.items()))
    return 0


def find_config(model: Path) -> Path:
    """The config of the run that a model belongs to.

    Args:
        model: a run folder, its model, or a checkpoint in it.

    Returns:
        The file.

    Raises:
        ArgumentError: if there is none.
    """
    run = provenance.find_run(model)
    if run is not None:
        return run.config
    raise ArgumentError(f"{model} belongs to no run whose config.yaml says what to check it on: pass --config FILE")
