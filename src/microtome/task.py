"""What the outputs mean: how predictions and targets line up, and what the loss is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.batches import Batch
from microtome.errors import SubjectError, UsageError, nearest

Kind = Literal[
    "classification", "multilabel", "regression", "language-modelling", "node-classification", "unlabelled"
]
KINDS: tuple[str, ...] = (
    "classification",
    "multilabel",
    "regression",
    "language-modelling",
    "node-classification",
    "unlabelled",
)
IGNORE = -100
VOID = 255
"""What label maps of pictures hold where there is no label, as Pascal VOC and Cityscapes write them."""


POSITIONS = 1 << 20
"""Prediction ids of a task with several answers an example are ``row * POSITIONS + position``."""


def primary_output(output: Any) -> Tensor:
    """The tensor that answers: ``.logits``, or the first floating-point tensor of a tuple, dict or dataclass.

    A single number is a loss the model computed beside its answer, and is passed over.

    Raises:
        SubjectError: MT208 when there is none.
    """
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim():
            return output
        held = f"{str(output.dtype).replace('torch.', '')} numbers" if output.dim() else "a single number"
        raise SubjectError(
            "MT208",
            f"the model returns {held}, and answers are real numbers, one row an example",
            fix="wrap it in a module that returns its logits",
        )
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values: Sequence[Any] = []
    if isinstance(output, Mapping):
        values = [output[k] for k in ("logits", "output", "out") if k in output] + list(output.values())
    elif isinstance(output, (tuple, list)):
        values = output
    elif dataclasses.is_dataclass(output):
        values = [getattr(output, f.name) for f in dataclasses.fields(output)]
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            return value
    raise SubjectError(
        "MT208",
        f"the model returns a {type(output).__name__} that holds no floating-point tensor of answers",
        fix="wrap it in a module that returns its logits",
    )


@dataclass(frozen=True)
class Task:
    """The meaning of outputs and targets.

    A *prediction* is one answer of the model: one an example in classification, one a position in a
    language model. ``align`` turns outputs and targets into predictions: [m, k] and [m].
    """

    kind: Kind
    classes: int | None = None
    class_dimension: int = -1
    shift: bool = False
    positions: bool = False
    """Whether an example has several predictions, one a position."""
    one_hot: bool = False
    """Whether targets are rows of 0 with a single 1."""
    label_offset: int = 0
    void: int | None = None
    """A label that stands for none, besides IGNORE."""
    probabilities: bool = False
    statement: str = ""

    @property
    def categorical(self) -> bool:
        """Whether each prediction is one of ``classes`` classes."""
        return self.kind in ("classification", "language-modelling", "node-classification")

    @property
    def one_answer_per_example(self) -> bool:
        """Whether every example has exactly one prediction."""
        return self.kind in ("classification", "node-classification") and not self.positions

    def output_logits(self, output: Tensor) -> Tensor:
        """[m, k] logits (classification) or [n, k] outputs (regression, multilabel); m predictions."""
        single = self.single_output(output)
        output = self.unscaled(output)
        if self.categorical:
            if single:
                margin = output.reshape(-1)
                return torch.stack([torch.zeros_like(margin), margin], dim=1)
            if self.shift:
                output = output[:, :-1]
            if self.class_dimension == 1 and output.dim() > 2:
                output = output.movedim(1, -1)
            return output.reshape(-1, output.shape[-1])
        return output.reshape(output.shape[0], -1)

    def unscaled(self, output: Tensor) -> Tensor:
        """Logits in the output's own shape, at least float32: probabilities are taken back to them."""
        if output.dtype in (torch.bfloat16, torch.float16):
            output = output.float()
        if not self.probabilities:
            return output
        tiny = torch.finfo(output.dtype).tiny
        log = output.clamp_min(tiny).log()
        if self.categorical and not self.single_output(output):
            return log
        return log - (1 - output).clamp_min(tiny).log()

    def single_output(self, output: Tensor) -> bool:
        """Whether two classes share one output, the log-odds of the second."""
        return (
            self.categorical
            and self.classes == 2
            and (output.dim() == 1 or output.shape[self.class_dimension] == 1)
        )

    def aligned_targets(self, targets: Tensor) -> Tensor:
        """[m] class indices (IGNORE where there is nothing to predict), or [n, k] values."""
        if self.categorical:
            if self.shift:
                targets = targets[:, 1:]
            if self.one_hot:
                targets = targets.argmax(-1)
            flat = targets.reshape(-1).long()
            if self.void is not None:
                flat = torch.where(flat == self.void, IGNORE, flat)
            return torch.where(flat == IGNORE, flat, flat - self.label_offset) if self.label_offset else flat
        flat = targets.reshape(targets.shape[0], -1)
        return flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float32)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss per prediction: cross-entropy (nats), binary cross-entropy mean over labels, or squared error.

        Args:
            logits: [m, k] as :meth:`output_logits` gives.
            targets: [m] or [m, k] as :meth:`aligned_targets` gives; ignored positions give 0.
        """
        if self.categorical:
            return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE)
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(
                logits, targets.to(logits.dtype), reduction="none"
            ).mean(1)
        return (logits - targets.to(logits.dtype)).square().mean(1)


def given_task(kind: str, found: Task, output: Tensor) -> Task:
    """The user's word on the task, completed by what was found.

    Raises:
        UsageError: MT121 for an unknown task, or one these outputs cannot serve.
    """
    check_kind(kind)
    statement = f"task {kind} (given)"
    if kind == found.kind:
        return replace(found, statement=statement)
    if kind in ("multilabel", "regression", "unlabelled"):
        classes = int(output.reshape(output.shape[0], -1).shape[1]) if kind == "multilabel" else None
        return Task(kind, classes, statement=statement)  # type: ignore[arg-type]
    if found.classes is None or not found.categorical:
        raise UsageError("MT121", f"task '{kind}' does not fit", where=f"found: {found.statement}")
    shift = kind == "language-modelling" and found.shift
    return replace(found, kind=kind, shift=shift, statement=statement)  # type: ignore[arg-type]


def check_kind(kind: str | None) -> None:
    """Refuse a task that does not exist.

    Raises:
        UsageError: MT121.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError("MT121", f"unknown task '{kind}'", where=", ".join(KINDS), fix=nearest(kind, KINDS))


