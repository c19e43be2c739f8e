"""1c. Sounds from files, as samples at the rate that an encoder wants."""

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np

from cornstarch.errors import MediaError

Sound = np.ndarray[Any, np.dtype[np.float32]]


def read_audio(path: str | Path, sampling_rate: int) -> Sound:
    """Read a sound file: WAV as it is, other formats with the optional package `soundfile`.

    Args:
        path: the file.
        sampling_rate: samples a second to have.

    Returns:
        One channel, between -1 and 1.

    Raises:
        MediaError: if it cannot be read; it is named.
        ImportError: if it needs a package that is not installed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MediaError(f"the sound {path} cannot be read: {error}") from error
    samples, rate = _wav(data) or _with_soundfile(data, path)
    if not samples.size:
        raise MediaError(f"the sound {path} is empty")
    return resample(samples, rate, sampling_rate)


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


def _wav(data: bytes) -> tuple[Sound, int] | None:
    """Samples and rate of a WAV file of whole numbers; None for anything else."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError):
        return None
    if width == 1:  # unsigned, unlike all others
        samples = np.frombuffer(frames, np.uint8).astype(np.float32) / 128 - 1
    elif width == 3:
        padded = np.zeros((len(frames) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4").ravel().astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(frames, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate


def _with_soundfile(data: bytes, path: str | Path) -> tuple[Sound, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(f"{path} is no plain WAV file, reading it needs: pip install 'cornstarch[audio]'") from error
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise MediaError(f"the sound {path} cannot be read: {error}") from error
    return samples.mean(axis=1, dtype=np.float32), int(rate)
