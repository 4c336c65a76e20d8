"""The stock signals. Leaves import from here; nothing here touches a model.

Sources: ``inputs`` [n, ...], ``outputs``, ``targets``, ``rows`` [n] and ``task``; ``activation(layer)``,
``gradient(of, wrt)``, ``hessian_vector_products(of, vectors)``, ``example_gradient_norms(of)``,
``across(signal, variation)`` and ``profile()``. A *prediction* is one answer (one an example, or one a
position); m counts predictions, n examples.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.signals.expression import (
    HERE,
    NAMED,
    SLICE_SOURCES,
    BatchChange,
    Constant,
    ParameterChange,
    Signal,
    Site,
    Transform,
    Variation,
    World,
    derive,
    signal,
    source,
)
from microtome.task import IGNORE, POSITIONS, Task

__all__ = [
    "HERE",
    "NAMED",
    "BatchChange",
    "Constant",
    "ParameterChange",
    "Signal",
    "Site",
    "Transform",
    "Variation",
    "World",
    "across",
    "activation",
    "class_probability",
    "class_score",
    "confidence",
    "correct",
    "derive",
    "example_gradient_norms",
    "features",
    "gradient",
    "hessian_vector_products",
    "inputs",
    "labels",
    "logits",
    "loss",
    "outputs",
    "prediction_ids",
    "predictions",
    "probabilities",
    "profile",
    "rows",
    "score",
    "signal",
    "source",
    "targets",
    "task",
    "tokens",
]

inputs = source("inputs", named=True)
"""[n, ...] the real-valued inputs; the embedding's output when inputs are integers."""
outputs = source("outputs", named=True)
"""The tensor that answers, as the model gives it."""
targets = source("targets", named=True)
"""[n, ...] as the data gives them."""
rows = source("rows", named=True)
"""[n] int64 example ids."""
tokens = source("tokens")
"""[n, l] int64 token ids, where the inputs are integers; refuses elsewhere."""
task = source("task", named=True)
"""The subject's :class:`~microtome.task.Task`."""


def _kept(targets: Tensor | None, task: Task) -> Tensor | None:
    """Positions that have something to predict, or None when all have."""
    global _last_kept
    if targets is None or not task.categorical:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(targets):
        return None  # inside vmap nothing may depend on values; the loss gives ignored positions 0 anyway
    # The same targets are asked for in every world of a slice.
    version = -1 if targets.is_inference() else targets._version
    tensor, *known, kept = _last_kept
    if tensor is not None and tensor() is targets and known == [version, task]:
        return kept
    ignored = task.aligned_targets(targets) == IGNORE
    kept = None if not bool(ignored.any()) else (~ignored).nonzero()[:, 0]
    _last_kept = (weakref.ref(targets), version, task, kept)
    return kept


_last_kept: tuple[weakref.ref[Tensor] | None, int, Task | None, Tensor | None] = (None, 0, None, None)


@signal
def logits(outputs: Tensor, targets: Tensor | None, task: Task) -> Tensor:
    """[m, k], one row a prediction that has a target (all of them when there are no targets)."""
    aligned = task.output_logits(outputs)
    kept = _kept(targets, task)
    return aligned if kept is None else aligned[kept]


@signal
def labels(targets: Tensor | None, task: Task) -> Tensor:
    """[m] class indices, or [m, k] values in regression and multi-label tasks."""
    if targets is None:
        raise Refusal("the data has no targets")
    aligned = task.aligned_targets(targets)
    kept = _kept(targets, task)
    return aligned if kept is None else aligned[kept]


@signal
def prediction_ids(rows: Tensor, outputs: Tensor, targets: Tensor | None, task: Task) -> Tensor:
    """[m] int64, unique to each prediction and independent of how the data is cut.

    The example's id; with several predictions an example, ``row * POSITIONS + position``.
    """
    ids = rows
    if task.positions:
        count = task.output_logits(outputs).shape[0] // max(rows.shape[0], 1)
        ids = (rows[:, None] * POSITIONS + torch.arange(count, device=rows.device)).reshape(-1)
    kept = _kept(targets, task)
    return ids if kept is None else ids[kept.to(ids.device)]


@signal
def probabilities(logits: Tensor, task: Task) -> Tensor:
    """[m, k]: softmax over classes, or a sigmoid for each label."""
    if task.kind == "regression":
        raise Refusal("regression outputs are not probabilities")
    return logits.sigmoid() if task.kind == "multilabel" else logits.softmax(1)


@signal
def predictions(logits: Tensor, task: Task) -> Tensor:
    """[m] class with the largest logit."""
    if not task.categorical:
        raise Refusal(f"a {task.kind} task has no single predicted class")
    return logits.argmax(1)


@signal
def confidence(probabilities: Tensor) -> Tensor:
    """[m] probability of the predicted class."""
    return probabilities.max(1).values


@signal
def correct(predictions: Tensor, labels: Tensor) -> Tensor:
    """[m] 1.0 where the prediction is right."""
    return (predictions == labels).double()


@signal
def loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """[m] loss of each prediction (nats for cross-entropy)."""
    return task.loss(logits, labels)


@signal
def score(outputs: Tensor, task: Task) -> Tensor:
    """[n] what an explanation explains: the largest logit (of the last position), or the summed output."""
    last = _last_scores(outputs, task)
    return last.max(1).values if task.kind != "regression" else last.sum(1)


