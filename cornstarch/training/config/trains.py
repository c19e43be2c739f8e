"""1b. What trains of each part, and how fast."""

import fnmatch
from dataclasses import field
from typing import Any, ClassVar, Literal

from cornstarch.training.config.checking import FieldError, config_class, require


@config_class
class GroupConfig:
    """Parameters of a part, by name, with settings of their own."""

    parameters: list[str]
    """Names of parameters within the part, with * for anything: `*norm*`, `*.bias`."""
    learning_rate: float | None = None
    """Highest learning rate; the part's if left out."""
    weight_decay: float | None = None
    """Also of vectors then; the part's if left out."""
    warmup: float | None = None
    """Share of all steps; the part's if left out."""

    def matches(self, name: str) -> bool:
        """Whether a parameter of this name belongs here."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.parameters)


@config_class
class TrainsConfig:
    """How much of a part trains, and how fast. A string stands for the mode alone."""

    mode: Literal["frozen", "full", "lora", "partial"] = "full"
    """`frozen`: nothing, at no cost. `full`: all weights. `lora`: adapters beside frozen weights. `partial`: what the
    next four fields choose."""
    last_layers: int = 0
    """Of `partial`: so many of the last layers."""
    norms: bool = False
    """Of `partial`: the weights of all normalisation layers."""
    new_rows: bool = False
    """Of `partial`, and of `lora`: the embedding rows of `added_tokens`, and no other rows."""
    parameters: list[str] = field(default_factory=list)
    """Of `partial`: parameters by name, with * for anything."""
    lora: dict[str, Any] = field(default_factory=dict)
    """Of `lora`: arguments of PEFT's LoraConfig, such as r, lora_alpha, target_modules (all-linear if left out)."""
    learning_rate: float | None = None
    """Highest learning rate; optimizer.learning_rate if left out."""
    weight_decay: float | None = None
    """Of matrices; vectors (biases, norms) are not decayed. optimizer.weight_decay if left out."""
    warmup: float | None = None
    """Share of all steps in which the learning rate rises; schedule.warmup if left out."""
    layer_decay: float = 1.0
    """Each layer's learning rate is this times that of the layer behind it."""
    groups: list[GroupConfig] = field(default_factory=list)
    """Parameters with settings of their own; the first group that names a parameter has it."""

    _only_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "last_layers": ("partial",),
        "norms": ("partial",),
        "parameters": ("partial",),
        "new_rows": ("partial", "lora"),
        "lora": ("lora",),
    }

    def __post_init__(self) -> None:
        for name, modes in self._only_with.items():
            if getattr(self, name) and self.mode not in modes:
                raise FieldError((name,), f"is for mode {' or '.join(modes)}, found mode {self.mode!r}")
        if self.mode == "partial" and not any(getattr(self, name) for name in self._only_with):
            raise FieldError(("mode",), "partial needs last_layers, norms, new_rows or parameters: nothing would train")
        require(self.last_layers >= 0, "last_layers", f"a number of layers, found {self.last_layers}")
        require(0 < self.layer_decay <= 1, "layer_decay", f"above 0 and at most 1, found {self.layer_decay}")
        check_rates(self.learning_rate, self.weight_decay, self.warmup)
        for number, group in enumerate(self.groups):
            try:
                check_rates(group.learning_rate, group.weight_decay, group.warmup)
            except FieldError as error:
                raise FieldError(("groups", str(number), *error.where), error.message) from None


def check_rates(learning_rate: float | None, weight_decay: float | None, warmup: float | None) -> None:
    """Refuse rates that are none; None is one that is not given."""
    finite = learning_rate is None or 0 < learning_rate < float("inf")
    require(finite, "learning_rate", f"must be positive, found {learning_rate}")
    require(weight_decay is None or weight_decay >= 0, "weight_decay", f"must not be negative, found {weight_decay}")
    require(warmup is None or 0 <= warmup <= 1, "warmup", f"is a share of the steps, from 0 to 1, found {warmup}")


def from_mode(value: Any) -> Any:
    """What a mode alone stands for."""
    return {"mode": value} if isinstance(value, str) else value
