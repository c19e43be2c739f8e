"""Media from files: images as a person sees them, sounds at a rate, frames of videos; limits, with their names."""

import base64
import inspect
import struct
import sys
import types
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cornstarch import ArgumentError, Collator, MediaError, MediaLimits, Sample, read_audio, set_template
from cornstarch.models.multimodal_language_model import media, sounds, videos
from cornstarch.models.multimodal_language_model.images import open_image
from tests import parts

LIMITS = MediaLimits()
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def seen(item: Any, limits: MediaLimits = LIMITS) -> np.ndarray:
    return np.asarray(open_image(item, limits))


# --- images -----------------------------------------------------------------------------------------------------------


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    picture = Image.new(mode, (8, 4), left)
    picture.paste(right, (4, 0, 8, 4))
    return picture


@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_what_is_transparent_is_white(ending: str, tmp_path: Path) -> None:
    """As on a page: nothing there is white, half red over white is pink; the colour that hides below is not seen."""
    halves("RGBA", (255, 0, 0, 128), (0, 0, 0, 0)).save(tmp_path / f"a.{ending}", lossless=True)
    found = seen(tmp_path / f"a.{ending}")
    assert found.shape == (4, 8, 3)
    assert tuple(found[0, 0]) == (255, 127, 127)
    assert tuple(found[0, 7]) == WHITE


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    """GIF and palette PNG: the colour named as transparent is white, others are their palette's."""
    picture = Image.new("P", (8, 4), 0)
    picture.putpalette([*RED, *GREEN] + [0] * 762)
    picture.paste(1, (4, 0, 8, 4))
    for name in ("a.gif", "a.png"):
        picture.save(tmp_path / name, transparency=0)
        found = seen(tmp_path / name)
        assert tuple(found[0, 0]) == WHITE
        assert tuple(found[0, 7]) == GREEN
        picture.save(tmp_path / name)
        assert tuple(seen(tmp_path / name)[0, 0]) == RED


def test_grey_with_alpha_and_a_transparent_value(tmp_path: Path) -> None:
    halves("LA", (0, 255), (0, 0)).save(tmp_path / "a.png")
    assert seen(tmp_path / "a.png")[0, [0, 7], 0].tolist() == [0, 255]
    halves("RGB", RED, GREEN).save(tmp_path / "b.png", transparency=GREEN)
    assert [tuple(pixel) for pixel in seen(tmp_path / "b.png")[0, [0, 7]]] == [RED, WHITE]


def test_cmyk(tmp_path: Path) -> None:
    """JPEG for printing: cyan is cyan, as Pillow converts it; not inverted."""
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg", quality=100)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert np.abs(seen(tmp_path / "a.jpg")[8, 8].astype(int) - (0, 255, 255)).max() <= 3