def _last_answer(outputs: Tensor, task: Task) -> Tensor:
    """[n, k] the answer of each example; of its last position when it has several."""
    n = outputs.shape[0]
    flat = task.unscaled(outputs)
    if not task.categorical:
        return flat.reshape(n, -1)
    if task.single_output(flat):
        margin = flat.reshape(n, -1)[:, -1]
        return torch.stack([torch.zeros_like(margin), margin], dim=1)
    flat = flat.movedim(1, -1) if task.class_dimension == 1 and flat.dim() > 2 else flat
    return flat if flat.dim() == 2 else flat.reshape(n, -1, flat.shape[-1])[:, -1]


def _last_scores(outputs: Tensor, task: Task) -> Tensor:
    """As :func:`_last_answer`; of two classes that share one output each has its own log-odds.

    A logit of 0 for the first class would do for probabilities, but nothing could explain it.
    """
    last = _last_answer(outputs, task)
    return torch.stack([-last[:, 1], last[:, 1]], dim=1) if task.single_output(outputs) else last


def answer() -> Signal:
    """[n] int64: the class each example's explanation is about (the predicted one; 0 in regression)."""
    return derive(_answer, outputs, task, name="answer")


def _answer(outputs: Tensor, task: Task) -> Tensor:
    last = _last_answer(outputs, task)
    return last.argmax(1) if task.kind != "regression" else torch.zeros_like(last[:, 0], dtype=torch.long)


def class_score(classes: Constant) -> Signal:
    """[n] logit of a class fixed beforehand for each example: moving the input cannot change the question.

    Of two classes that share one output, the log-odds of the class: for the first one the output with its sign turned.
    """
    return derive(_class_score, outputs, rows, task, classes, name="class_score")


def _class_score(outputs: Tensor, rows: Tensor, task: Task, classes: Constant) -> Tensor:
    chosen = classes.for_rows(rows).to(outputs.device)
    return _last_scores(outputs, task).gather(1, chosen[:, None])[:, 0]


def class_probability(classes: Constant) -> Signal:
    """[n] probability of a class fixed beforehand for each example (the output itself in regression)."""
    return derive(_class_probability, outputs, rows, task, classes, name="class_probability")


def _class_probability(outputs: Tensor, rows: Tensor, task: Task, classes: Constant) -> Tensor:
    return _answer_probabilities(outputs, task).gather(1, classes.for_rows(rows).to(outputs.device)[:, None])[
        :, 0
    ]


def answer_probabilities() -> Signal:
    """[n, k] probability of every class, of the last position where an example has several (outputs in regression)."""
    return derive(_answer_probabilities, outputs, task, name="answer_probabilities")


def _answer_probabilities(outputs: Tensor, task: Task) -> Tensor:
    last = _last_answer(outputs, task)
    if task.categorical:
        return last.softmax(1)
    return last.sigmoid() if task.kind == "multilabel" else last


def activation(layer: str) -> Signal:
    """[n, ...] output of one call (see :class:`~microtome.subject.Layer`), examples along dimension 0."""
    return source("activation", layer)


def features(layer: str) -> Signal:
    """[n, d] one vector an example: vectors as they are, maps and sequences averaged over their positions."""
    return derive(_features, activation(layer), source("feature_dimension", layer), name="features")


def _features(activation: Tensor, dimension: int) -> Tensor:
    if activation.dim() <= 2:
        return activation.reshape(activation.shape[0], -1)
    units = dimension % activation.dim()  # the dimension may be given from the end
    others = tuple(d for d in range(1, activation.dim()) if d != units)
    return activation.mean(others)


def gradient(of: Signal, wrt: str = "inputs") -> Signal:
    """Gradient of the sum of ``of``.

    Args:
        of: a signal of shape [n] or [m].
        wrt: "inputs" ([n, ...]), "parameters" ([p], summed over the slice), or a layer ([n, ...]).
    """
    return Signal(kind="gradient", arguments=(of, wrt), world=_world_of(of), name="gradient")


def hessian_vector_products(of: Signal, vectors: Constant) -> Signal:
    """[k, p]: the Hessian of the sum of ``of`` in the parameters, times each row of ``vectors`` [k, p]."""
    return Signal(kind="hvp", arguments=(of, vectors), world=_world_of(of), name="hessian_vector_products")


def example_gradient_norms(of: Signal) -> Signal:
    """[n, t] squared norm of each example's own parameter gradient, by parameter tensor."""
    return Signal(
        kind="example_gradients", arguments=(of,), world=_world_of(of), name="example_gradient_norms"
    )


def across(inner: Signal, variation: Variation, weights: tuple[float, ...] | None = None) -> Signal:
    """``inner`` on every copy the variation makes of each example.

    Returns:
        [n, count, ...], or [n, ...] summed with ``weights`` (length count) without keeping the copies.
    """
    return Signal(kind="across", arguments=(inner, variation, weights), world=_world_of(inner), name="across")


def profile() -> Signal:
    """[layers + 1, 2]: floating-point operations an example and seconds a slice.

    Rows in the order of ``subject.layers``, the whole call last. Torch counts a multiplication and an
    addition as two operations, and only those of matrix products and convolutions.
    """
    return source("profile")


def _world_of(inner: Signal) -> World:
    worlds = {s.world for s in inner.walk() if s.kind not in ("derived", *SLICE_SOURCES)}
    if len(worlds) > 1:
        raise ValueError(f"{inner.text()} mixes worlds; a gradient is taken in one")
    return next(iter(worlds), HERE)


def select(value: Any, keep: Any) -> Any:
    """Rows of ``value`` where ``keep`` ([n] bool) holds; for :func:`derive`."""
    return value[keep]
