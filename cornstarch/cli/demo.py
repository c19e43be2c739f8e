"""The demo: trains a small vision-language model from nothing on handwritten digits and has it answer in words.

`python -m cornstarch.cli.demo --output runs/digits` takes about two minutes on two CPU cores. In the output folder it
leaves `predictions.png`, `loss.png` and `model/` (model and processor, loaded again as a check), and it ends with

    test exact match: 0.xxx  blanked: 0.xxx  majority: 0.xxx

which are the shares of the test questions answered in exactly the right words, the same with every image replaced by
background, and what always giving the most frequent answer would reach. Without the image there is nothing to know,
so the second figure should be no more than the third: the first then comes from seeing.

In training a tenth of the images are replaced by background, with the right answer kept (modality dropout). What the
model then learns to say about a blank image is what is most often right. Images are also moved by up to a pixel.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cornstarch.data import digits
from cornstarch.data.byte_tokenizer import byte_tokenizer
from cornstarch.data.digits import Example
from cornstarch.errors import CornstarchError, TrainingError
from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel, MultimodalProcessor
from cornstarch.training import pictures
from cornstarch.training.loop import LoopConfig, StepRecord, fit, mean_loss
from cornstarch.training.pictures import Answered, Panel
from cornstarch.training.progress import Progress

STEPS = 1400
LEARNING_RATE = 1.5e-3
BATCH_SIZE = 64
IMAGE_DROPOUT = 0.1
MOST_SHIFTED = 1  # pixels
ANSWER_TOKENS = 8  # the longest answer has five, and an end token
VALIDATIONS = 12  # how often the validation loss is taken
SHEET = 24  # images on the sheet of predictions


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the demo came to.

    Attributes:
        losses: the training loss of every step.
        validation: (step, loss) pairs.
        exact_match: share of the test questions answered exactly.
        blanked: the same with blank images.
        majority: the rate of the most frequent answer per kind of question.
        seconds: how long training took.
    """

    losses: list[float]
    validation: list[tuple[int, float]]
    exact_match: float
    blanked: float
    majority: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what stands on the command line; the process's own by default.

    Returns:
        The exit code.
    """
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        outcome = run(Path(options.output), seed=options.seed, steps=options.steps, device=options.device)
    except (CornstarchError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(
        f"test exact match: {outcome.exact_match:.3f}  blanked: {outcome.blanked:.3f}  majority: {outcome.majority:.3f}"
    )
    return 0


def run(output: Path, *, seed: int = 0, steps: int = STEPS, device: str = "cpu") -> Outcome:
    """Train, answer the test questions, and leave pictures and model.

    Args:
        output: folder to write into, made if it is not there; only files of the demo's own are replaced.
        seed: of the weights, and of what is shown in which order.
        steps: of training.
        device: to train on. On a CPU, the same seed, machine and number of threads give the same numbers.

    Returns:
        The figures.

    Raises:
        ArgumentError: for a number of steps below 1.
        TrainingError: if the loss is not finite, or the saved model answers differently.
        ImportError: if scikit-learn or matplotlib is missing.
    """
    config = LoopConfig(steps=steps, learning_rate=LEARNING_RATE)
    output.mkdir(parents=True, exist_ok=True)  # what cannot work should fail before training
    pictures.require_matplotlib()
    training, validation, test = (digits.digit_questions(split) for split in digits.SPLITS)
    model, processor = build(seed)
    model.to(device)
    print(
        f"{len(training)} training, {len(validation)} validation and {len(test)} test questions, three about each "
        f"image; {model.num_parameters():,} parameters, none of them pretrained"
    )

    started = time.perf_counter()
    losses, validation_losses = _train(model, processor, config, training, validation, seed)
    seconds = time.perf_counter() - started
    print(f"trained in {seconds:.0f} s, loss {sum(losses[-20:]) / len(losses[-20:]):.6f} over the last 20 steps")

    found = answer(model, processor, test)
    _print_by_kind(test, found)
    outcome = Outcome(
        losses=losses,
        validation=validation_losses,
        exact_match=exact_match(test, found),
        blanked=exact_match(test, answer(model, processor, [digits.blanked(example) for example in test])),
        majority=digits.majority_rate(test),
        seconds=seconds,
    )
    _draw(output, outcome, test, found)
    _save(output / "model", model, processor, test[: 3 * SHEET], device)
    print(f"wrote {output / 'predictions.png'}, {output / 'loss.png'} and {output / 'model'}")
    return outcome


# --- the model --------------------------------------------------------------------------------------------------------


def build(seed: int) -> tuple[MultimodalModel, MultimodalProcessor]:
    """A small vision transformer and a small language model, put together, with random weights.

    Args:
        seed: of the weights.

    Returns:
        The model, and the processor for it: 8 x 8 images, 4 positions each; text as bytes.
    """
    torch.manual_seed(seed)
    encoder = SiglipVisionModel(
        SiglipVisionConfig(
            image_size=8,
            patch_size=4,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            vision_use_head=False,
        )
    )
    tokenizer = byte_tokenizer()
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            # The usual 0.02 is meant for widths in the thousands; at this width it delays, by most of the training,
            # the moment from which the image is used.
            initializer_range=0.1,
        )
    )
    model = MultimodalModel({"vision": ModalEncoderModule(encoder)}, language_model)
    image_processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    return model, MultimodalProcessor({"vision": image_processor}, tokenizer, model)


# --- training ---------------------------------------------------------------------------------------------------------


def _train(
    model: MultimodalModel,
    processor: MultimodalProcessor,
    config: LoopConfig,
    training: Sequence[Example],
    validation: Sequence[Example],
    seed: int,
) -> tuple[list[float], list[tuple[int, float]]]:
    """Training losses, one a step, and validation losses with their steps."""
    validated = {round(config.steps * (number + 1) / VALIDATIONS) for number in range(VALIDATIONS)}
    held_out = [digits.training_batch(processor, chunk) for chunk in _chunks(validation)]
    validation_losses: list[tuple[int, float]] = []
    with Progress(config.steps) as progress:

        def on_step(record: StepRecord) -> None:
            if record.step in validated:
                validation_losses.append((record.step, mean_loss(model, held_out)))
            progress.update(record)

        batches = (digits.training_batch(processor, examples) for examples in _varied(training, seed))
        records = fit(model, batches, config, on_step)
    return [record.loss for record in records], validation_losses


def _varied(examples: Sequence[Example], seed: int) -> Iterator[list[Example]]:
    """Batches without end: every example once an epoch, in a new order, moved a little, some images blanked."""
    chance = random.Random(seed)
    while True:
        order = list(examples)
        chance.shuffle(order)
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            yield [_vary(example, chance) for example in order[start : start + BATCH_SIZE]]


def _vary(example: Example, chance: random.Random) -> Example:
    if chance.random() < IMAGE_DROPOUT:
        return digits.blanked(example)
    right, down = (chance.randint(-MOST_SHIFTED, MOST_SHIFTED) for _ in range(2))
    return digits.shifted(example, right, down)


# --- answering --------------------------------------------------------------------------------------------------------


def answer(model: MultimodalModel, processor: MultimodalProcessor, examples: Sequence[Example]) -> list[str]:
    """Have the model answer, greedily.

    Args:
        model: put into evaluation mode.
        processor: the one made for it.
        examples: questions about images.

    Returns:
        The text of each answer, up to its end token.
    """
    model.eval()
    texts: list[str] = []
    for chunk in _chunks(examples):
        batch = digits.prompt_batch(processor, chunk).to(model.device)
        generated: Tensor = model.generate(**batch, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        new = generated[:, batch["input_ids"].shape[1] :]
        texts.extend(processor.batch_decode(new, skip_special_tokens=True))
    return texts


def exact_match(examples: Sequence[Example], found: Sequence[str]) -> float:
    """Share of the questions answered in exactly the right words."""
    return sum(text == example.answer for example, text in zip(examples, found, strict=True)) / len(examples)


def _chunks(examples: Sequence[Example], size: int = 256) -> Iterator[Sequence[Example]]:
    return (examples[start : start + size] for start in range(0, len(examples), size))


# --- what is left behind ----------------------------------------------------------------------------------------------


def _print_by_kind(examples: Sequence[Example], found: Sequence[str]) -> None:
    for kind, question in digits.QUESTIONS.items():
        pairs = [(example, text) for example, text in zip(examples, found, strict=True) if example.kind == kind]
        print(f"  {question:<32} {exact_match(*zip(*pairs, strict=True)):.3f}")


def _draw(output: Path, outcome: Outcome, test: Sequence[Example], found: Sequence[str]) -> None:
    label = f"training ({IMAGE_DROPOUT:.0%} of the images blanked)"
    pictures.draw_losses(output / "loss.png", outcome.losses, outcome.validation, label)
    panels = _panels(test, found)
    right = [panel for panel in panels if panel.is_right]
    wrong = [panel for panel in panels if not panel.is_right]
    first = wrong[: SHEET // 2]  # what went wrong is worth seeing, but should not look like the rule
    title = (
        f"{outcome.exact_match:.1%} of {len(test):,} test answers right.  {len(wrong)} of {len(panels)} images have a "
        f"wrong one; {len(first)} of them come first."
    )
    pictures.draw_predictions(output / "predictions.png", (first + right)[:SHEET], title)


def _panels(examples: Sequence[Example], found: Sequence[str]) -> list[Panel]:
    """One panel an image, with all that was asked about it."""
    panels: dict[int, Panel] = {}
    for example, text in zip(examples, found, strict=True):
        answered = Answered(question=example.question, found=text, expected=example.answer)
        before = panels[example.index].answers if example.index in panels else ()
        panels[example.index] = Panel(image=example.image, answers=(*before, answered))
    return list(panels.values())


def _save(
    folder: Path, model: MultimodalModel, processor: MultimodalProcessor, samples: Sequence[Example], device: str
) -> None:
    """Save model and processor, and make sure that what is loaded again answers the same."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    loaded = MultimodalModel.from_pretrained(folder, device=device)
    loaded_processor = MultimodalProcessor.from_pretrained(folder, loaded)
    if answer(loaded, loaded_processor, samples) != answer(model, processor, samples):
        raise TrainingError(f"the model saved in {folder} answers differently once it is loaded")
    print(f"saved, loaded again, and asked {len(samples)} questions: the same answers")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cornstarch.cli.demo",
        description="Train a small vision-language model on handwritten digits and have it answer in words.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default="runs/digits", help="folder for pictures and model")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; the same seed, the same numbers")
    parser.add_argument("--steps", type=_positive, default=STEPS, help="training steps; fewer answer worse")
    # The matrices are so small that a second thread saves a third of the time on an idle machine, and that waiting for
    # it multiplies the time on a busy one. A fixed number also keeps the figures from depending on the cores there are.
    parser.add_argument("--threads", type=_positive, default=1, help="CPU threads to compute with")
    parser.add_argument("--device", type=_device, default="cpu", help="where to train: cpu, cuda, mps")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, found {text!r}")
    return int(text)


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot compute on {name!r}: {reason}") from None
    return name


if __name__ == "__main__":
    sys.exit(main())
