"""The contract of an instrument: it answers one question, and says what it needs to do so."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.errors import UsageError, nearest
from microtome.finding import Finding

if TYPE_CHECKING:
    from microtome.subject import Subject

Asking = Generator[Any, Any, Finding]
"""Yields a fold, or a list, tuple or dict of folds; receives their results in the same shape."""


@dataclass(frozen=True)
class Need:
    """A condition a subject must meet; joins with ``&``."""

    name: str
    lacks: Callable[[Subject], str | None]
    """Returns what is missing, or None."""

    def __and__(self, other: Need) -> Need:
        def both(subject: Subject) -> str | None:
            return self.lacks(subject) or other.lacks(subject)

        return Need(f"{self.name} and {other.name}", both)


def _need(name: str, holds: Callable[[Subject], bool], otherwise: str) -> Need:
    def lacks(subject: Subject) -> str | None:
        kind = subject.task.kind
        article = "an" if kind[0] in "aeiou" else "a"
        return (
            None if holds(subject) else otherwise.format(task=f"{article} {kind} task", subject=subject.name)
        )

    return Need(name, lacks)


Anything = Need("any subject", lambda subject: None)
HasTargets = _need(
    "targets", lambda s: s.task.kind != "unlabelled" and s.has_targets, "the data has no targets"
)
HasClasses = _need("classes", lambda s: s.task.categorical, "{task} has no classes")
HasValues = _need("values", lambda s: s.task.kind == "regression", "{task} does not answer with values")
HasLayers = _need("layers", lambda s: bool(s.layers), "no layer of {subject} answers per example")
HasParameters = _need("parameters", lambda s: bool(s.parameters), "{subject} has no real-valued parameters")
OneAnswer = _need(
    "one answer an example",
    lambda s: s.task.one_answer_per_example or s.task.kind in ("regression", "multilabel"),
    "{task} gives several answers an example",
)
Independent = _need(
    "independent examples",
    lambda s: s.independent_rows,
    "examples of {subject} reach one another within a batch",
)
OwnRows = _need(
    "rows that do not depend on how the data is cut",
    lambda s: s.independent_rows or s.has_structure,
    "examples of {subject} reach one another within a batch",
)
"""As Independent, and graphs: their nodes reach one another, but whole graphs are always seen."""
HasImages = _need(
    "image inputs",
    lambda s: s.input_shape is not None and len(s.input_shape) == 3 and s.site_layer is None,
    "inputs of {subject} are not images [channels, height, width]",
)
HasGraph = _need(
    "a graph",
    lambda s: s.has_structure,
    "the data of {subject} is no graph with an edge_index",
)
NodeTask = _need(
    "examples that are nodes",
    lambda s: s.layout.kind == "graph" and not s.layout.per_graph,
    "the examples of {subject} are not nodes of a graph",
)
HasSite = _need(
    "real-valued inputs or an embedding",
    lambda s: s.input_shape is not None,
    "no real-valued inputs or embedding found",
)


@dataclass(frozen=True, kw_only=True)
class Instrument(ABC):
    """Answers one question about a subject.

    The first line of the docstring is the question. Options are dataclass fields with defaults. ``examine``
    is a generator: it yields the folds it needs, receives their results, may yield again, and returns a
    Finding. It must depend on nothing but those results, the subject's description and its options, for a
    resumed run replays it.
    """

    papers: ClassVar[tuple[str, ...]] = ()
    """Slugs of the papers it rests on."""
    needs: ClassVar[Need] = Anything
    how_to_read: ClassVar[str] = ""
    """Two or three plain sentences for the report: what the number means, when it misleads."""
    deterministic: ClassVar[bool] = True
    """False only for measurements of time."""

    @abstractmethod
    def examine(self, subject: Subject) -> Asking:
        """Yield folds, return the finding."""

    def rounds(self, subject: Subject) -> int:
        """How many times it expects to yield; for the plan."""
        return 1

    @classmethod
    def name(cls) -> str:
        """``room/method``, from where the leaf lives."""
        parts = cls.__module__.split(".")
        return "/".join(parts[-2:])

    @classmethod
    def question(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]

    def options(self) -> dict[str, Any]:
        """Its options by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def configured(cls, options: dict[str, Any]) -> Instrument:
        """Build it with options, refusing unknown ones.

        Raises:
            UsageError: MT125 with the nearest names.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key in options:
            if key not in known:
                raise UsageError(
                    "MT125",
                    f"{cls.name()} has no option '{key}'",
                    fix=nearest(key, known) or (f"known: {', '.join(known)}" if known else "it has none"),
                )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UsageError("MT125", f"{cls.name()} does not take these options: {error}") from error
