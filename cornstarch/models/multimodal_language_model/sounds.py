"""1a3. A sound as callers give it -> one channel of samples at the rate that an encoder wants."""

import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cornstarch.errors import MediaError
from cornstarch.models.multimodal_language_model.images import from_base64
from cornstarch.models.multimodal_language_model.limits import MediaLimits

Sound = np.ndarray[Any, np.dtype[np.float32]]
_RATES = (100, 1_000_000)  # the least and most samples a second of anything that is a sound
# Bytes that a file claims to have whose writer did not know how many there would be.
_NOBODY_KNOWS = 0x7FFF0000


def read_audio(path: str | Path, sampling_rate: int, limits: MediaLimits | None = None) -> Sound:
    """Read a sound file: WAV as it is, other formats with the optional package `soundfile`.

    Args:
        path: the file.
        sampling_rate: samples a second to have.
        limits: how large it may be.

    Returns:
        One channel, between -1 and 1.

    Raises:
        MediaError: if it cannot be read; it is named.
        ImportError: if it needs a package that is not installed.
    """
    limits = limits or MediaLimits()
    try:
        return _decoded(limits.read(path), sampling_rate, limits)
    except (MediaError, OSError) as error:
        raise MediaError(f"the sound {path} cannot be read: {error}") from error


def as_sound(item: Any, sampling_rate: int | None, limits: MediaLimits) -> Sound:
    """A sound, however it is given.

    Args:
        item: a path, the bytes of a file, the same in base64 (`data:audio/wav;base64,...`), samples (an array, a
            tensor, a list of numbers) at the rate to have, or a dict with `array` and its `sampling_rate`, or with
            `bytes` or `path`.
        sampling_rate: samples a second to have; None if nobody knows, then only samples can be taken.
        limits: how large it may be.

    Returns:
        One channel.

    Raises:
        MediaError: if it cannot be read.
        ImportError: if it needs a package that is not installed.
    """
    if isinstance(item, Mapping):
        if item.get("array") is not None:
            rate = item.get("sampling_rate") or sampling_rate
            return _at_rate(_one_channel(item["array"]), rate, sampling_rate, limits)
        item = item.get("bytes") or item.get("path")
    if isinstance(item, str | Path | bytes):
        if sampling_rate is None:
            raise MediaError("the processor states no sampling_rate, so a file cannot be brought to it; give samples")
        if isinstance(item, str) and item.startswith("data:"):
            item = from_base64(item)
        if isinstance(item, bytes):
            limits.check("file_bytes", len(item), f"it has {len(item):,} bytes")
            return _decoded(item, sampling_rate, limits)
        return read_audio(item, sampling_rate, limits)
    return _one_channel(item)


def resample(samples: Sound, rate: int, wanted: int) -> Sound:
    """Samples at another rate, with a filter against aliasing (polyphase, scipy).

    Args:
        samples: one channel.
        rate: samples a second that it has.
        wanted: samples a second to have.

    Returns:
        One channel.

    Raises:
        ImportError: if scipy is not installed and the rates differ.
    """
    if rate == wanted:
        return samples
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise ImportError(f"a sound of {rate} Hz is needed at {wanted} Hz: pip install 'cornstarch[audio]'") from error
    divisor = np.gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // divisor, rate // divisor), dtype=np.float32)


def _one_channel(values: Any) -> Sound:
    """Samples as an array; of several channels, along whichever axis, their mean."""
    samples = np.asarray(values.detach().cpu().float() if isinstance(values, Tensor) else values, dtype=np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float32)
    return _finite(samples)


def _finite(samples: Sound) -> Sound:
    """Refuse what would make every number of a step a NaN."""
    if not np.isfinite(samples).all():
        raise MediaError("it has samples that are no finite numbers")
    return samples


def _at_rate(samples: Sound, rate: Any, wanted: int | None, limits: MediaLimits) -> Sound:
    if rate is None or wanted is None:
        return samples
    _check_length(samples.size, rate, limits)
    return resample(samples, int(rate), wanted)


def _check_length(samples: int, rate: Any, limits: MediaLimits) -> None:
    if not isinstance(rate, int | float) or not _RATES[0] <= rate <= _RATES[1]:
        raise MediaError(f"its rate is {rate} samples a second, expected {_RATES[0]} to {_RATES[1]:,}")
    if not samples:
        raise MediaError("it is empty")
    limits.check("audio_seconds", samples / rate, f"it lasts {samples / rate:,.1f} seconds")


def _decoded(data: bytes, wanted: int, limits: MediaLimits) -> Sound:
    samples, rate = _wav(data, limits) or _with_soundfile(data, limits)
    return resample(samples, rate, wanted)


def _wav(data: bytes, limits: MediaLimits) -> tuple[Sound, int] | None:
    """Samples and rate of a WAV file of whole numbers; None for anything else."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            claimed = file.getnframes()
            frames = file.readframes(claimed)
    except (wave.Error, EOFError):
        return None
    if not 1 <= width <= 4:
        return None
    whole = len(frames) // (width * channels)
    if whole < claimed and claimed * width * channels < _NOBODY_KNOWS:
        raise MediaError(f"the file is truncated: it ends after {whole:,} of {claimed:,} samples")
    _check_length(whole, rate, limits)
    frames = frames[: whole * width * channels]
    if width == 1:  # unsigned, unlike all others
        samples = np.frombuffer(frames, np.uint8).astype(np.float32) / 128 - 1
    elif width == 3:
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4").ravel().astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(frames, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate


def _with_soundfile(data: bytes, limits: MediaLimits) -> tuple[Sound, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("a sound that is no plain WAV file needs: pip install 'cornstarch[audio]'") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_length(file.frames, file.samplerate, limits)  # as the header has it, before anything is decoded
            samples = file.read(dtype="float32", always_2d=True)
            rate = int(file.samplerate)
    except MediaError:
        raise
    except soundfile.LibsndfileError as error:  # whose text says where the bytes are in memory
        raise MediaError(error.error_string) from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise MediaError(str(error)) from error
    return _finite(samples.mean(axis=1, dtype=np.float32)), rate
