"""The captured program: a list of nodes in order of execution, each with the module path its reader knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.errors import Refusal, SubjectError, UsageError, nearest
from microtome.interpret.arguments import apart

Kind = Literal["input", "parameter", "buffer", "constant", "operation"]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Node:
    """One value of the program: an input, a parameter, a buffer, a constant, or the result of an operation.

    ``args`` and ``kwargs`` are those of ``target`` with nodes in the place of tensors. ``path`` and
    ``call`` say which module computed it ("block1.relu", call 1 is the second); ``where`` is the line of
    the user's code. ``shape`` holds an int for a fixed size and a string for a size that changes from call
    to call.
    """

    name: str
    kind: Kind
    target: Any = None  # an operation, or the dotted name of a parameter, buffer or constant
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    call: int = 0
    module: str = ""  # class of the module, "torch.nn.modules.conv.Conv2d"
    shape: tuple[int | str, ...] | None = None
    dtype: torch.dtype | None = None
    where: str = ""

    @property
    def operation(self) -> str:
        """Name of the operation: "aten.relu.default"."""
        return str(self.target) if isinstance(self.target, torch._ops.OpOverload) else name_of(self.target)

    @property
    def layer(self) -> str:
        """The call as a reader names it: "block1.relu#2" for the second call, "" for the model itself."""
        return f"{self.path}#{self.call + 1}" if self.call else self.path

    @property
    def operands(self) -> tuple[Node, ...]:
        """The nodes among the arguments, in order; one that appears twice is listed twice."""
        return tuple(leaf for leaf in _leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Node))

    def __repr__(self) -> str:
        what = self.operation if self.kind == "operation" else self.kind
        return f"<{self.name}: {what} {list(self.shape) if self.shape is not None else ''} {self.layer!r}>"

    def place(self) -> str:
        """Where a reader finds it, for messages."""
        parts = [f"module {self.layer!r}" if self.layer else "the model's own forward", self.where]
        return ", ".join(part for part in parts if part)


def name_of(target: Any) -> str:
    """Name of a function that is not an aten operation: "getitem", "mul"."""
    return getattr(target, "__name__", str(target))


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        yield tree
        return
    for item in tree:
        yield from _leaves(item)


def substitute(tree: Any, value: Callable[[Node], Any]) -> Any:
    """Replace every node within arguments by ``value(node)``."""
    if isinstance(tree, Node):
        return value(tree)
    if isinstance(tree, tuple | list):
        return type(tree)(substitute(item, value) for item in tree)
    if isinstance(tree, dict):
        return {key: substitute(item, value) for key, item in tree.items()}
    return tree


@dataclass(frozen=True, eq=False, kw_only=True)
class Graph:
    """A captured model: nodes in order of execution, the tensors it holds, its inputs and outputs.

    ``state`` maps the names of parameters, buffers and constants to the model's own tensors (not copies):
    after training the graph means the trained model. ``notes`` say what a reader must know (a fixed batch
    size, ...).
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Any, ...]  # nodes, or plain constants the model returns
    state: Mapping[str, Tensor]
    input_tree: Any  # how (args, kwargs) are flattened into ``inputs``
    output_tree: Any
    keywords: tuple[str, ...] = ()
    dynamic: bool = True  # whether other batch sizes than the example's are allowed
    notes: tuple[str, ...] = ()
    answer: Node | None = None  # the output that answers, where whoever captured the program knows it
    maxima: Mapping[Node, int] = field(default_factory=dict)
    """Largest entries that integer inputs must have: they count the groups the program has sizes for."""

    def __repr__(self) -> str:
        count = sum(node.kind == "operation" for node in self.nodes)
        return f"<Graph of {count} operations, inputs {list(self.inputs)}>"

    @property
    def batched(self) -> tuple[Node, ...]:
        """Inputs with one entry an example: of open length (each may have its own symbol), or that of the first."""
        sized = [node for node in self.inputs if node.shape]
        return tuple(n for n in sized if isinstance(n.shape[0], str) or n.shape[0] == sized[0].shape[0])  # type: ignore[index]

    @property
    def operations(self) -> tuple[Node, ...]:
        """The nodes that compute something."""
        return tuple(node for node in self.nodes if node.kind == "operation")

    @property
    def output(self) -> Node:
        """What the model answers: ``answer``, else the first output of floating-point numbers, such as logits."""
        if self.answer is not None:
            return self.answer
        nodes = [node for node in self.outputs if isinstance(node, Node)]
        floating = [node for node in nodes if node.dtype is not None and node.dtype.is_floating_point]
        if not nodes:
            raise SubjectError("MT303", "the captured program returns no tensor", fix="return the logits")
        return (floating or nodes)[0]

    def node(self, name: str | Node) -> Node:
        """A node by its own name, or the last operation of a module call: "block1.relu#2"."""
        if isinstance(name, Node):
            return name
        found = [node for node in self.nodes if node.name == name]
        found = found or [node for node in self.operations if node.layer == name]
        if not found:
            known = [node.name for node in self.nodes] + [node.layer for node in self.operations]
            raise UsageError("MT304", f"the graph has no node {name!r}", fix=nearest(name, known))
        return found[-1]

    def of(self, path: str, call: int | None = None) -> tuple[Node, ...]:
        """The operations computed inside a module (and its children), of all calls or of one."""
        inside = [n for n in self.operations if n.path == path or n.path.startswith(path + ".") or not path]
        return tuple(n for n in inside if call is None or n.call == call)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[Node, Any]:
        """Match the arguments of a call with the graph's inputs."""
        args, given = apart(args, kwargs)
        if set(given) != set(self.keywords):
            raise UsageError(
                "MT305",
                f"the graph was captured with the keyword arguments {list(self.keywords)}, not {list(given)}",
                fix="capture it again with these",
            )
        leaves, tree = pytree.tree_flatten((args, {key: given[key] for key in self.keywords}))
        if tree != self.input_tree:
            raise UsageError(
                "MT305",
                f"the arguments have {len(leaves)} leaves in another structure than the {len(self.inputs)} "
                "the graph was captured with",
                fix="call it as in the capture, or capture it again",
            )
        for node, leaf in zip(self.inputs, leaves, strict=True):
            self._check(node, leaf)
        return dict(zip(self.inputs, leaves, strict=True))

    def _check(self, node: Node, value: Any) -> None:
        if node.shape is None or not isinstance(value, Tensor):
            return
        same = len(node.shape) == value.dim() and all(
            isinstance(want, str) or want == size for want, size in zip(node.shape, value.shape, strict=False)
        )
        count = self.maxima.get(node)
        if same and count is not None and value.device.type != "meta" and int(value.max()) != count:
            raise UsageError(
                "MT306",
                f"the graph was captured for {node.name!r} counting {count + 1} groups, not {int(value.max()) + 1}",
                fix="capture it again for this many",
            )
        if not same:
            raise UsageError(
                "MT306",
                f"the graph was captured for {node.name!r} of {list(node.shape)}, not {list(value.shape)}",
                where="; ".join(self.notes),
                fix="capture it again so (in the model, x.shape[0] keeps a size open, len(x) does not)",
            )

    def reached(
        self, start: Iterable[Node], through: Callable[[Node], bool] = lambda node: True
    ) -> set[Node]:
        """The nodes that depend on ``start`` (which is included), along nodes that ``through`` lets pass."""
        found = set(start)
        for node in self.nodes:
            if node not in found and through(node) and any(operand in found for operand in node.operands):
                found.add(node)
        return found

    def demand_one_type(self) -> None:
        """Refuse a program that rounds on the way: what is proven in one type of numbers ends where another begins.

        Raises:
            Refusal: naming the types.
        """
        found = {n.dtype for n in self.nodes if n.dtype is not None and n.dtype.is_floating_point}
        if len(found) > 1 and found & {torch.bfloat16, torch.float16}:
            names = ", ".join(sorted(str(t).replace("torch.", "") for t in found))
            raise Refusal(
                f"the network computes in several types of numbers ({names}): bounds are proven in one"
            )

    def needed(self, targets: Iterable[Node]) -> set[Node]:
        """The nodes that ``targets`` depend on, themselves included."""
        found = set(targets)
        for node in reversed(self.nodes):
            if node in found:
                found.update(node.operands)
        return found

    def embeddings(self) -> tuple[Node, ...]:
        """Embeddings of integer inputs: where perturbations of token ids are put instead."""
        integers = [n for n in self.inputs if n.dtype is not None and not n.dtype.is_floating_point]
        reached = self.reached(integers, lambda node: node.target != torch.ops.aten.embedding.default)
        return tuple(
            node
            for node in self.operations
            if node.target == torch.ops.aten.embedding.default
            and any(operand in reached for operand in node.operands[1:])
        )

    def unflatten(self, values: Sequence[Any]) -> Any:
        """Put output values into the structure the model returns."""
        return pytree.tree_unflatten(list(values), self.output_tree)
