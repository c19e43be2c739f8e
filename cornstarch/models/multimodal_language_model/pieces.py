"""The pieces a part can be cut into, in the order in which they run.

A piece is a numbered layer, or a module with weights that stands beside the layers or above them. The order is read off
the source of `forward`: that needs no device, no weights and no inputs, and knows what no name tells (see
`docs/design/pipeline-pieces.md`).
"""

import ast
import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

from torch import nn

from cornstarch.models.multimodal_language_model import anatomy

Piece = tuple[str, list[str]]  # its name, and the names of the parameters it owns


def pieces(part: nn.Module) -> dict[str, list[str]]:
    """The pieces of a part, and which parameters each owns.

    A parameter that lies on a module that is itself cut open (a class embedding beside the layers) goes with the piece
    of that module that runs before the parameter is used, or with the first one.

    Args:
        part: an unwrapped encoder, projector or language model.

    Returns:
        Names of pieces in the order in which they run, each to names of parameters; every name of a parameter stands
        once, a tied weight under each of its names. A part with nothing inside is one piece, named `""`.
    """
    return dict(_cut(part, "", {id(stack) for stack in anatomy.stacks(part)}))


def _cut(module: nn.Module, prefix: str, stacks: set[int]) -> list[Piece]:
    children = {name: child for name, child in module._modules.items() if child is not None and _has_weights(child)}
    names = [*(name for name, parameter in module._parameters.items() if parameter is not None), *children]
    found: list[Piece] = []
    early: list[str] = []
    for name in _in_order_of_use(module, names):
        if name in children:
            found += _split(children[name], f"{prefix}{name}", stacks)
        else:
            (found[-1][1] if found else early).append(f"{prefix}{name}")
    if early and not found:
        return [(prefix.removesuffix("."), early)]
    if early:
        found[0][1].extend(early)
    return found


def _split(module: nn.Module, name: str, stacks: set[int]) -> list[Piece]:
    if id(module) in stacks:
        return [_whole(layer, f"{name}.{index}") for index, layer in module.named_children()]
    if any(id(inner) in stacks for inner in module.modules()):
        return _cut(module, f"{name}.", stacks)
    return [_whole(module, name)]


def _whole(module: nn.Module, name: str) -> Piece:
    return name, [f"{name}.{inner}" for inner, _ in module.named_parameters(remove_duplicate=False)]


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


# --- reading ----------------------------------------------------------------------------------------------------------


def _in_order_of_use(module: nn.Module, names: list[str]) -> list[str]:
    """Attributes of a module in the order in which its `forward` uses them; unnamed ones keep their neighbour."""
    reader = _Reader(module)
    reader.read_method("forward", type(module).__mro__)
    places: dict[str, int] = {}
    place = -1
    for name in names:
        place = reader.place(name, place)
        places[name] = place
    return sorted(names, key=places.__getitem__)


class _Reader:
    """Walks through a method in the order in which Python evaluates it, and through the methods of `self` it calls."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._self = "self"
        self._behind: tuple[type, ...] = ()  # where `super()` looks
        self._read: set[Any] = set()
        self._runs: dict[str, int] = {}
        self._mentions: dict[str, int] = {}

    def place(self, name: str, otherwise: int) -> int:
        """Where an attribute is first called or looped over, else first mentioned (`if self.norm is not None`)."""
        return self._runs.get(name, self._mentions.get(name, otherwise))

    def read_method(self, name: str, classes: Iterable[type]) -> None:
        """Go through the method that the first of `classes` to have one defines."""
        classes = tuple(classes)
        index = next((index for index, cls in enumerate(classes) if name in vars(cls)), None)
        if index is None or classes[index] is nn.Module:
            return
        function = inspect.unwrap(vars(classes[index])[name])
        if not inspect.isfunction(function) or function in self._read:
            return
        self._read.add(function)
        definition = _definition(function)
        if definition is None or not definition.args.args:
            return
        outer = self._self, self._behind
        self._self, self._behind = definition.args.args[0].arg, classes[index + 1 :]
        for statement in definition.body:
            self._visit(statement)
        self._self, self._behind = outer

    def _visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._visit_call(node)
        elif isinstance(node, ast.For):
            self._loop(node.iter, node.target, node.body)
            self._visit_all(node.iter, *node.body, *node.orelse)
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            for generator in node.generators:
                self._loop(generator.iter, generator.target, [node.elt])
            self._visit_all(*node.generators, node.elt)
        elif isinstance(node, ast.Assign):
            self._visit_all(node.value, *node.targets)  # the value is evaluated first
        else:
            name = self._attribute(node)
            if name is not None:
                self._mentions.setdefault(name, self._next())
            self._visit_all(*ast.iter_child_nodes(node))

    def _visit_all(self, *nodes: ast.AST) -> None:
        for node in nodes:
            self._visit(node)

    def _visit_call(self, node: ast.Call) -> None:
        self._visit_all(*node.args, *node.keywords)  # evaluated before the call is made
        if isinstance(node.func, ast.Attribute):
            if _is_super(node.func.value):
                self.read_method(node.func.attr, self._behind)
            elif self._attribute(node.func) is not None:
                self.read_method(node.func.attr, type(self._module).__mro__)
        self._run(node.func)
        self._visit(node.func)

    def _loop(self, over: ast.AST, target: ast.AST, body: Iterable[ast.AST]) -> None:
        """A loop runs the list it goes through if it calls what it takes from it, or hands it on to be called."""
        taken = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        calls = [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Call)]
        if any(
            isinstance(node, ast.Name) and node.id in taken for call in calls for node in (call.func, *call.args[:1])
        ):
            for node in ast.walk(over):
                self._run(node)

    def _run(self, node: ast.AST) -> None:
        """Note that `self.name`, or a module inside it (`self.name[0]`, `self.name.inner`), runs here."""
        names: list[str] = []  # inside `self.name`
        while isinstance(node, ast.Attribute | ast.Subscript):
            name = self._attribute(node)
            if name is not None and _holds(getattr(self._module, name, None), names):
                self._runs.setdefault(name, self._next())
            names = [node.attr, *names] if isinstance(node, ast.Attribute) else []
            node = node.value

    def _attribute(self, node: ast.AST) -> str | None:
        """`name` of `self.name`."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self._self:
            return node.attr
        return None

    def _next(self) -> int:
        return len(self._runs) + len(self._mentions)


def _holds(owner: Any, names: list[str]) -> bool:
    """Whether what `owner.a.b` names is a module or a parameter, or anything of a parameter's (`weight.expand`)."""
    for name in names:
        if not isinstance(owner, nn.Module):
            break
        owner = getattr(owner, name, None)
    return isinstance(owner, nn.Module | nn.Parameter)


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _definition(function: Any) -> ast.FunctionDef | None:
    """A function's source as a tree; None where there is no source (built on the fly, or compiled)."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0]
    return definition if isinstance(definition, ast.FunctionDef) else None
