"""The interpreter: one walk over a captured graph, one rule per operation per domain.

A ``Domain`` is a table from operations to rules, in one file. There are two kinds, and one walk for each:

- **Forward** domains give values a meaning that flows with the program (an interval instead of a number). A
  rule gets the operands and returns the result: ``rule(at, *args, **kwargs) -> value``.
- **Backward** domains give a meaning that flows from an output to the input (relevance, linear bounds).
  First a forward run, concrete or in another domain, keeps what the rules ask for; then each rule gets what
  arrived at its result and returns what goes to its operands: ``rule(at, cotangent, *args, **kwargs) ->
  share(s)``.

Only operations on abstract values need rules. Position ids, masks, shapes and everything else that does not
depend on an abstract value run concretely, and so do operations that look at nothing but a shape.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.errors import MicrotomeError, SubjectError, nearest
from microtome.interpret.graph import Graph, Node, substitute
from microtome.interpret.operations import SHAPE_ONLY

Rule = Callable[..., Any]
Keep = Literal["operands", "shapes", "nothing"]

_SHAPES = frozenset(SHAPE_ONLY)


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and what it needs of the forward run (used by backward domains only)."""

    rule: Rule
    keep: Keep
    output: bool


class Domain:
    """A meaning for operations. Subclasses inherit rules and may replace some of them.

    ``value`` is the class of abstract values of a forward domain (they need ``shape``, ``dtype`` and
    ``device``); a backward domain leaves it None. Options are fields of the instance, state of one run
    belongs to ``At.state``.
    """

    name: ClassVar[str]
    value: ClassVar[type | None] = None
    rules: ClassVar[dict[Any, Entry]] = {}

    def __init_subclass__(cls) -> None:
        cls.rules = {}

    @classmethod
    def entry(cls, operation: Any) -> Entry | None:
        """The rule for an operation: this class's own, or the nearest ancestor's."""
        for ancestor in cls.__mro__:
            found = ancestor.__dict__.get("rules", {}).get(operation)
            if found is not None:
                return found
        return None

    @classmethod
    def covered(cls) -> set[Any]:
        """All operations with a rule."""
        return {op for ancestor in cls.__mro__ for op in ancestor.__dict__.get("rules", {})}

    def missing(self, node: Node) -> Rule | None:
        """Last resort for an operation without a rule; None (the default) means the error MT310."""
        return None

    def add(self, first: Any, second: Any) -> Any:
        """Join what arrives at one value from two consumers (backward domains)."""
        return first + second

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def rule(
    domain: type[Domain], *operations: Any, keep: Keep = "operands", output: bool = False
) -> Callable[[Rule], Rule]:
    """Register a function as the meaning of operations in a domain.

    ``keep`` and ``output`` concern backward domains: whether the rule reads its operands' values, only
    their shapes (then it gets tensors on the meta device) or nothing, and whether it reads the result
    (``at.output``).
    """

    def register(function: Rule) -> Rule:
        for operation in operations:
            domain.rules[operation] = Entry(function, keep, output)
        return function

    return register


