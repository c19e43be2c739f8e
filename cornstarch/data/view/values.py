"""A sample as JSON values, for programs."""

from typing import Any

from cornstarch.data.viewing import CutView, MediumView, SampleView


def view_as_json(view: SampleView) -> dict[str, Any]:
    """A sample as JSON values.

    Args:
        view: the sample.

    Returns:
        `name`, `source`, `index`; `positions`, each with `id`, `text`, `label` (None where nothing is learnt) and
        `modality` (None for text); `media`, each with `key`, `kind`, `index`, its size (`size`, `frames`, or `seconds`
        and `sampling_rate`), `inputs` (what the encoder gets of it: shapes by name), `positions` (`[start, end]` of
        each of its runs, end not included; none if it was left out) and, if it cannot be read, `error`; `inputs` (what
        the model is called with: shapes by name); `labelled`, how many positions carry a loss; `truncated` (None if
        nothing was cut off); `unlabelled` (why nothing is learnt; None if something is); `error` (why the sample cannot
        be used; None if it can); `messages`, if there are no positions.
    """
    found = {
        "name": view.name,
        "source": view.source,
        "index": view.index,
        "positions": [
            {"id": entry.id, "text": entry.text, "label": entry.label, "modality": entry.modality}
            for entry in view.positions
        ],
        "media": [_medium(medium) for medium in view.media],
        "inputs": {name: list(shape) for name, shape in view.inputs.items()},
        "labelled": view.labelled,
        "truncated": _cut(view.truncated, view) if view.truncated is not None else None,
        "unlabelled": view.unlabelled,
        "error": view.error,
    }
    if not view.positions:
        found["messages"] = [{"role": role, "text": text} for role, text in view.messages]
    return found


def _medium(medium: MediumView) -> dict[str, Any]:
    found: dict[str, Any] = {"key": medium.key, "kind": medium.kind, "index": medium.index}
    if medium.size is not None:
        found["size"] = list(medium.size)
    for name in ("frames", "seconds", "sampling_rate", "error"):
        if getattr(medium, name) is not None:
            found[name] = getattr(medium, name)
    found["inputs"] = {name: list(shape) for name, shape in medium.inputs.items()}
    found["positions"] = [list(run) for run in medium.positions]
    return found


def _cut(cut: CutView, view: SampleView) -> dict[str, Any]:
    return {
        "max_length": cut.max_length,
        "before": cut.before,
        "after": cut.after,
        "text": "".join(position.text for position in cut.left_out if position.modality is None),
        "labelled": sum(position.label is not None for position in cut.left_out),
        "media": [{"key": medium.key, "index": medium.index} for medium in view.media if medium.left_out],
    }
