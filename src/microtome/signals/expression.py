"""Signals: per-batch quantities as expressions, hashed by what they are.

A :class:`Signal` is either a *source* (the engine knows how to get it from the model) or *derived* (a pure
function of other signals). Equal expressions are one computation, whoever asks. A signal lives in a
:class:`World`: which subject, at which parameters, on which inputs; ``.of``, ``.at`` and ``.under`` move an
expression to another world without changing its meaning.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from microtome.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.batches import Batch
    from microtome.subject import Subject

_serial = itertools.count()


SLICE_SOURCES = ("targets", "rows", "structure", "tokens")
"""Sources that are the data's and the same in every world."""
SMALL_CONSTANT = 1 << 16
"""Constants of at most this many elements are compared by content; larger ones only equal themselves."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor inside an expression: directions, weights or classes found in an earlier round.

    Small ones are equal when their contents are, so that two instruments which found the same thing still
    share the computation. ``rows`` ([m] int64, sorted) are the example ids its first dimension speaks of,
    if it is per example.
    """

    value: Tensor
    rows: Tensor | None = None
    identity: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        identity: Hashable = next(_serial)
        if self.value.numel() <= SMALL_CONSTANT:
            rows = None if self.rows is None else self.rows.cpu().numpy().tobytes()
            plain = self.value.detach().cpu().double().contiguous().numpy().tobytes()
            digest = hashlib.blake2b(plain + b"|" + (rows or b""), digest_size=12).hexdigest()
            identity = (digest, tuple(self.value.shape), str(self.value.dtype))
        object.__setattr__(self, "identity", identity)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self.identity == other.identity

    @property
    def name(self) -> str:
        """Short name for plans."""
        return f"constant{list(self.value.shape)}"

    def for_rows(self, rows: Tensor) -> Tensor:
        """Its entries for these example ids.

        Args:
            rows: [n] int64; each must be among ``self.rows``.

        Raises:
            ValueError: if it is not per example.
        """
        import torch

        if self.rows is None:
            raise ValueError("this constant does not belong to examples")
        position = torch.searchsorted(self.rows, rows.to(self.rows.device))
        return self.value[position.to(self.value.device)]


class Ask(Protocol):
    """What a transform may ask while it works: signals of its own world on other inputs, row by row."""

    def __call__(self, signal: Signal, site: Tensor, keep: Tensor | None = None) -> Tensor:
        """Value of ``signal`` when the inputs are ``site``; ``keep`` ([m] positions) restricts to some examples."""


@dataclass(frozen=True)
class Site:
    """The examples a transform works on."""

    rows: Tensor
    """[n] int64 example ids."""
    targets: Tensor | None
    bounds: tuple[float, float] | None
    """Range of valid inputs, when known."""
    ask: Ask


class Transform(ABC):
    """A change of inputs; subclasses are frozen dataclasses, so equal changes are one world."""

    @abstractmethod
    def apply(self, x: Tensor, site: Site) -> Tensor:
        """Return the changed inputs.

        Args:
            x: [n, ...] real-valued inputs (the embedding's output when inputs are integers); not to be modified.
            site: which examples these are, and how to ask the model.
        """


class BatchChange(ABC):
    """A change of a whole batch (of a graph's edges, say); subclasses are frozen dataclasses.

    It stands where a :class:`Transform` stands, in :meth:`Signal.under`, before any of them. ``structure`` remains
    that of the unchanged data.
    """

    @abstractmethod
    def change(self, batch: Batch) -> Batch:
        """Return the changed batch; must not modify it."""