def infer_task(output: Tensor, batch: Batch, kind: str | None = None, nodes: bool = False) -> Task:
    """Read the task off one batch of outputs and targets.

    Args:
        kind: the user's word on it, where what is found leaves a choice.
        nodes: whether examples are nodes of a graph.

    Raises:
        SubjectError: MT202 when outputs and targets cannot belong together.
    """
    targets = batch.targets
    if kind == "unlabelled" or (targets is None and (output.dim() != 3 or _token_ids(batch) is None)):
        return Task("unlabelled", statement="no targets: only questions that need none are asked")
    if targets is None:
        return Task(
            "language-modelling",
            output.shape[-1],
            shift=True,
            positions=True,
            statement=f"next-token language modelling over {output.shape[-1]} tokens: no targets",
        )
    if output.dim() and output.shape[0] == targets.shape[0]:
        found = _labelled_task(output, targets, batch, kind, nodes)
        if found is not None:
            return found
    raise SubjectError(
        "MT202",
        f"outputs {list(output.shape)} and targets {list(targets.shape)} "
        f"({str(targets.dtype).replace('torch.', '')}) fit no "
        + (f"task '{kind}'" if kind else "known task"),
        fix="give integer targets [n] for classification, targets of the outputs' shape for regression",
    )


def _labelled_task(
    output: Tensor, targets: Tensor, batch: Batch, kind: str | None, nodes: bool
) -> Task | None:
    integer = not targets.is_floating_point() and targets.dtype != torch.bool
    columns = targets.reshape(targets.shape[0], -1).shape[1]
    if integer and output.dim() == 3 and targets.shape == output.shape[:2] and kind != "regression":
        return _sequence_task(output, targets, batch)
    if output.reshape(output.shape[0], -1).shape[1] == 1 and columns == 1:
        if kind in (None, "classification") and _binary(targets, both=not integer):
            words = "binary classification: one output, targets 0 and 1"
            return Task(
                "classification", 2, statement=words + ("" if integer else " (task='regression' if not)")
            )
        if kind in (None, "regression"):
            return Task(
                "regression", statement=f"regression of 1 value: {'integer' if integer else 'real'} targets"
            )
        return (
            Task("multilabel", 1, statement="multi-label classification with 1 label")
            if kind == "multilabel"
            else None
        )
    if (
        output.dim() >= 3 and output.shape[1] == 1 and output.numel() == targets.numel()
        and kind in (None, "classification") and _binary(targets, both=True)
    ):  # fmt: skip
        words = (
            "binary classification of every position: one output, targets 0 and 1 (task='regression' if not)"
        )
        return Task("classification", 2, class_dimension=1, positions=True, statement=words)
    if integer and columns == 1 and kind not in ("regression", "multilabel") and output.dim() == 2:
        k = output.shape[1]
        if nodes:
            return Task(
                "node-classification", k, statement=f"node classification with {k} classes: integer targets"
            )
        return Task(
            "classification", k, statement=f"classification with {k} classes: integer targets, {k} outputs"
        )
    if integer and output.dim() >= 3 and targets.shape == (output.shape[0], *output.shape[2:]):
        k = output.shape[1]
        void = VOID if k <= VOID else None
        words = f"classification of every position into {k} classes"
        if bool((targets == VOID).any()) and void is not None:
            words += f"; those labelled {VOID} have no label"
        return Task("classification", k, class_dimension=1, positions=True, void=void, statement=words)
    if output.reshape(output.shape[0], -1).shape[1] != columns:
        return None
    single = bool((targets.reshape(-1, columns).sum(1) == 1).all()) and len(targets) > 1
    if _binary(targets) and kind in (None, "classification") and output.dim() == 2 and (single or kind):
        words = f"classification with {columns} classes: one-hot targets (task='multilabel' if not)"
        return Task("classification", columns, one_hot=True, statement=words) if single else None
    if kind == "multilabel" or (kind is None and _binary(targets)):
        words = f"multi-label classification with {columns} labels: targets are 0 or 1"
        return Task("multilabel", columns, statement=words)
    words = f"regression of {columns} values: real targets"
    if (
        columns > 1
        and bool((targets >= 0).all())
        and bool((targets.flatten(1).sum(1) - 1).abs().max() < 1e-3)
    ):
        words += " that sum to 1 (soft labels? give the number of the largest for classification)"
    return Task("regression", statement=words)


