"""A small language of circuits: a term is drawn, run, and asked for its cost.

    attention = (
        Parallel(Linear("i", "k"), Linear("i", "k"), Linear("i", "v"))
        >> Einsum("n q k, n s k, n s v -> n q s, n s v") ...

Axes have names; every array is a list of axes. ``Einsum`` multiplies and sums over named axes, with a weight (an
array of named axes) or without; ``Pointwise`` acts on every entry alone, ``Normalise`` on all entries along one axis;
``Broadcast`` repeats along a new axis, ``Copy`` gives a wire to several readers, ``Rename`` changes names alone.
``>>`` composes and ``Parallel`` puts side by side (Abbott 2024). A term knows its axes in and out, so that a mismatch
is found when it is written.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microtome.drawing import svg
from microtome.errors import UsageError
from microtome.interpret.layout import Frame, Item, arrange
from microtome.interpret.wiring import figure_of

Axes = tuple[str, ...]
Wires = tuple[Axes, ...]

POINTWISE = {
    "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": torch.nn.functional.gelu,
    "exp": torch.exp, "identity": torch.clone,
}  # fmt: skip


class Term(ABC):
    """A piece of a circuit: wires in, wires out."""

    inputs: Wires
    outputs: Wires

    @abstractmethod
    def module(self, sizes: Mapping[str, int]) -> nn.Module:
        """It as a torch module: takes and gives one tensor per wire; weights of the sizes the axes have."""

    @abstractmethod
    def products(self, sizes: Mapping[str, int]) -> int:
        """Multiply-adds of one run."""

    @abstractmethod
    def backward(self, sizes: Mapping[str, int], wants: Sequence[bool]) -> tuple[int, list[bool]]:
        """Multiply-adds of the backward pass, and which outputs carry a gradient, given which inputs want one."""

    @abstractmethod
    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """Add boxes for it; ``values`` are the boxes its wires come from, returned are those they go on from."""

    def __rshift__(self, other: Term) -> Compose:
        return Compose(self, other)

    def svg(self, title: str = "Circuit") -> str:
        """The term as a picture."""
        root, wires = Frame("", ""), list[tuple[Item, Item]]()
        starts = [_box("input", ("input",), axes) for axes in self.inputs]
        root.parts += starts
        for value in self.draw(root, wires, starts):
            end = Item("input", ("output",), "output", 64, 22)
            root.parts.append(end)
            wires.append((value, end))
        arrange(root, wires, bare=True)
        return svg(figure_of(root, title, f"circuit with {len(list(root.items()))} boxes"))


@dataclass(frozen=True)
class Einsum(Term):
    """Products summed over axes: ``Einsum("n i -> n o", weight="o i")``; one output."""

    formula: str
    weight: str = ""

    def __post_init__(self) -> None:
        left, arrow, right = self.formula.partition("->")
        object.__setattr__(self, "inputs", tuple(tuple(part.split()) for part in left.split(",")))
        object.__setattr__(self, "outputs", (tuple(right.split()),))
        missing = set(self.outputs[0]) - {axis for operand in self.operands for axis in operand}
        if not arrow or missing:
            raise UsageError("MT321", f"'{self.formula}' gives axes that no operand has: {sorted(missing)}")

    @property
    def operands(self) -> Wires:
        """Axes of the wires in, and of the weight."""
        return (*self.inputs, *((tuple(self.weight.split()),) if self.weight else ()))

    def module(self, sizes: Mapping[str, int]) -> nn.Module:
        """One ``torch.einsum``, with a weight where the term has one."""
        return _EinsumModule(self, sizes)

    def products(self, sizes: Mapping[str, int]) -> int:
        """The product of all axes, times the operands beyond the first (taken together two at a time)."""
        axes = {axis for operand in self.operands for axis in operand}
        return math.prod(sizes[axis] for axis in axes) * max(len(self.operands) - 1, 0)

    def backward(self, sizes: Mapping[str, int], wants: Sequence[bool]) -> tuple[int, list[bool]]:
        """As much again for every operand that wants a gradient; the weight always does."""
        each = [*wants, *([True] if self.weight else [])]
        return self.products(sizes) * sum(each), [any(each)]

    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """A box for the product."""
        words = (
            "einsum",
            self.formula.replace("->", "→"),
            *((f"weight {self.weight}",) if self.weight else ()),
        )
        return [
            _add(_box("linear" if self.weight else "product", words, self.outputs[0]), frame, wires, values)
        ]


class _EinsumModule(nn.Module):
    def __init__(self, term: Einsum, sizes: Mapping[str, int]) -> None:
        super().__init__()
        letters = {a: chr(97 + i) for i, a in enumerate(dict.fromkeys(x for o in term.operands for x in o))}
        sides = [
            ",".join("".join(letters[a] for a in o) for o in operands)
            for operands in (term.operands, term.outputs)
        ]
        self.formula = "->".join(sides)
        if term.weight:
            shape = [sizes[a] for a in term.weight.split()]
            summed = [sizes[a] for a in term.weight.split() if a not in term.outputs[0]]
            self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(max(math.prod(summed), 1)))

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """One output."""
        given = (*values, self.weight) if hasattr(self, "weight") else values
        return (torch.einsum(self.formula, *given),)


@dataclass(frozen=True)
class _Single(Term):
    """One wire in, one out, no products."""

    axes: str

    @property
    def inputs(self) -> Wires:  # type: ignore[override]
        """Its one wire."""
        return (tuple(self.axes.split()),)

    @property
    def outputs(self) -> Wires:  # type: ignore[override]
        """As it comes in."""
        return self.inputs

    def products(self, sizes: Mapping[str, int]) -> int:
        """None."""
        return 0

    def backward(self, sizes: Mapping[str, int], wants: Sequence[bool]) -> tuple[int, list[bool]]:
        """None either; a gradient goes through."""
        return 0, list(wants)

    def module(self, sizes: Mapping[str, int]) -> nn.Module:
        """A function as a module."""
        return _Function(self)

    def run(self, value: Tensor) -> Tensor:
        """What it does."""
        raise NotImplementedError

    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """One box."""
        return [_add(_box("curve", (self.words(),), self.outputs[0]), frame, wires, values)]

    def words(self) -> str:
        """On its box."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Pointwise(_Single):
    """A function of every entry alone; ``name`` is one of ``POINTWISE``."""

    name: str = "relu"

    def run(self, value: Tensor) -> Tensor:
        """The function."""
        return POINTWISE[self.name](value)

    def words(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True)