class Variation(ABC):
    """A family of ``count`` changed copies of each input, evaluated together; see :func:`across`."""

    count: int

    @abstractmethod
    def copies(self, x: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """Copies ``start`` to ``stop`` of each example: [n, stop - start, ...]."""


class ParameterChange(ABC):
    """A move in parameter space; subclasses are frozen dataclasses."""

    @abstractmethod
    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors that differ, by name (parameters and buffers alike)."""


@dataclass(frozen=True)
class World:
    """Where a signal is taken: on which subject, at which parameters, on which inputs."""

    subject: Any = None
    """None for the examined subject, else a second :class:`~microtome.subject.Subject`."""
    parameters: tuple[ParameterChange, ...] = ()
    inputs: tuple[Transform | BatchChange, ...] = ()

    @property
    def clean(self) -> World:
        """The same subject and parameters on unchanged inputs."""
        return replace(self, inputs=())

    def text(self) -> str:
        """Say where, briefly."""
        words = [f".of({self.subject.name})"] if self.subject is not None else []
        words += [f".at({_brief(p)})" for p in self.parameters] + [
            f".under({_brief(t)})" for t in self.inputs
        ]
        return "".join(words)


HERE = World()


@dataclass(frozen=True, eq=False)
class Signal:
    """One per-batch quantity. Immutable, hashable; built by the functions of :mod:`microtome.signals`."""

    kind: str
    """Name of the source, or "derived"."""
    function: Callable[..., Any] | None = None
    arguments: tuple[Any, ...] = ()
    constants: tuple[tuple[str, Hashable], ...] = ()
    world: World = HERE
    name: str = ""
    identity: tuple[Any, ...] = field(init=False, repr=False)
    parents: tuple[Signal, ...] = field(init=False, repr=False)
    """The signals it is made of."""
    _hash: int = field(init=False, repr=False)
    _below: tuple[Signal, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        identity = (self.kind, self.function, self.arguments, self.constants, self.world)
        object.__setattr__(self, "identity", identity)
        object.__setattr__(self, "parents", tuple(a for a in self.arguments if isinstance(a, Signal)))
        object.__setattr__(self, "_hash", hash(identity))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Signal) and self._hash == other._hash and self.identity == other.identity

    def under(self, *transforms: Transform | BatchChange) -> Signal:
        """The same signal on changed inputs (applied left to right)."""
        return self._moved(lambda w: replace(w, inputs=w.inputs + transforms))

    def at(self, *changes: ParameterChange) -> Signal:
        """The same signal at other parameters."""
        return self._moved(lambda w: replace(w, parameters=w.parameters + changes))

    def of(self, subject: Any) -> Signal:
        """The same signal on a second subject, fed the same inputs."""
        return self._moved(lambda w: replace(w, subject=subject))

    def _moved(self, move: Callable[[World], World]) -> Signal:
        worlds: dict[World, World] = {}
        done: dict[Signal, Signal] = {}
        for signal in self.walk():
            if signal.kind in SLICE_SOURCES:
                done[signal] = signal
                continue
            world = signal.world
            if signal.kind != "derived":
                if world not in worlds:
                    worlds[world] = move(world)
                world = worlds[world]
            arguments = tuple(done[a] if isinstance(a, Signal) else a for a in signal.arguments)
            done[signal] = Signal(
                signal.kind, signal.function, arguments, signal.constants, world, signal.name
            )
        return done[self]

    def walk(self) -> tuple[Signal, ...]:
        """Itself and everything below it, each once, parents' parents first."""
        # Kept without itself: a signal that refers to itself, and the vectors it may hold, would outlive its use.
        if self._below is None:
            found = dict.fromkeys(signal for parent in self.parents for signal in parent.walk())
            object.__setattr__(self, "_below", tuple(found))
        assert self._below is not None
        return (*self._below, self)

    def text(self) -> str:
        """Readable form, as the plan prints it."""
        if NAMED.get(self.name) is not None and NAMED[self.name].function is self.function:
            worlds = {
                s.world.text() for s in self.walk() if s.kind not in ("derived", *SLICE_SOURCES, "task")
            }
            if len(worlds) <= 1:
                return self.name + next(iter(worlds), "")
        parts = [a.text() if isinstance(a, Signal) else _brief(a) for a in self.arguments]
        parts += [f"{k}={_brief(v)}" for k, v in self.constants]
        name = self.name or self.kind
        body = f"{name}({', '.join(parts)})" if parts and self.kind != "named" else name
        return body + ("" if self.kind == "derived" else self.world.text())

    def __repr__(self) -> str:
        return self.text()


def _brief(value: Any) -> str:
    text = value.name if isinstance(value, Constant) else value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


NAMED: dict[str, Signal] = {}
"""Signals that can be named by a parameter of a derived signal's function."""


def source(kind: str, *arguments: Any, named: bool = False) -> Signal:
    """A quantity the engine gets from the model."""
    made = Signal(kind=kind, arguments=arguments, name=kind)
    if named:
        NAMED[kind] = made
    return made


def derive(function: Callable[..., Any], *arguments: Any, name: str = "", **constants: Hashable) -> Signal:
    """A pure function of signals: ``function(*values, **constants)``, values in the order of ``arguments``.

    The function must be defined at module level (its identity is part of the expression's) and must not
    modify its arguments.
    """
    return Signal(
        kind="derived",
        function=function,
        arguments=arguments,
        constants=tuple(sorted(constants.items())),
        name=name or function.__name__.strip("_"),
    )


def signal(function: Callable[..., Any]) -> Signal:
    """Make a signal of a function whose parameters name other signals.

    Raises:
        UsageError: MT122 at import time when a parameter names no signal; says the nearest ones.
    """
    arguments = []
    for name in inspect.signature(function).parameters:
        if name not in NAMED:
            raise UsageError(
                "MT122",
                f"'{name}' names no signal",
                where=f"parameter of {function.__module__}.{function.__qualname__}",
                fix=nearest(name, NAMED) or f"known: {', '.join(sorted(NAMED))}",
            )
        arguments.append(NAMED[name])
    made = derive(function, *arguments)
    NAMED[function.__name__] = made
    return made
