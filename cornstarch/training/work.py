"""2e. A model's parts as far as their work goes: what a forecast is made of."""

from torch import nn

from cornstarch.models.multimodal_language_model import MultimodalModel, anatomy, freezing
from cornstarch.training.forecast import PartWork, Passes


def part_work(model: MultimodalModel) -> list[PartWork]:
    """The weights of a model in matrix products, by part and by what is computed with them.

    Args:
        model: with what trains chosen; perhaps on the meta device.

    Returns:
        An entry for the frozen weights of a part and one for those that train, where there are such.
    """
    found, upstream = list[PartWork](), dict[str, bool]()
    for name, modules in model.parts.items():
        key = name.removesuffix("_encoder").removesuffix("_projector") if name != "language_model" else None
        before = any(upstream.values()) if key is None else upstream.get(key, False)
        found += _of_part(name, modules, key, before=before)
        trains = any(parameter.requires_grad for module in modules for parameter in module.parameters())
        upstream[name if key is None else key] = before or trains
    return found


def _of_part(name: str, modules: list[nn.Module], key: str | None, *, before: bool) -> list[PartWork]:
    base = freezing.unwrap(modules[0])
    left_out = {id(table.weight) for module in modules for table in module.modules() if isinstance(table, nn.Embedding)}
    head = base.get_output_embeddings() if key is None else None  # type: ignore[operator]
    left_out |= {id(head.weight)} if head is not None else set()
    matrices = {
        id(parameter): parameter
        for module in modules
        for parameter in module.parameters()
        if parameter.dim() >= 2 and id(parameter) not in left_out
    }
    trains = any(parameter.requires_grad for module in modules for parameter in module.parameters())
    frozen: Passes = "passes" if trains or before else "forward"
    width = anatomy.embedding_width(base) if key is None else anatomy.feature_width(base)
    layers = len(anatomy.layers(base)) if not name.endswith("_projector") else 0
    numbers = {
        needed: sum(weight.numel() for weight in matrices.values() if weight.requires_grad == needed)
        for needed in (False, True)
    }
    found: list[PartWork] = []
    for needed, number in numbers.items():
        in_head = head.weight.numel() if head is not None and head.weight.requires_grad == needed else 0
        if number or in_head:
            backward: Passes = "trains" if needed else frozen
            sizes = {"layers": layers, "width": width or 0} if not found else {}
            called = name if not found else f"{name} (trains)"
            entry = PartWork(name=called, weights=number, backward=backward, head=in_head, modality=key, **sizes)
            found.append(entry)
    return found
