"""Which examples of a batch a value's entries may depend on: values of the domain ``isolation`` and its results.

A value is one of three: its entries depend on no example; along one axis of size outer * B * inner the entry at i
depends on example (i // inner) % B alone; or examples have met, and ``leaks`` says where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from microtome.errors import MicrotomeError
from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, Domain, Rule


@dataclass(frozen=True)
class Leak:
    """An operation in which entries of different examples meet."""

    node: Node
    why: str

    @property
    def operation(self) -> str:
        """Its name: "mean.dim"."""
        return self.node.operation.removeprefix("aten.").removesuffix(".default")

    def text(self) -> str:
        """Operation, reason and place in one line."""
        return f"{self.operation} {self.why} ({self.node.place() or 'no line known'})"


@dataclass(frozen=True, eq=False)
class Rows:
    """What a tensor's entries depend on; see the module. ``axis`` None and no ``leaks``: on no example."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    axis: int | None = None
    inner: int = 1
    leaks: frozenset[Leak] = frozenset()

    @property
    def from_end(self) -> int:
        """The axis counted from the last one, by which broadcasting lines values up."""
        assert self.axis is not None
        return len(self.shape) - self.axis


@dataclass(frozen=True)
class Isolation(Domain):
    """The domain, for a batch of ``rows`` examples."""

    name: ClassVar[str] = "isolation"
    value: ClassVar[type | None] = Rows
    rows: int = 5
    followed: list[Node] = field(default_factory=list, compare=False)
    """Operations on values that depend on examples, in order."""

    def missing(self, node: Node) -> Rule | None:
        """Entry by entry where torch says so; a leak otherwise."""
        from microtome.interpret.isolation_rules import pointwise, unknown

        return pointwise if torch.Tag.pointwise in getattr(node.target, "tags", ()) else unknown


class Unfollowed(MicrotomeError):
    """The analysis ends at an operation whose result has a shape that only its operands' values tell."""


# --- results


def outline(at: At, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The result's shape and type, from the operation on tensors without numbers."""

    def bare(tree: Any) -> Any:
        if isinstance(tree, Rows):
            return torch.empty(tree.shape, dtype=tree.dtype, device="meta")
        if isinstance(tree, Tensor):
            return torch.empty(tree.shape, dtype=tree.dtype, device="meta")
        if isinstance(tree, torch.device):
            return torch.device("meta")
        if isinstance(tree, tuple | list):
            return type(tree)(bare(item) for item in tree)
        return tree

    try:
        return at.node.target(*bare(args), **{key: bare(item) for key, item in kwargs.items()})
    except Exception as error:
        raise Unfollowed(
            "MT350", f"the result of '{at.node.operation}' is not known beforehand", where=at.node.place(),
            fix="sizes must not depend on values",
        ) from error  # fmt: skip


def found(at: At, args: Any, kwargs: Mapping[str, Any], axis: int | None, inner: int = 1,
          leaks: frozenset[Leak] = frozenset()) -> Any:  # fmt: skip
    """The result with one label, for every tensor of it."""
    at.domain.followed.append(at.node)
    operands = [item for item in flat((args, kwargs)) if isinstance(item, Rows)]
    device = operands[0].device

    def label(tree: Any) -> Any:
        if isinstance(tree, tuple | list):
            return type(tree)(label(item) for item in tree)
        return Rows(tree.shape, tree.dtype, device, axis, inner, leaks) if isinstance(tree, Tensor) else tree

    return label(outline(at, args, kwargs))


def leak(at: At, args: Any, kwargs: Mapping[str, Any], why: str) -> Any:
    """Examples meet here."""
    return found(at, args, kwargs, None, leaks=frozenset([Leak(at.node, why)]))


def flat(tree: Any) -> Iterator[Any]:
    """All leaves of nested arguments."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        yield tree
        return
    for item in tree:
        yield from flat(item)


def known(args: Any, kwargs: Mapping[str, Any]) -> tuple[list[Rows], frozenset[Leak]]:
    """Operands along whose axis examples lie, and the leaks that others bring."""
    operands = [item for item in flat((args, dict(kwargs))) if isinstance(item, Rows)]
    leaks = frozenset().union(*(item.leaks for item in operands))
    return [item for item in operands if item.axis is not None], leaks


def settled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Rules see only operands in which examples are apart: leaks spread, and what depends on none stays so."""

    def ruled(at: At, *args: Any, **kwargs: Any) -> Any:
        apart, leaks = known(args, kwargs)
        if leaks or not apart:
            return found(at, args, kwargs, None, leaks=leaks)
        return function(at, *args, **kwargs)

    return ruled


def named(at: At, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the operation's schema, defaults included."""
    schema = at.node.target._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values |= {a.name: value for a, value in zip(schema, args, strict=False)}
    return values | dict(kwargs)