class Normalise(_Single):
    """Softmax along the last axis named."""

    def run(self, value: Tensor) -> Tensor:
        """Softmax."""
        return value.softmax(-1)

    def words(self) -> str:
        """With the axis."""
        return f"softmax over {self.axes.split()[-1]}"


@dataclass(frozen=True)
class Broadcast(_Single):
    """The same array along a new last axis."""

    new: str = "m"
    size: int = 1

    @property
    def outputs(self) -> Wires:  # type: ignore[override]
        """With the new axis."""
        return ((*self.axes.split(), self.new),)

    def run(self, value: Tensor) -> Tensor:
        """Repeat without copying."""
        return value[..., None].expand(*value.shape, self.size)

    def words(self) -> str:
        """With the axis."""
        return f"broadcast over {self.new}"


@dataclass(frozen=True)
class Rename(_Single):
    """The same array with other names for its axes; no work."""

    new: str = ""

    @property
    def outputs(self) -> Wires:  # type: ignore[override]
        """With the new names."""
        return (tuple(self.new.split()),)

    def run(self, value: Tensor) -> Tensor:
        """As it is."""
        return value

    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """No box."""
        return list(values)


class _Function(nn.Module):
    def __init__(self, term: _Single) -> None:
        super().__init__()
        self.term = term

    def forward(self, value: Tensor) -> tuple[Tensor, ...]:
        """One output."""
        return (self.term.run(value),)


@dataclass(frozen=True)
class Copy(Term):
    """One wire to several readers."""

    axes: str
    times: int = 2

    @property
    def inputs(self) -> Wires:  # type: ignore[override]
        """The wire."""
        return (tuple(self.axes.split()),)

    @property
    def outputs(self) -> Wires:  # type: ignore[override]
        """It, several times."""
        return self.inputs * self.times

    def module(self, sizes: Mapping[str, int]) -> nn.Module:
        """No work."""
        return _Copies(self.times)

    def products(self, sizes: Mapping[str, int]) -> int:
        """None."""
        return 0

    def backward(self, sizes: Mapping[str, int], wants: Sequence[bool]) -> tuple[int, list[bool]]:
        """Only additions."""
        return 0, [wants[0]] * self.times

    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """A wire that forks has no box."""
        return [values[0]] * self.times


