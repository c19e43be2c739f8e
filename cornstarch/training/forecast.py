"""2d. What an epoch will come to, from the lengths of samples: padding, steps, work, time. Pure; an estimate."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cornstarch.data.budgets import Budget, Size, chance_of_window, steps_of_like_length


@dataclass(frozen=True, kw_only=True)
class SampleWork:
    """Floating-point operations of a sample in training: forward, backward, and what is computed again.

    Attributes:
        text: of the language model, for a position, a square of positions, and a row of logits, of which there is one
            more than there are labelled tokens.
        inputs: part to (modality key, operations for each position that its inputs take), of all other parts.
    """

    text: tuple[float, float, float]
    inputs: Mapping[str, tuple[str, float]]

    def of(self, length: "Length") -> dict[str, float]:
        """Operations of a sample by part, without padding."""
        numbers = (length.positions, length.positions**2, length.labelled + 1)
        return {
            **{part: each * length.features.get(key, 0) for part, (key, each) in self.inputs.items()},
            "language_model": sum(each * number for each, number in zip(self.text, numbers, strict=True)),
        }


@dataclass(frozen=True, kw_only=True)
class Length:
    """Of a sample that can be used.

    Attributes:
        positions: it takes.
        labelled: tokens that carry loss.
        features: modality key to positions that its inputs take.
        seconds: to prepare it.
        media: images, sounds and videos of it.
    """

    positions: int
    labelled: int
    features: Mapping[str, int]
    seconds: float
    media: int = 0


def forecast(
    lengths: Mapping[int, Length | None],
    order: Sequence[int],
    *,
    batch_size: int,
    budget: Budget,
    length_window: int = 1,
    seed: int = 0,
    steps: int | None,
    epochs: float | None,
    work: SampleWork | None = None,
    speed: float | None = None,
    share: float = 0.4,
    workers: int = 0,
) -> dict[str, Any]:
    """What an epoch, and a run, will come to.

    Args:
        lengths: index to length of samples that were looked at; None for those that cannot be used.
        order: indices of an epoch, as training takes them. Places of samples that were not looked at are taken to be
            like the others.
        batch_size: samples a step.
        budget: of a micro-batch.
        length_window: steps that share out their samples by length.
        seed: of the order.
        steps: of the run, or `epochs`.
        epochs: of the run.
        work: of a sample; None if it is not known.
        speed: floating-point operations a second that a matrix product of this machine reaches.
        share: of the speed that training is taken to reach.
        workers: that prepare batches.

    Returns:
        Values for JSON; `assumptions` says what they rest on.
    """
    seen = [index for index in order if index in lengths]
    scale = len(order) / max(1, len(seen))
    used = [length for index in seen if (length := lengths[index]) is not None]
    batches = _micro_batches(lengths, seen, batch_size, budget, length_window, seed)
    padded = sum(len(batch) * max(length.positions for length in batch) for batch in batches)
    positions, labelled = sum(length.positions for length in used), sum(length.labelled for length in used)
    steps_per_epoch = -(-len(order) // batch_size)
    total = steps if steps is not None else max(1, math.ceil((epochs or 0) * steps_per_epoch - 1e-9))
    of_run = total / max(1, steps_per_epoch)
    seconds = sum(length.seconds for length in used)
    values: dict[str, Any] = {
        "samples_per_epoch": len(order),
        "usable_samples_per_epoch": round(len(used) * scale),
        "positions_per_epoch": round(positions * scale),
        "labelled_tokens_per_epoch": round(labelled * scale),
        "positions_of_inputs_per_epoch": {
            key: round(sum(length.features.get(key, 0) for length in used) * scale)
            for key in sorted({key for length in used for key in length.features})
        },
        "padding": {
            "batch_size": batch_size,
            "micro_batch_size": budget.samples,
            "micro_batch_positions": budget.positions,
            "micro_batch_media": budget.media,
            "length_window": length_window,
            "padded_positions_per_epoch": round(padded * scale),
            "share": 1 - positions / padded if padded else 0.0,
            "micro_batches": round(len(batches) * scale),
        },
        "steps_per_epoch": steps_per_epoch,
        "steps": total,
        "epochs": of_run,
        "preparation": {
            "samples_per_second_per_worker": len(used) / seconds if seconds else None,
            "workers": workers,
            "seconds_per_epoch": seconds * scale / max(1, workers),
        },
        "compute": _compute(used, work, scale, speed, share, of_run),
        "assumptions": _assumptions(len(seen), len(order), share, workers),
    }
    return values


def _micro_batches(
    lengths: Mapping[int, Length | None],
    seen: Sequence[int],
    batch_size: int,
    budget: Budget,
    length_window: int,
    seed: int,
) -> list[list[Length]]:
    """The samples of every micro-batch of the first epoch, put together as in training."""
    batches = []
    for first in range(0, len(seen), batch_size * length_window):
        places = seen[first : first + batch_size * length_window]
        steps = [
            list(range(start, min(start + batch_size, len(places)))) for start in range(0, len(places), batch_size)
        ]
        if len(places) > batch_size:  # a window
            sizes = [length.positions if (length := lengths[index]) else 0 for index in places]
            chance = chance_of_window(seed, 0, first // batch_size)
            steps = steps_of_like_length(sizes, batch_size, chance)
        for step in steps:
            found = [lengths[places[place]] for place in step]
            batches += _groups(found, budget, by_length=budget.is_by_length or length_window > 1)
    return batches


def _groups(step: Sequence[Length | None], budget: Budget, *, by_length: bool) -> list[list[Length]]:
    if by_length:
        used = [length for length in step if length is not None]
        sizes = [Size(positions=length.positions, media=length.media) for length in used]
        return [[used[place] for place in group] for group in budget.groups(sizes)]
    size = budget.samples or len(step)
    cut = (step[start : start + size] for start in range(0, len(step), size))
    return [found for part in cut if (found := [length for length in part if length is not None])]


def _compute(
    used: Sequence[Length], work: SampleWork | None, scale: float, speed: float | None, share: float, of_run: float
) -> dict[str, Any]:
    sums = Counter[str]()
    for length in used if work is not None else ():
        sums.update(work.of(length))  # type: ignore[union-attr, arg-type]
    by_part = {part: round(number * scale) for part, number in sums.items()}
    flops = sum(by_part.values()) if work is not None else None
    seconds = flops / (speed * share) if flops is not None and speed else None
    return {
        "flops_per_epoch": flops,
        "flops_per_epoch_by_part": by_part,
        "measured_flops_per_second": speed,
        "share_of_measured": share,
        "seconds_per_epoch": seconds,
        "seconds": seconds * of_run if seconds is not None else None,
    }


def _assumptions(seen: int, order: int, share: float, workers: int) -> list[str]:
    found = [
        "an estimate: work is that of matrix products, without padding, optimizer, checks and checkpoints",
        "an encoder's work is taken to grow with the positions that come of its inputs, as in the sample it is told by",
        f"training is taken to reach {share:.0%} of the speed of one matrix product on this machine",
        "preparation is what the check measured; whether workers keep up depends on the time of a step",
        "padding is that of the first epoch's order, samples that cannot be used skipped",
    ]
    if seen < order:
        found.append(f"{seen:,} of {order:,} places of an epoch were looked at; the others are taken to be alike")
    if workers == 0:
        found.append("data.workers is 0, so batches are prepared between the steps, and both times add up")
    return found