def test_16_bits(tmp_path: Path) -> None:
    """Grey of 16 bits keeps its brightness (Pillow's own conversion makes it white)."""
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.abs(seen(tmp_path / "a.png")[..., 0].astype(float) - ramp / 257).max() <= 0.5


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_the_first_picture_of_several(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert tuple(seen(tmp_path / f"a.{ending}")[4, 4]) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(orientation: int, tmp_path: Path) -> None:
    """JPEG with each of EXIF's orientations, against Pillow's own `exif_transpose`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    parts.image(24, 16).save(tmp_path / "a.jpg", exif=exif)
    assert np.array_equal(seen(tmp_path / "a.jpg"), np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))))


def test_all_ways_to_give_an_image(tmp_path: Path) -> None:
    parts.image().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    text = base64.b64encode(data).decode()
    for item in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data,
        text,
        f"data:image/png;base64,{text}",
        parts.image(),
    ):
        assert np.array_equal(seen(item), np.asarray(parts.image()))


# --- limits -----------------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it is as large as that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    "width, height, message",
    [
        (60_000, 60_000, "exceeds limit of 178956970 pixels.*PIL.Image.MAX_IMAGE_PIXELS"),
        (10_000, 10_000, "10000 x 10000 are 100,000,000 pixels, the limit image_pixels is 89,478,485"),
        (20_000, 50, "one side is 400 times the other, the limit image_ratio is 200"),
    ],
)
def test_bombs_are_refused_by_their_header(width: int, height: int, message: str, tmp_path: Path) -> None:
    """Of a few hundred bytes; nothing is decoded, and the limit is named."""
    (tmp_path / "bomb.png").write_bytes(bomb(width, height))
    _, processor = parts.vision_pair()
    for item in (bomb(width, height), str(tmp_path / "bomb.png")):
        with pytest.raises(MediaError, match=rf"modality 'vision': image 0 .*{message}"):
            processor({"vision": {"images": [item]}}, {"text": "<vision>"})


def test_limits_can_be_set(tmp_path: Path) -> None:
    _, processor = parts.vision_pair()
    for limits, message in [
        (MediaLimits(image_pixels=400), "the limit image_pixels is 400; raise it .data.limits.image_pixels"),
        (MediaLimits(file_bytes=100), "the limit file_bytes is 100"),
        (MediaLimits(image_ratio=1.1), "the limit image_ratio is 1.1"),
    ]:
        processor.media_limits = limits
        parts.image().save(tmp_path / "a.png")
        with pytest.raises(MediaError, match=message):
            processor({"vision": {"images": [tmp_path / "a.png"]}}, {"text": "<vision>"})
    with pytest.raises(ArgumentError, match="above 0"):
        MediaLimits(file_bytes=0)


# --- sounds -----------------------------------------------------------------------------------------------------------

TONE = (np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440) * 0.5).astype(np.float32)


def write_wav(path: Path, rate: int = 8000) -> bytes:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((TONE * 32767).astype("<i2").tobytes())
    return path.read_bytes()


def test_all_ways_to_give_a_sound(tmp_path: Path) -> None:
    """At 16000 Hz from 8000: by path, bytes, base64 and array, the tone is the tone; and so through a processor."""
    data = write_wav(tmp_path / "a.wav")
    wanted = np.sin(np.arange(16000) / 16000 * 2 * np.pi * 440) * 0.5
    ways = [
        tmp_path / "a.wav", str(tmp_path / "a.wav"), data, {"bytes": data, "path": None},
        {"path": str(tmp_path / "a.wav")}, {"array": TONE, "sampling_rate": 8000},
        {"array": TONE.tolist(), "sampling_rate": 8000}, {"array": np.stack([TONE, TONE]), "sampling_rate": 8000},
        f"data:audio/wav;base64,{base64.b64encode(data).decode()}",
    ]  # fmt: skip
    for item in ways:
        found = sounds.as_sound(item, 16000, LIMITS)
        assert np.abs(found - wanted)[200:-200].max() < 1e-2
    _, processor = parts.three_modalities()
    batches = [
        processor({"audio": {"raw_speech": [item]}}, {"text": "<audio>"}, return_tensors="np")["input_features"]
        for item in (ways[0], ways[2], sounds.as_sound(data, 16000, LIMITS))
    ]
    assert np.array_equal(batches[0], batches[1])
    assert np.array_equal(batches[0], batches[2])


def test_sounds_beyond_limits_are_refused(tmp_path: Path) -> None:
    """By the header: a second is refused where half of one is the limit; and rates that are none."""
    soundfile = pytest.importorskip("soundfile")
    write_wav(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.flac", TONE, 8000)
    for name in ("a.wav", "a.flac"):
        with pytest.raises(MediaError, match=rf"{name} cannot be read: it lasts 1.0 seconds, the limit audio_seconds"):
            read_audio(tmp_path / name, 16000, MediaLimits(audio_seconds=0.5))
        with pytest.raises(MediaError, match="the limit file_bytes is 99"):
            read_audio(tmp_path / name, 16000, MediaLimits(file_bytes=99))
    write_wav(tmp_path / "b.wav", rate=3)
    with pytest.raises(MediaError, match="its rate is 3 samples a second"):
        read_audio(tmp_path / "b.wav", 16000)
    with pytest.raises(MediaError, match="states no sampling_rate"):
        sounds.as_sound(tmp_path / "a.wav", None, LIMITS)


# --- videos -----------------------------------------------------------------------------------------------------------

COLOURS = [(40 * number, 0, 255 - 40 * number) for number in range(6)]


def colours_of(frames: list[Any]) -> list[int]:
    """Which of the colours each frame has."""
    return [round(np.asarray(frame)[4, 4, 0] / 40) for frame in frames]


@pytest.mark.parametrize(
    "rate, expected", [(1, [0, 2, 4]), (2, [0, 1, 2, 3, 4, 5]), (4, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])]
)
@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_frames_by_rate(ending: str, rate: float, expected: list[int], tmp_path: Path) -> None:
    """Six pictures of half a second each, at 1, 2 and 4 a second: those shown at these times."""
    pictures = [Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    pictures[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pictures[1:], duration=500, lossless=True)
    for source in ({"path": str(tmp_path / f"a.{ending}")}, {"bytes": (tmp_path / f"a.{ending}").read_bytes()}):
        assert colours_of(videos.frames({**source, "frames_per_second": rate}, LIMITS)) == expected


def test_frames_of_a_folder(tmp_path: Path) -> None:
    """All, by name; one that a link brings from elsewhere is refused, and so are too many and none."""
    (tmp_path / "frames").mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "frames" / f"{number}.png")
    assert colours_of(videos.frames(tmp_path / "frames", LIMITS)) == list(range(6))
    assert colours_of(videos.frames([tmp_path / "frames" / "3.png", Image.new("RGB", (8, 8))], LIMITS)) == [3, 0]
    with pytest.raises(MediaError, match="more than 4 frames, the limit video_frames is 4"):
        videos.frames(tmp_path / "frames", MediaLimits(video_frames=4))
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "frames" / "9.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(MediaError, match=r"frame 9\.png lies outside"):
        videos.frames(tmp_path / "frames", LIMITS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="has no frames"):
        videos.frames(tmp_path / "empty", LIMITS)


def test_other_videos_need_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyAV the message says what to install; with a stand-in for it, frames are taken by their times."""
    (tmp_path / "a.mp4").write_bytes(b"\0" * 64)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'cornstarch\[video\]'"):
        videos.frames(tmp_path / "a.mp4", LIMITS)

    class Frame:
        def __init__(self, number: int) -> None:
            self.time, self.number = 7.0 + number / 2, number

        def to_image(self) -> Image.Image:
            return Image.new("RGB", (8, 8), COLOURS[self.number])

    class Container:
        streams = types.SimpleNamespace(video=[types.SimpleNamespace(average_rate=2)])

        def __enter__(self) -> "Container":
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def decode(self, stream: Any) -> Any:
            return map(Frame, range(6))

    stand_in = types.SimpleNamespace(open=lambda _: Container(), error=types.SimpleNamespace(FFmpegError=KeyError))
    monkeypatch.setitem(sys.modules, "av", stand_in)
    found = videos.frames({"path": str(tmp_path / "a.mp4"), "frames_per_second": 1.0}, LIMITS)
    assert colours_of(found) == [0, 2, 4]


# --- processors -------------------------------------------------------------------------------------------------------


def test_processors_are_told_the_rate_that_sounds_have() -> None:
    """Hugging Face's warn at every call otherwise; what the caller says stays, and nothing strange is passed."""

    class Plain:
        sampling_rate = 16_000

        def __call__(self, raw_speech: Any, **more: Any) -> Any: ...

    def options(processor: Any, **given: Any) -> dict[str, Any]:
        sound = {"raw_speech": [np.zeros(160, np.float32)]}
        return media.read("audio", processor, {**sound, **given}, {}, LIMITS).options

    assert options(parts.whisper_processor()) == {"sampling_rate": 16_000}
    assert options(parts.whisper_processor(), sampling_rate=8000) == {"sampling_rate": 8000}
    assert options(Plain()) == {}


def test_arguments_are_of_each_processor_its_own() -> None:
    """Two of one class may differ; functions and methods do as well."""

    def images(images: Any, size: int = 3) -> None: ...

    def videos(videos: Any) -> None: ...

    class Wrapped:
        def __init__(self, preprocess: Any) -> None:
            self.preprocess = preprocess

        def __call__(self, *args: Any) -> None: ...

    first, second = Wrapped(images), Wrapped(videos)
    for _ in range(2):
        found = [media.media_argument(processor) for processor in (images, videos, first, second)]
        assert found == ["images", "videos", "images", "videos"]
    with pytest.raises(ArgumentError, match="names no argument"):
        media.media_argument(lambda *args: None)


def test_a_sound_longer_than_the_encoder_hears() -> None:
    """Refused with both lengths, as all of its text would be learnt; cut where truncation is asked for."""
    _, processor = parts.three_modalities()
    seconds = processor.encoder_processors["audio"].n_samples // 16000
    sound = parts.sound(16000 * (seconds + 1))
    given = {"audio": {"raw_speech": [sound], "sampling_rate": 16000}}
    with pytest.raises(
        MediaError, match=rf"sound 0 has {seconds + 1}.00 s, and Whisper.* hears {seconds}.00 s: cut it"
    ):
        processor(given, {"text": "<audio>"}, return_tensors="pt")
    given["audio"]["truncation"] = True
    assert processor(given, {"text": "<audio>"}, return_tensors="pt")["input_features"].shape[0] == 1


def test_no_signature_is_read_again_at_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image's and of a sound's processor and of the tokenizer: what the first batch has asked is known then."""
    _, processor = parts.three_modalities()
    set_template(processor.llm_tokenizer)
    asked = [
        {"type": "vision", "vision": parts.image()},
        {"type": "speech", "speech": parts.sound(4000)},
        {"type": "text", "text": "?"},
    ]
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": "!"})
    collator, read, signature = Collator(processor), list[Any](), inspect.signature

    def counted(function: Any, *args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("cornstarch."):
            read.append(function)
        return signature(function, *args, **kwargs)

    monkeypatch.setattr(inspect, "signature", counted)
    collator([Sample(messages=messages, name="one")])
    assert read
    read.clear()
    collator([Sample(messages=messages, name="one")])
    assert read == []