class _Copies(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, value: Tensor) -> tuple[Tensor, ...]:
        """The value, several times."""
        return (value,) * self.times


class Parallel(Term):
    """Terms side by side: the wires of all."""

    def __init__(self, *terms: Term) -> None:
        self.terms = terms
        self.inputs = tuple(axes for term in terms for axes in term.inputs)
        self.outputs = tuple(axes for term in terms for axes in term.outputs)

    def module(self, sizes: Mapping[str, int]) -> nn.Module:
        """Each on its own wires."""
        return _Side([term.module(sizes) for term in self.terms], [len(term.inputs) for term in self.terms])

    def products(self, sizes: Mapping[str, int]) -> int:
        """Of all."""
        return sum(term.products(sizes) for term in self.terms)

    def backward(self, sizes: Mapping[str, int], wants: Sequence[bool]) -> tuple[int, list[bool]]:
        """Of all."""
        total, carry, rest = 0, list[bool](), list(wants)
        for term in self.terms:
            own, rest = rest[: len(term.inputs)], rest[len(term.inputs) :]
            count, out = term.backward(sizes, own)
            total, carry = total + count, carry + out
        return total, carry

    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """Each beside the others."""
        found, rest = list[Item](), list(values)
        for term in self.terms:
            found += term.draw(frame, wires, rest[: len(term.inputs)])
            rest = rest[len(term.inputs) :]
        return found


class _Side(nn.Module):
    def __init__(self, modules: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.counts = nn.ModuleList(modules), tuple(counts)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Wires in order."""
        found: list[Tensor] = []
        start = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            found += part(*values[start : start + count])
            start += count
        return tuple(found)


class Compose(Term):
    """One term after another.

    Raises:
        UsageError: MT321, when the wires do not fit.
    """

    def __init__(self, *terms: Term) -> None:
        flat: list[Term] = []
        for term in terms:
            flat += term.terms if isinstance(term, Compose) else [term]
        self.terms: tuple[Term, ...] = tuple(flat)
        for before, after in itertools.pairwise(flat):
            if before.outputs != after.inputs:
                raise UsageError("MT321", f"wires {before.outputs} do not fit {after.inputs}")
        self.inputs, self.outputs = flat[0].inputs, flat[-1].outputs

    def module(self, sizes: Mapping[str, int]) -> nn.Module:
        """In a row."""
        return _Row([term.module(sizes) for term in self.terms])

    def products(self, sizes: Mapping[str, int]) -> int:
        """Of all."""
        return sum(term.products(sizes) for term in self.terms)

    def backward(self, sizes: Mapping[str, int], wants: Sequence[bool]) -> tuple[int, list[bool]]:
        """Of all, gradients passed on."""
        total, carry = 0, list(wants)
        for term in self.terms:
            count, carry = term.backward(sizes, carry)
            total += count
        return total, carry

    def draw(self, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> list[Item]:
        """One below the other."""
        found = list(values)
        for term in self.terms:
            found = term.draw(frame, wires, found)
        return found


class _Row(nn.Module):
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Through all."""
        for part in self.parts:
            values = part(*values)
        return values


def _box(kind: str, lines: tuple[str, ...], axes: Axes) -> Item:
    label = " × ".join(axes)
    wide = max(6.9 * len(line) for line in lines) + 18
    batch = tuple(axis == "n" for axis in axes)
    return Item(
        kind, lines, "; ".join(lines), wide, 14.0 * len(lines) + 8, label, batch, 5.4 * len(label) + 14, True
    )


def _add(item: Item, frame: Frame, wires: list[tuple[Item, Item]], values: Sequence[Item]) -> Item:
    frame.parts.append(item)
    wires += [(value, item) for value in dict.fromkeys(values)]
    return item


__all__ = ["Broadcast", "Compose", "Copy", "Einsum", "Normalise", "Parallel", "Pointwise", "Rename", "Term"]
