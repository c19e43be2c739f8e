"""Pipeline templates: which modules of a model each stage owns. Pure data; nothing here launches anything."""

import re
from collections.abc import Sequence

from torch import nn

from cornstarch.errors import ArgumentError
from cornstarch.models.multimodal_language_model import ModalEncoderModule, freezing, pieces

_NUMBERED = re.compile(r"\.\d+$")


class PipelineTemplate:
    """A partition of a model's modules, in the order in which they run, into pipeline stages.

    Templates are equal, and hash alike, if their model names and stages are equal.

    Args:
        model_name: which model it is for, as `get_model_name` gives it.
        modules_per_stage: for each stage, the names of its modules (see `get_modules`).

    Raises:
        ArgumentError: if there is no stage, a stage is empty, or a module stands in two places.
    """

    def __init__(self, model_name: str, modules_per_stage: Sequence[Sequence[str]]) -> None:
        stages = tuple(tuple(stage) for stage in modules_per_stage)
        if not stages:
            raise ArgumentError("a pipeline template needs at least one stage")
        for index, (stage, given) in enumerate(zip(stages, modules_per_stage, strict=True)):
            if isinstance(given, str) or not stage:
                raise ArgumentError(f"stage {index} must be a non-empty list of module names, found {given!r}")
        names = [name for stage in stages for name in stage]
        repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if repeated is not None:
            raise ArgumentError(f"module {repeated!r} stands in two places of the template")
        self._model_name = model_name
        self._stages = stages

    @staticmethod
    def get_modules(model: nn.Module) -> list[str]:
        """Names of the modules a model can be cut between, in the order in which they run.

        Args:
            model: a language model (`model.embed_tokens`, `model.layers.0`, ..., `model.norm`, `lm_head`), or a
                `ModalEncoderModule`, whose names start with `module.` and `projector.`.

        Returns:
            The names; modules without weights of their own belong to no stage.
        """
        return list(_pieces(model))

    @staticmethod
    def get_owners(model: nn.Module) -> dict[str, str]:
        """Which module of `get_modules` owns each parameter of a model, so that each belongs to one stage.

        A parameter that lies beside the modules a model is cut between (a class embedding) belongs to the one that
        runs before it is used, or to the first.

        Args:
            model: as for `get_modules`.

        Returns:
            Names of parameters (under PEFT, of the model inside) to names of modules; a tied weight under each name.
        """
        return {parameter: name for name, parameters in _pieces(model).items() for parameter in parameters}

    @staticmethod
    def get_model_name(model: nn.Module) -> str:
        """The name of a model's class with its module; of an encoder module, the encoder's."""
        inner = freezing.unwrap(model.module if isinstance(model, ModalEncoderModule) else model)
        return f"{type(inner).__module__}.{type(inner).__qualname__}"

    @property
    def model_name(self) -> str:
        """Which model the template is for."""
        return self._model_name

    @property
    def modules_per_stage(self) -> list[list[str]]:
        """The names of each stage's modules; a copy."""
        return [list(stage) for stage in self._stages]

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self._stages)

    @property
    def num_layers(self) -> int:
        """How many numbered layers (`model.layers.3`) there are."""
        return sum(self.get_num_layers_per_stage())

    def get_num_layers_per_stage(self) -> list[int]:
        """How many numbered layers each stage has."""
        return [sum(_NUMBERED.search(name) is not None for name in stage) for stage in self._stages]

    def check(self, model: nn.Module) -> None:
        """Check that the template covers exactly the modules of `model`, in their order.

        Args:
            model: the model that is to be cut by it.

        Raises:
            ArgumentError: naming the first module that is missing, unknown, or out of order.
        """
        expected = self.get_modules(model)
        found = [name for stage in self._stages for name in stage]
        for wanted, name in zip(expected, found, strict=False):
            if wanted == name:
                continue
            if name not in expected:
                raise ArgumentError(f"the template names {name!r}, which {self.get_model_name(model)} does not have")
            if wanted not in found:
                raise ArgumentError(f"the template lacks {wanted!r} of {self.get_model_name(model)}")
            raise ArgumentError(f"the template has {name!r} where {wanted!r} runs; modules must keep their order")
        if len(found) < len(expected):
            raise ArgumentError(f"the template lacks {expected[len(found)]!r} of {self.get_model_name(model)}")
        if len(found) > len(expected):
            raise ArgumentError(
                f"the template names {found[len(expected)]!r}, which {self.get_model_name(model)} does not have"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PipelineTemplate):
            return NotImplemented
        return (self._model_name, self._stages) == (other._model_name, other._stages)

    def __hash__(self) -> int:
        return hash((self._model_name, self._stages))

    def __repr__(self) -> str:
        return f"PipelineTemplate({self._model_name!r}, {self.modules_per_stage!r})"


def _pieces(model: nn.Module) -> dict[str, list[str]]:
    """The modules a model can be cut between, in the order in which they run, and the parameters of each."""
    if not isinstance(model, ModalEncoderModule):
        return pieces.pieces(freezing.unwrap(model))
    parts = {"module": freezing.unwrap(model.module), "projector": model.projector}
    return {
        f"{place}.{name}".removesuffix("."): [f"{place}.{parameter}" for parameter in parameters]
        for place, part in parts.items()
        if part is not None
        for name, parameters in pieces.pieces(part).items()
    }
