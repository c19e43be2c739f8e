"""1a1. How large media may be: what is larger is refused before it is decoded, with the limit named."""

import os
from dataclasses import dataclass
from pathlib import Path

from cornstarch.errors import ArgumentError, MediaError


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What a file may ask for. A few bytes can claim to be an image of a terabyte, or silence of a year.

    Attributes:
        image_pixels: height times width; Pillow's own default. Pillow's limit (`PIL.Image.MAX_IMAGE_PIXELS`, of which
            it takes twice as many) holds besides.
        image_ratio: the longer side over the shorter; processors enlarge the shorter one, and the longer one with it.
        file_bytes: of an encoded medium, as a file or in memory.
        audio_seconds: of a sound.
        video_frames: that are taken from a video.

    Raises:
        ArgumentError: for a limit that is not positive.
    """

    image_pixels: int = 89_478_485
    image_ratio: float = 200.0
    file_bytes: int = 2**28
    audio_seconds: float = 3600.0
    video_frames: int = 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ArgumentError(f"{name}: a limit is above 0, found {value}")

    def check(self, name: str, found: float, what: str) -> None:
        """Refuse what is beyond a limit.

        Args:
            name: of the limit.
            found: what there is.
            what: the same in words.

        Raises:
            MediaError: naming the limit.
        """
        limit = getattr(self, name)
        if found > limit:
            raise MediaError(
                f"{what}, the limit {name} is {limit:,}; raise it (data.limits.{name}, or the processor's "
                "media_limits) if that is meant"
            )

    def check_image(self, width: int, height: int) -> None:
        """Refuse an image by its size.

        Args:
            width: in pixels.
            height: in pixels.

        Raises:
            MediaError: naming the limit.
        """
        self.check("image_pixels", width * height, f"{width} x {height} are {width * height:,} pixels")
        ratio = max(width, height) / max(1, min(width, height))
        self.check("image_ratio", ratio, f"of {width} x {height} one side is {ratio:,.0f} times the other")

    def read(self, path: str | Path) -> bytes:
        """The bytes of a file that is not too large.

        Args:
            path: the file.

        Returns:
            Its bytes.

        Raises:
            MediaError: if it is too large, or no file.
            OSError: if it cannot be read.
        """
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.check("file_bytes", size, f"the file has {size:,} bytes")
            data = file.read(self.file_bytes + 1)  # of a device, which has no size
        self.check("file_bytes", len(data), f"the file has more than {self.file_bytes:,} bytes")
        return data