@dataclass(slots=True)
class At:
    """Where a rule stands: the node, the domain with its options, and the state of this run."""

    node: Node
    domain: Any
    state: Any = None
    output: Any = None  # backward: the result of the forward run, when the rule asked for it
    tracked: frozenset[int] = frozenset()  # backward: positions in ``node.operands`` that want a share

    def wants(self, position: int) -> bool:
        """Whether the operand at this position (among the tensors, in order) depends on the input."""
        return position in self.tracked

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The operation itself on plain values."""
        return self.node.target(*args, **kwargs)

    def per_part(self, part: Callable[[Any], Any], args: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
        """The operation with every abstract operand replaced by ``part(operand)``: a lower end, a tangent."""
        kind = self.domain.value

        def pick(tree: Any) -> Any:
            if isinstance(tree, kind):
                return part(tree)
            if isinstance(tree, tuple | list):
                return type(tree)(pick(item) for item in tree)
            return tree

        return self.node.target(*pick(args), **{key: pick(item) for key, item in (kwargs or {}).items()})

    def transpose(self, cotangent: Any, *args: Any, batched: int = 0, **kwargs: Any) -> list[Any]:
        """Transposed Jacobian of the operation here: a share for each tracked operand, None for others.

        ``batched`` counts leading dimensions of the cotangent that the result does not have.
        """
        flat, tree = pytree.tree_flatten((args, kwargs))
        spots = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]
        wanted = [spot for position, spot in enumerate(spots) if position in self.tracked]
        points = tuple(
            torch.zeros(flat[s].shape, dtype=flat[s].dtype, device=_device(cotangent))
            if flat[s].is_meta
            else flat[s].detach()
            for s in wanted
        )

        chosen: list[int] = []  # places among several results have no derivative

        def forward(*values: Tensor) -> Any:
            leaves = list(flat)
            for spot, value in zip(wanted, values, strict=True):
                leaves[spot] = value
            again_args, again_kwargs = pytree.tree_unflatten(leaves, tree)
            found = self.node.target(*again_args, **again_kwargs)
            if not isinstance(found, tuple | list):
                return found
            chosen[:] = [i for i, result in enumerate(found) if result.is_floating_point()]
            return tuple(found[i] for i in chosen)

        primal, pull = torch.func.vjp(forward, *points)[:2]
        if isinstance(cotangent, tuple | list):  # several results; a gap counts as zeros
            some = next(item for item in cotangent if item is not None)
            lead = some.shape[:batched]
            cotangent = tuple(
                some.new_zeros(*lead, *result.shape) if cotangent[i] is None else cotangent[i]
                for i, result in zip(chosen, primal, strict=True)
            )
        for _ in range(batched):
            pull = torch.func.vmap(pull)
        shares = pull(cotangent)
        result: list[Any] = [None] * len(spots)
        for spot, share in zip(wanted, shares, strict=True):
            result[spots.index(spot)] = share
        return result


def _device(tree: Any) -> torch.device:
    return next(leaf.device for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What a forward walk leaves: the values asked for, by node."""

    graph: Graph
    domain: Domain | None
    values: Mapping[Node, Any]
    shapes: Mapping[Node, Any]
    started: frozenset[Node]

    @property
    def output(self) -> Any:
        """The value of the graph's first floating-point output."""
        return self.values[self.graph.output]

    @property
    def result(self) -> Any:
        """All outputs in the structure the model returns."""
        return self.graph.unflatten(
            [self.values[o] if isinstance(o, Node) else o for o in self.graph.outputs]
        )


def forward(
    graph: Graph,
    inputs: Mapping[Node, Any],
    domain: Domain | None = None,
    *,
    replace: Mapping[Node, Callable[[Any], Any]] | None = None,
    keep: Collection[Node] | Literal["all"] = (),
    shapes: Collection[Node] = (),
    targets: Iterable[Node] | None = None,
    parameters: Mapping[str, Any] | None = None,
    state: Any = None,
    values: dict[Node, Any] | None = None,
) -> Run:
    """Walk the graph with concrete and abstract values together.

    ``inputs`` gives every input its value; ``replace`` exchanges the value of any node on the way (so token
    ids stay concrete and their embedding becomes an interval). Values are dropped after their last use,
    unless ``keep``. ``targets`` (default: the outputs) end the walk; ``parameters`` replace the model's
    own. A dict given as ``values`` is filled while the walk goes on, for a ``replace`` that looks back.
    """
    ends = (
        list(targets) if targets is not None else [node for node in graph.outputs if isinstance(node, Node)]
    )
    replace = replace or {}
    wanted = graph.needed(ends)
    kept = set(graph.nodes) if keep == "all" else {*keep, *ends}
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in wanted:
            for operand in node.operands:
                last[operand] = node
    done: dict[Node, list[Node]] = {}
    for operand, user in last.items():
        if operand not in kept:
            done.setdefault(user, []).append(operand)
    values = {} if values is None else values
    sizes: dict[Node, Any] = {}
    asked = set(shapes)
    held = {**graph.state, **(parameters or {})}
    for node in graph.nodes:
        if node not in wanted:
            continue
        if node.kind == "input":
            values[node] = _given(inputs, node)
        elif node.kind == "operation":
            values[node] = _apply(node, values, domain, state)
        else:
            values[node] = held[node.target]
        if node in replace:
            values[node] = replace[node](values[node])
        if node in asked:
            sizes[node] = _outline(values[node])
        for operand in done.get(node, ()):
            del values[operand]
    return Run(graph=graph, domain=domain, values=values, shapes=sizes, started=frozenset(replace))


