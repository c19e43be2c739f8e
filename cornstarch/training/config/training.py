"""1d. How: optimizer, schedule, length, checks, and where a run leaves what it made."""

from dataclasses import field
from typing import Any, Literal

from cornstarch.training.config.checking import config_class, require
from cornstarch.training.config.trains import check_rates


@config_class
class OptimizerConfig:
    """How weights are changed."""

    name: str = "AdamW"
    """Class in torch.optim."""
    learning_rate: float = 1e-4
    """Highest learning rate, unless a part or group has its own."""
    weight_decay: float = 0.0
    """Of matrices, unless a part or group has its own."""
    max_grad_norm: float | None = 1.0
    """Longer gradients are shortened to this length; no limit if null."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the class, such as betas."""

    def __post_init__(self) -> None:
        check_rates(self.learning_rate, self.weight_decay, None)
        limit = self.max_grad_norm
        require(limit is None or limit > 0, "max_grad_norm", f"must be positive, found {limit}")
        for name in ("lr", "weight_decay"):
            field_name = "learning_rate" if name == "lr" else name
            require(name not in self.arguments, "arguments", f"{name} is optimizer.{field_name}; set it there")


@config_class
class ScheduleConfig:
    """How the learning rate changes over the steps."""

    name: str = "cosine"
    """constant, linear, cosine, inverse_sqrt, or warmup_stable_decay."""
    warmup: float = 0.03
    """Share of all steps in which the learning rate rises to its highest."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the schedule: `floor`, the share of the highest rate at the end; `decay`, the share of the steps in which
    warmup_stable_decay falls."""

    def __post_init__(self) -> None:
        check_rates(None, None, self.warmup)


@config_class
class TrainingConfig:
    """How long, on how much at once, and where."""

    steps: int | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = None
    """Passes over the training data; give this or `steps`."""
    batch_size: int = 32
    """Samples per optimizer step."""
    micro_batch_size: int | None = None
    """Samples on the device at once; `batch_size` if left out. Fewer need less memory and change no numbers, except
    where mixtures of experts add the balance of each batch to the loss."""
    micro_batch_positions: int | None = None
    """Positions on the device at once, padding included. The samples of a step are put together by length, as many at a
    time as fit: less padding, and a bound on the language model's memory that holds for the longest samples too.
    Changes as little as `micro_batch_size`."""
    micro_batch_media: int | None = None
    """Images, sounds and videos on the device at once, whatever their size; samples are put together as with
    `micro_batch_positions`."""
    length_window: int = 1
    """Steps that share out their samples by length, for less padding: 16, say. Which samples meet in a step is another
    then. Their samples are held in memory as they go to the device, those of up to two windows for every worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products (autocast); weights keep their own dtype."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more work."""
    compile: bool = False
    """Compile each layer with torch.compile: the first steps take minutes, all others less time."""
    liger: bool | None = None
    """Liger's kernels for norms and activations (the package liger-kernel), which change results within rounding. Left
    out: on a CUDA device, where the package is installed, in the parts that it knows. true: an error if the language
    model cannot have them. false: never."""
    seed: int = 0
    """Of new weights, order, dropout. On a CPU the same seed gives the same numbers."""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, mps."""
    threads: int | None = None
    """CPU threads to compute with; PyTorch's choice if left out."""
    peak_flops: float | None = None
    """Floating-point operations a second that the device can do, of which MFU is a share. Left out: the maker's figure
    for GPUs that are known, elsewhere what a short matrix product reaches."""

    def __post_init__(self) -> None:
        one = (self.steps is None) != (self.epochs is None)
        require(one, "steps", f"give `steps` or `epochs`, one of them; found {self.steps} and {self.epochs}")
        require(0 <= self.seed < 2**63, "seed", f"must be from 0 to 2**63 - 1, found {self.seed}")
        sizes = ("batch_size", "micro_batch_size", "micro_batch_positions", "micro_batch_media", "length_window")
        for name in ("steps", "epochs", *sizes, "threads", "peak_flops"):
            value = getattr(self, name)
            require(value is None or value > 0, name, f"must be above 0, found {value}")


@config_class
class EvaluationConfig:
    """How a model is checked, during training and by `cornstarch eval`."""

    every: int | None = None
    """Steps between checks; only at the end if left out."""
    batch_size: int = 32
    """Samples at once."""
    generate: bool = True
    """Have the model answer, and count how many answers are exactly right."""
    max_new_tokens: int = 64
    """Longest answer."""
    samples: int | None = None
    """Check on the first so many samples only."""

    def __post_init__(self) -> None:
        for name in ("every", "batch_size", "max_new_tokens", "samples"):
            value = getattr(self, name)
            require(value is None or value > 0, name, f"must be above 0, found {value}")


@config_class
class RunConfig:
    """Where a run leaves what it made."""

    folder: str = "runs/latest"
    """Made if it is not there. A folder that holds a run is refused."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    resume: bool = False
    """Go on from the last checkpoint in the folder. Rates, steps, checks and this section may have changed since."""
    log_every: int = 1
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int | None = 500
    """Steps between checkpoints; null saves one at the end only."""
    keep_last: int = 2
    """Checkpoints that are kept, besides the best."""
    best_by: Literal["eval_loss", "eval_exact_match"] = "eval_loss"
    """What makes a checkpoint the best, of those at whose step the model was checked."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Also log there, through accelerate's trackers."""
    project: str = "cornstarch"
    """The project's name there."""

    def __post_init__(self) -> None:
        require(not (self.overwrite and self.resume), "resume", "cannot go on from a run that is overwritten")
        for name in ("log_every", "checkpoint_every", "keep_last"):
            value = getattr(self, name)
            require(value is None or value > 0, name, f"must be above 0, found {value}")
