"""Laws of specimens: their truths are read right, and a wrong subject would be noticed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from microtome.batches import is_graph
from microtome.calibration import read_specimen
from microtome.errors import MicrotomeError
from microtome.laws.base import Broken, Law, require
from microtome.signals.capture import random_states, restore_random
from microtome.signals.noise import row_uniform
from microtome.specimen import Builder, Specimen
from microtome.subject import Subject


def read_right(build: Builder) -> None:
    """Every truth is read within its tolerance."""
    made = build()
    require(bool(made.truths), "it knows no truth")
    for row in read_specimen(made, made.truths):
        where = f"{row.instrument} {row.quantity}"
        require(row.reading is not None, f"{where}: {row.note}")
        require(
            row.passed,
            f"{where} reads {row.reading:.6g}, the truth is {row.truth:.6g} +- {row.tolerance:.3g}",
        )


def explained(build: Builder) -> None:
    """Every truth says how it is known, within a finite tolerance."""
    for truth in build().truths:
        where = f"{truth.instrument} {truth.quantity}"
        require(len(truth.why) > 8, f"{where}: it does not say how the truth is known")
        require(math.isfinite(truth.value), f"{where}: the truth is {truth.value}")
        require(0 <= truth.tolerance < math.inf, f"{where}: a tolerance of {truth.tolerance}")


def telling(build: Builder) -> None:
    """A wrong subject (other labels, inputs or weights, one more layer) is read otherwise."""
    made = build()
    waiting = {t.instrument for t in made.truths}
    for wrong in _wrong(made):
        truths = tuple(t for t in made.truths if t.instrument in waiting)
        if not truths:
            return
        try:
            rows = read_specimen(Specimen(made.name, wrong, truths), truths)
        except MicrotomeError:
            return  # the wrong subject is refused as a whole
        waiting -= {row.instrument for row in rows if not row.passed}
    if waiting:
        names = ", ".join(sorted(waiting))
        raise Broken(f"labels, inputs and weights may be anything, and these read all truths still: {names}")


def _wrong(made: Specimen) -> Iterator[Subject]:
    """Subjects that are not what the specimen says."""
    subject = made.subject
    for change in (_other_inputs, _other_labels, _larger_inputs, _other_edges):
        data = [change(raw) for raw in subject.data]
        yield from _subject(subject, copy.deepcopy(subject.model), data)
    model = copy.deepcopy(subject.model)
    states = random_states()
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (1.0 + parameter.abs().mean()))
    finally:
        restore_random(states)
    yield from _subject(subject, model, list(subject.data))
    if subject.input_shape is not None and subject.site_layer is None and subject.layout.kind == "pair":
        yield from _subject(subject, _Mixed(copy.deepcopy(subject.model), subject), list(subject.data))


class _Mixed(nn.Module):
    """The network behind one more layer, through which every input reaches every other."""

    def __init__(self, model: nn.Module, subject: Subject) -> None:
        super().__init__()
        size = math.prod(subject.input_shape or (1,))
        ids = torch.arange(size * size)
        weight = (row_uniform(ids, 7) - 0.5).reshape(size, size) * math.sqrt(12 / size)
        self.mix, self.model = nn.Linear(size, size, bias=False, dtype=subject.dtype), model
        with torch.no_grad():
            self.mix.weight.copy_(weight)

    def forward(self, *inputs: Tensor) -> Any:
        first, *rest = inputs
        mixed = torch.sin(3 * self.mix(first.flatten(1))).reshape(first.shape)
        return self.model(mixed, *rest)


def _subject(of: Subject, model: Any, data: list[Any]) -> Iterator[Subject]:
    try:
        yield Subject(model, data, task=of.task.kind, name=of.name, bounds=None)
    except MicrotomeError:
        return


def _map(raw: Any, inputs: Any, targets: Any) -> Any:
    if is_graph(raw):
        changed = raw.clone()
        if getattr(raw, "x", None) is not None:
            changed.x = inputs(raw.x)
        if getattr(raw, "y", None) is not None:
            changed.y = targets(raw.y)
        return changed
    if isinstance(raw, Mapping):
        return {
            k: targets(v) if k in ("labels", "label", "targets", "target", "y") else inputs(v)
            for k, v in raw.items()
        }
    if isinstance(raw, (tuple, list)):
        *first, last = raw
        return (*(inputs(x) for x in first), targets(last))
    return inputs(raw)


def _keep(x: Any) -> Any:
    return x


def _other_inputs(raw: Any) -> Any:
    """Other rows' inputs, mirrored within the row too."""

    def mirrored(x: Any) -> Any:
        return x.roll(1, 0).flip(-1) if isinstance(x, Tensor) and x.dim() > 1 else x

    return _map(raw, mirrored, _keep)


def _other_labels(raw: Any) -> Any:
    return _map(raw, _keep, lambda y: y.roll(1, 0) if isinstance(y, Tensor) else y)


def _other_edges(raw: Any) -> Any:
    """The edges of a graph end elsewhere."""
    if not is_graph(raw):
        return raw
    changed = raw.clone()
    source, target = raw.edge_index
    changed.edge_index = torch.stack([source, target.roll(1)])
    return changed


def _larger_inputs(raw: Any) -> Any:
    def larger(x: Any) -> Any:
        return x * 3 + 0.25 if isinstance(x, Tensor) and x.is_floating_point() else x

    return _map(raw, larger, _keep)


SPECIMEN_LAWS: tuple[Law, ...] = (
    Law("read right", read_right),
    Law("explained", explained),
    Law("telling", telling),
)


def check_specimen(build: Builder) -> None:
    """Hold a specimen to all laws.

    Raises:
        Broken: naming the law that is broken, and how.
    """
    for law in SPECIMEN_LAWS:
        try:
            law(build)
        except Broken as error:
            raise Broken(f"{law.name}: {error}") from error
