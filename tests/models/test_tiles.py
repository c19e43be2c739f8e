"""Tiles: what does not agree is said; what agrees is compared with the originals in test_importing."""

import pytest
import torch

from cornstarch import ModalityMismatchError, SplitTiles

SPLIT = SplitTiles(resolutions=((16, 32), (32, 16)), tile=16)


def test_a_batch_of_tiles_stays_as_it_is() -> None:
    """An overview and two tiles."""
    inputs = {"pixel_values": torch.zeros(3, 3, 16, 16), "image_sizes": torch.tensor([[10, 30]])}
    assert SPLIT(inputs) is inputs


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pixel_values": torch.zeros(4, 3, 16, 16)}, "has 4 tiles, by image_sizes there are 3"),
        ({"batch_num_images": torch.tensor([2])}, "counts 2 images, image_sizes has 1"),
    ],
)
def test_tiles_and_sizes_that_do_not_agree(changes: dict, message: str) -> None:
    inputs = {"pixel_values": torch.zeros(3, 3, 16, 16), "image_sizes": torch.tensor([[10, 30]])}
    with pytest.raises(ModalityMismatchError, match=message):
        SPLIT({**inputs, **changes})
