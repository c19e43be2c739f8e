"""The exceptions users see: one tree, each also the built-in exception a reader would expect.

    CornstarchError
    ├── ArgumentError (ValueError)             a value that cannot be used, with the values that can
    │   ├── ModalityMismatchError              modality tokens, inputs and features that do not pair
    │   └── SampleError                        a conversation that cannot be written as text and labels
    │       └── UnlabelledError                one in which no token is labelled
    ├── UnknownArgumentError (TypeError)       a keyword that no part of the model takes
    ├── MediaError (ValueError)                an image, sound or video that cannot be read
    ├── CheckpointError (OSError)              a saved model or processor that cannot be used
    │   └── MissingFileError (FileNotFoundError)
    ├── TrainingError (RuntimeError)           a training run that cannot go on
    └── FrozenCostError (AssertionError)       a frozen part that costs more than it must

`except CornstarchError` catches every mistake this package reports; `except ValueError` and its like work as
everywhere in Python.
"""


class CornstarchError(Exception):
    """Base of every error that this package raises on purpose."""


class ArgumentError(CornstarchError, ValueError):
    """A value that cannot be used; the message lists what can."""


class ModalityMismatchError(ArgumentError):
    """Modality tokens, encoder inputs and features do not pair; the message names modality, counts and sample."""


class SampleError(ArgumentError):
    """A conversation that cannot be written as text and labels.

    Args:
        message: names it.
        sample: its name.

    Attributes:
        sample: its name.
    """

    def __init__(self, message: str, sample: str) -> None:
        super().__init__(message, sample)
        self.sample = sample

    def __str__(self) -> str:
        return str(self.args[0])


class UnlabelledError(SampleError):
    """A conversation in which no token is labelled, as it has no answer or was cut before it.

    Args:
        message: names the first such in a batch.
        sample: its name.
        places: which samples of the batch are so, from 0.

    Attributes:
        sample: name of the first.
        places: which samples of the batch are so, from 0.
    """

    def __init__(self, message: str, sample: str, places: tuple[int, ...]) -> None:
        super().__init__(message, sample)
        self.args = (message, sample, places)
        self.places = places


class UnknownArgumentError(CornstarchError, TypeError):
    """A keyword argument that neither an encoder nor the language model takes."""


class MediaError(CornstarchError, ValueError):
    """An image, sound or video that cannot be read; the message names it."""


class CheckpointError(CornstarchError, OSError):
    """A saved model or processor that is incomplete, damaged, or needs something it does not hold."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file that a saved model or processor must have is not there."""


class TrainingError(CornstarchError, RuntimeError):
    """A training run that cannot go on, with the step at which it stopped."""


class FrozenCostError(CornstarchError, AssertionError):
    """A frozen part saves memory for the backward pass, or computes what nobody asks for; the message says which."""