def _binary(targets: Tensor, both: bool = False) -> bool:
    """Whether all targets are 0 or 1 (and both occur, so that a constant is not taken for a class)."""
    values = targets.unique().tolist()
    return set(values) <= {0, 1} and (not both or len(values) == 2)


def _sequence_task(output: Tensor, targets: Tensor, batch: Batch) -> Task:
    ids = _token_ids(batch)
    k = output.shape[-1]
    if ids is not None and ids.shape == targets.shape:
        kept = targets != IGNORE
        if torch.equal(ids[kept], targets[kept].to(ids.dtype)):
            words = (
                f"language modelling over {k} tokens: targets are the inputs, predictions are shifted by one"
            )
            return Task("language-modelling", k, shift=True, positions=True, statement=words)
        if torch.equal(ids[:, 1:][kept[:, :-1]], targets[:, :-1][kept[:, :-1]].to(ids.dtype)):
            words = f"language modelling over {k} tokens: targets are the inputs one step later"
            return Task("language-modelling", k, positions=True, statement=words)
    return Task(
        "classification", k, positions=True, statement=f"classification of every position into {k} classes"
    )


def _token_ids(batch: Batch) -> Tensor | None:
    if "input_ids" in batch.kwargs:
        return batch.kwargs["input_ids"]
    for leaf in batch.leaves():
        if isinstance(leaf, Tensor) and leaf.dtype in (torch.int64, torch.int32) and leaf.dim() == 2:
            return leaf
    return None