def _given(inputs: Mapping[Node, Any], node: Node) -> Any:
    if node not in inputs:
        raise MicrotomeError(
            "MT305", f"the input {node.name!r} has no value", fix="give one for every graph.inputs"
        )
    return inputs[node]


def _apply(node: Node, values: Mapping[Node, Any], domain: Domain | None, state: Any) -> Any:
    args = substitute(node.args, values.__getitem__)
    kwargs = substitute(dict(node.kwargs), values.__getitem__)
    if domain is None or domain.value is None or not _abstract(domain.value, (args, kwargs)):
        return node.target(*args, **kwargs)
    if node.target in _SHAPES:
        plain = _outlines(domain.value, (args, kwargs))
        return node.target(*plain[0], **plain[1])
    if node.target is operator.getitem and isinstance(args[0], tuple | list):
        return args[0][args[1]]
    found = domain.entry(node.target)
    function = found.rule if found else domain.missing(node)
    if function is None:
        raise missing_rule(node, domain)
    return function(At(node, domain, state), *args, **kwargs)


def _abstract(kind: type, tree: Any) -> bool:
    if isinstance(tree, tuple | list):
        return any(_abstract(kind, item) for item in tree)
    if isinstance(tree, dict):
        return any(_abstract(kind, item) for item in tree.values())
    return isinstance(tree, kind)


def _outlines(kind: type, tree: Any) -> Any:
    """Abstract values as tensors that have their shape and type but take no memory."""
    if isinstance(tree, tuple | list):
        return type(tree)(_outlines(kind, item) for item in tree)
    if isinstance(tree, dict):
        return {key: _outlines(kind, item) for key, item in tree.items()}
    if isinstance(tree, kind):
        value: Any = tree
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    return tree


