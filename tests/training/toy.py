"""A small model, its processor and conversations about coloured images, for the tests of training."""

import random
from typing import Any

import torch
from PIL import Image

from cornstarch import Collator, ModalEncoderModule, MultimodalModel, MultimodalProcessor, Sample, set_template
from tests import parts

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230)}


class Colours:
    """Which colour an image has; every third sample is text only, every fifth has two images."""

    def __init__(self, size: int = 24) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int, chance: random.Random) -> Sample:
        names = list(COLOURS)
        name = names[index % 3]
        number = 0 if index % 3 == 2 else 2 if index % 5 == 0 else 1
        images = [{"type": "image", "image": Image.new("RGB", (16, 16), COLOURS[name])} for _ in range(number)]
        question = {"type": "text", "text": "Which colour?" if images else f"Say {name}" + "!" * (index % 4)}
        messages = ({"role": "user", "content": [*images, question]}, {"role": "assistant", "content": name})
        return Sample(messages=messages, name=f"colour {index}")


def model_and_collator(dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> tuple[MultimodalModel, Any]:
    """A model of a CLIP tower and a Llama, everything trainable, and the collator of its processor."""
    torch.manual_seed(seed)
    language_model = parts.llama()
    language_model.config.update(config)
    language_model.loss_function = exact_loss
    model = MultimodalModel({"vision": ModalEncoderModule(parts.clip())}, language_model).to(dtype)
    processor = MultimodalProcessor({"vision": parts.clip_processor()}, parts.tokenizer(), model)
    set_template(processor.llm_tokenizer)
    return model, Collator(processor)


def exact_loss(
    logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, num_items_in_batch: Any = None, **_: Any
) -> torch.Tensor:
    """Hugging Face's loss without its rounding of logits to float32, which would hide differences below 1e-7."""
    rows, targets = logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = torch.nn.functional.cross_entropy(rows, targets, ignore_index=-100, reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
