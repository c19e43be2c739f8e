"""1h. One image processor for several encoders of the same images: each gets pixels as its own prepares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BatchFeature

from cornstarch.errors import ArgumentError


class ConcatenatedProcessor:
    """Image processors of `ConcatenatedEncoders`, called as one.

    Args:
        processors: name of the encoder to its Hugging Face image processor.

    Raises:
        ArgumentError: if there is none, or one that cannot be called.
    """

    def __init__(self, processors: Mapping[str, Any]) -> None:
        if not processors:
            raise ArgumentError("ConcatenatedProcessor needs an image processor for every encoder, found none")
        for name, processor in processors.items():
            if not callable(processor):
                raise ArgumentError(f"the processor for {name!r} must be callable, found {type(processor).__name__}")
        self.processors = dict(processors)

    @property
    def image_mean(self) -> Any:
        """That of the first, by which greyscale is told from colour."""
        return getattr(next(iter(self.processors.values())), "image_mean", None)

    def __call__(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Prepare images for every encoder.

        Args:
            images: as Hugging Face's image processors take them.
            return_tensors: as there.
            **kwargs: settings, which every processor is given.

        Returns:
            `{name}_pixel_values` (images, channels, height, width) and whatever else each processor yields, its name
            before it.
        """
        prepared = {
            name: processor(images=images, return_tensors=return_tensors, **kwargs)
            for name, processor in self.processors.items()
        }
        return BatchFeature(
            {f"{name}_{key}": value for name, found in prepared.items() for key, value in found.items()}
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Save every processor into a folder of its name; `MultimodalProcessor.from_pretrained` reads them."""
        for name, processor in self.processors.items():
            processor.save_pretrained(Path(save_directory) / name)