def _outline(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_outline(item) for item in value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def missing_rule(node: Node, domain: Domain) -> SubjectError:
    """The one error for an operation that a domain gives no meaning."""
    known = [str(operation) for operation in domain.covered()]
    like = nearest(node.operation, known)
    return SubjectError(
        "MT310",
        f"the domain '{domain.name}' has no rule for the operation '{node.operation}'",
        where=node.place(),
        fix=f"add one with @rule({type(domain).__name__}, torch.ops.{node.operation}), "
        "start after this layer, or replace it in the model" + (f"; {like}" if like else ""),
    )


def _dependent(graph: Graph, start: Iterable[Node]) -> set[Node]:
    return graph.reached(start, lambda node: node.target not in _SHAPES)


def backward(
    run: Run,
    domain: Domain,
    seeds: Mapping[Node, Any],
    *,
    to: Iterable[Node] | None = None,
    state: Any = None,
) -> dict[Node, Any]:
    """Walk from ``seeds`` back; returns what arrives at ``to`` (default: floating inputs, or embeddings).

    A node of ``to`` is not walked through. ``run`` must have kept what ``requirements`` lists.
    """
    graph = run.graph
    goals = set(to if to is not None else sources(graph))
    tracked = _dependent(graph, goals) & graph.needed(seeds)
    arrived: dict[Node, Any] = dict(seeds)
    for node in reversed(graph.nodes):
        if node not in arrived or node in goals or node not in tracked:
            continue
        _spread(run, domain, node, arrived.pop(node), tracked, arrived, state)
    return {node: value for node, value in arrived.items() if node in goals}


def _spread(
    run: Run,
    domain: Domain,
    node: Node,
    cotangent: Any,
    tracked: set[Node],
    arrived: dict[Node, Any],
    state: Any,
) -> None:
    operands = node.operands
    positions = frozenset(i for i, operand in enumerate(operands) if operand in tracked)
    if node.target is operator.getitem:  # one of several results: its producer gets a tuple with gaps
        whole = list(arrived.get(operands[0]) or [None] * len(run.shapes[operands[0]]))
        index = node.args[1]
        whole[index] = cotangent if whole[index] is None else domain.add(whole[index], cotangent)
        arrived[operands[0]] = tuple(whole)
        return
    found = domain.entry(node.target)
    function = found.rule if found else domain.missing(node)
    if function is None:
        raise missing_rule(node, domain)
    keep = found.keep if found else "operands"

    def look(operand: Node) -> Any:
        if keep == "operands" or operand not in tracked:
            return run.values[operand]
        return run.shapes[operand]

    args = () if keep == "nothing" else substitute(node.args, look)
    kwargs = {} if keep == "nothing" else substitute(dict(node.kwargs), look)
    output = run.values[node] if found and found.output else None
    at = At(node, domain, state, output, positions)
    shares = function(at, cotangent, *args, **kwargs)
    shares = shares_of(domain, node, shares, positions)
    for position, share in enumerate(shares):
        if share is not None and position in positions:
            operand = operands[position]
            arrived[operand] = domain.add(arrived[operand], share) if operand in arrived else share


def shares_of(domain: Domain, node: Node, shares: Any, positions: frozenset[int]) -> list[Any]:
    """What a rule returned as a list with a share, or None, for each tensor operand."""
    if isinstance(shares, tuple | list):
        return list(shares)
    if len(positions) != 1:
        raise MicrotomeError(
            "MT311",
            f"'{domain.name}' gives '{node.operation}' one share for {len(positions)} operands",
            where=node.place(),
            fix="return a list with a share (or None) for each tensor operand, in order",
        )
    return [shares if i in positions else None for i in range(len(node.operands))]


def sources(graph: Graph) -> tuple[Node, ...]:
    """Where meanings begin: the floating-point inputs, and the embeddings of integer ones."""
    floating = tuple(n for n in graph.inputs if n.dtype is not None and n.dtype.is_floating_point)
    return floating or graph.embeddings()


def requirements(
    graph: Graph, domain: Domain, targets: Iterable[Node], to: Iterable[Node] | None = None
) -> tuple[set[Node], set[Node]]:
    """What a backward walk needs of a forward one: nodes to ``keep``, and nodes whose ``shapes`` it reads."""
    goals = set(to if to is not None else sources(graph))
    tracked = _dependent(graph, goals) & graph.needed(targets)
    keep: set[Node] = set()
    shapes: set[Node] = set()
    for node in tracked - goals:
        if node.kind != "operation":
            continue
        if node.target is operator.getitem:
            shapes.add(node.operands[0])
            continue
        found = domain.entry(node.target)
        mode: Keep = found.keep if found else "operands"
        if found and found.output:
            keep.add(node)
        if mode != "nothing":
            for operand in node.operands:
                (keep if mode == "operands" or operand not in tracked else shapes).add(operand)
    return keep, shapes


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which share of the operations a domain must give a meaning has one; known before anything runs."""

    covered: int
    needed: int
    missing: tuple[Node, ...]

    @property
    def share(self) -> float:
        """Covered operations as a part of the needed ones; 1 where none is needed."""
        return self.covered / self.needed if self.needed else 1.0


def coverage(
    graph: Graph, domain: Domain, start: Iterable[Node] | None = None, targets: Iterable[Node] | None = None
) -> Coverage:
    """Check all operations between ``start`` (default: ``sources``) and ``targets`` (default: the output)."""
    first = set(start if start is not None else sources(graph))
    ends = graph.needed(targets if targets is not None else [graph.output])
    inside = [
        node
        for node in graph.operations
        if node in ends
        and node not in first
        and node.target is not operator.getitem
        and node.target not in _SHAPES
    ]
    reached = _dependent(graph, first)
    inside = [node for node in inside if node in reached]
    missing = tuple(n for n in inside if domain.entry(n.target) is None and domain.missing(n) is None)
    return Coverage(len(inside) - len(missing), len(inside), missing)


def concrete(
    graph: Graph,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    keep: Collection[Node] | Literal["all"] = (),
    shapes: Collection[Node] = (),
    parameters: Mapping[str, Any] | None = None,
) -> Run:
    """Run the captured program on numbers; ``Run.result`` is what the model returns."""
    return forward(graph, graph.bind(args, kwargs), keep=keep, shapes=shapes, parameters=parameters)
