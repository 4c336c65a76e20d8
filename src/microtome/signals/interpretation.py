"""Signals from the exported program: an interpretation gives every operation a meaning on a slice.

A leaf writes ``interpreted(Relevance(composite), class_score(classes))`` as it writes ``gradient(...)``. The
program is captured once a subject; an operation without a rule, or a network that cannot be exported, fails
this signal alone, with the reason. See :mod:`microtome.interpret` for domains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.batches import Batch, site_tensor
from microtome.errors import Refusal
from microtome.interpret import Graph, Node, Run, forward, sources
from microtome.signals.expression import HERE, Signal

if TYPE_CHECKING:
    from microtome.subject import Subject

_NO_PLACE = "the program has no real-valued input and no embedding to start from"


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """The program of a subject on one slice.

    Attributes:
        graph: the captured program.
        inputs: concrete values of ``graph.inputs``.
        places: where meanings begin, with their concrete values [n, ...]: real inputs, or the embedding's output.
        parameters: tensors that replace the model's own (other weights), by name.
        slope: outputs -> the gradient of the sum of the signal in question by them, both shaped as the
            program's first output.
    """

    graph: Graph
    inputs: Mapping[Node, Any]
    places: Mapping[Node, Tensor]
    parameters: Mapping[str, Tensor]
    subject: Subject
    batch: Batch
    slope: Callable[[Tensor], Tensor]

    def run(
        self, *, keep: Collection[Node] = (), shapes: Collection[Node] = (), targets: Collection[Node] = ()
    ) -> Run:
        """The program on these numbers, keeping the values that are asked for."""
        return forward(
            self.graph, self.inputs, keep=keep, shapes=shapes, parameters=self.parameters,
            targets=targets or [self.graph.output],
            replace={n: partial(_instead, value) for n, value in self.places.items() if n.kind != "input"},
        )  # fmt: skip

    def site(self, values: Mapping[Node, Tensor]) -> Tensor:
        """[n, ...] what arrived at the places, shaped as ``inputs`` are (several inputs side by side)."""
        found = [values.get(node, torch.zeros_like(x)) for node, x in self.places.items()]
        return found[0] if len(found) == 1 else torch.cat([v.flatten(1) for v in found], dim=1)


def _instead(value: Tensor, _: Any) -> Tensor:
    return value


class Interpretation(ABC):
    """What to read off the program on a slice. Subclasses are frozen dataclasses, so equal ones are one signal."""

    cost: ClassVar[float] = 3.0
    """Forwards it amounts to; for the plan."""
    memory: ClassVar[float] = 4.0
    """Bytes a row takes, in multiples of its activations; slices are cut so that it fits."""
    repeatable: ClassVar[bool] = True
    """False only for measurements of time."""

    @abstractmethod
    def read(self, scene: Scene) -> Any:
        """A tensor [n, ...], or a tuple or dict of such; called without gradients enabled."""


def interpreted(interpretation: Interpretation, of: Signal | None = None) -> Signal:
    """What the interpretation reads.

    Args:
        interpretation: the meaning and its options.
        of: the scalar [n] in question, a function of the outputs (a class score), where one is needed.
    """
    world = HERE if of is None else next((s.world for s in of.walk() if s.kind == "outputs"), HERE)
    name = type(interpretation).__name__
    return Signal(kind="interpreted", arguments=(of, interpretation), world=world, name=name)


def make_scene(
    subject: Subject,
    batch: Batch,
    x: Tensor | None,
    parameters: Mapping[str, Tensor],
    slope: Callable[[Tensor], Tensor],
) -> Scene:
    """Bind a slice to the subject's program; ``x`` are changed inputs (or embeddings), None for its own.

    Raises:
        Refusal: for a network that cannot be captured, or has nowhere to start from.
    """
    if not subject.deterministic:
        raise Refusal("the network draws random numbers: its program has no fixed meaning")
    graph = subject.graph_of(batch)
    if x is not None and batch.site() is not None:
        batch, x = batch.with_site(x), None
    args, kwargs = batch.call()
    inputs = graph.bind(args, kwargs)
    places: dict[Node, Tensor] = {}
    if batch.site() is not None:
        leaves = pytree.tree_leaves((args, kwargs))
        own = {id(site_tensor(leaves[i])) for i in batch.site_index}
        places = {node: value for node, value in inputs.items() if id(value) in own}
    if not places:
        nodes = sources(graph)
        chosen = [n for n in nodes if n.layer == subject.site_layer] or list(nodes)
        if not chosen:
            raise Refusal(_NO_PLACE)
        node = chosen[0]
        if subject.site_layer is not None and subject.layer(subject.site_layer).batch_dimension:
            raise Refusal(f"the examples of '{subject.site_layer}' do not run along its first dimension")
        held = inputs.get(node)
        if x is not None:
            held = x
        elif held is None:
            own_names = _by_every_name(subject, graph, parameters)
            held = forward(graph, inputs, targets=[node], parameters=own_names).values[node]
        places = {node: held}
    return Scene(
        graph=graph,
        inputs=inputs,
        places=places,
        parameters=_by_every_name(subject, graph, parameters),
        subject=subject,
        batch=batch,
        slope=slope,
    )


def _by_every_name(subject: Subject, graph: Graph, changed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Changed tensors under all names the program knows them by: tied weights have several."""
    if not changed:
        return changed
    first = {id(t): name for name, t in subject.model.named_parameters()}
    names = {name: first.get(id(held), name) for name, held in graph.state.items()}
    return {name: changed[known] for name, known in names.items() if known in changed}


__all__ = ["Interpretation", "Scene", "interpreted", "make_scene"]
