"""What the outputs mean: how predictions and targets line up, and what the loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.batches import Batch
from microtome.errors import SubjectError, UsageError, nearest

Kind = Literal["classification", "multilabel", "regression", "language-modelling", "node-classification", "unlabelled"]
KINDS: tuple[str, ...] = (
    "classification",
    "multilabel",
    "regression",
    "language-modelling",
    "node-classification",
    "unlabelled",
)
IGNORE = -100


def primary_output(output: Any) -> Tensor:
    """The tensor that answers: ``.logits``, or the first floating-point tensor of a tuple or dict.

    Raises:
        SubjectError: MT208 when there is none.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values: Sequence[Any] = []
    if isinstance(output, Mapping):
        values = [output[k] for k in ("logits", "output", "out") if k in output] + list(output.values())
    elif isinstance(output, (tuple, list)):
        values = output
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise SubjectError("MT208", f"the model returns a {type(output).__name__} that holds no floating-point tensor")


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
    label_offset: int = 0
    probabilities: bool = False
    statement: str = ""

    @property
    def categorical(self) -> bool:
        """Whether each prediction is one of ``classes`` classes."""
        return self.kind in ("classification", "language-modelling", "node-classification")

    @property
    def one_answer_per_example(self) -> bool:
        """Whether every example has exactly one prediction."""
        return self.kind in ("classification", "node-classification") and self.class_dimension == -1 and not self.shift

    def output_logits(self, output: Tensor) -> Tensor:
        """[m, k] logits (classification) or [n, k] outputs (regression, multilabel); m predictions."""
        if output.dtype in (torch.bfloat16, torch.float16):
            output = output.float()
        if self.probabilities:
            output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
        if self.categorical:
            if self.classes == 2 and (output.dim() == 1 or output.shape[self.class_dimension] == 1):
                margin = output.reshape(-1)
                return torch.stack([torch.zeros_like(margin), margin], dim=1)
            if self.shift:
                output = output[:, :-1]
            if self.class_dimension == 1 and output.dim() > 2:
                output = output.movedim(1, -1)
            return output.reshape(-1, output.shape[-1])
        return output.reshape(output.shape[0], -1)

    def aligned_targets(self, targets: Tensor) -> Tensor:
        """[m] class indices (IGNORE where there is nothing to predict), or [n, k] values."""
        if self.categorical:
            if self.shift:
                targets = targets[:, 1:]
            flat = targets.reshape(-1).long()
            return torch.where(flat == IGNORE, flat, flat - self.label_offset) if self.label_offset else flat
        return targets.reshape(targets.shape[0], -1).to(torch.get_default_dtype())

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss per prediction: cross-entropy (nats), binary cross-entropy mean over labels, or squared error.

        Args:
            logits: [m, k] as :meth:`output_logits` gives.
            targets: [m] or [m, k] as :meth:`aligned_targets` gives; ignored positions give 0.
        """
        if self.categorical:
            return F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE)
        if self.kind == "multilabel":
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)
        return (logits - targets.to(logits.dtype)).square().mean(1)


def given_task(kind: str, found: Task) -> Task:
    """The user's word on the task, completed by what was found.

    Raises:
        UsageError: MT121 for an unknown task.
    """
    if kind not in KINDS:
        raise UsageError("MT121", f"unknown task '{kind}'", where=", ".join(KINDS), fix=nearest(kind, KINDS))
    if kind == found.kind:
        return replace(found, statement=f"task {kind} (given)")
    return replace(found, kind=kind, shift=kind == "language-modelling" and found.shift, statement=f"task {kind} (given)")


def infer_task(output: Tensor, batch: Batch, kind: str | None = None) -> Task:
    """Read the task off one batch of outputs and targets.

    Raises:
        SubjectError: MT202 when outputs and targets cannot belong together.
    """
    targets = batch.targets
    if not batch.divisible and targets is not None and not targets.is_floating_point() and targets.dim() == 1:
        k = output.shape[-1]
        return Task("node-classification", k, statement=f"node classification with {k} classes: integer targets")
    if targets is None and not (output.dim() == 3 and _token_ids(batch) is not None):
        return Task("unlabelled", statement="no targets: only questions that need none are asked")
    if targets is None:
        return Task(
            "language-modelling",
            output.shape[-1],
            shift=True,
            statement=f"next-token language modelling over {output.shape[-1]} tokens: outputs a position, no targets",
        )
    integer = not targets.is_floating_point() and targets.dtype != torch.bool
    if integer and output.dim() == 3 and targets.shape == output.shape[:2]:
        ids = _token_ids(batch)
        k = output.shape[-1]
        if ids is not None and ids.shape == targets.shape:
            kept = targets != IGNORE
            if torch.equal(ids[kept], targets[kept]):
                words = "targets are the inputs, predictions are shifted by one"
                return Task("language-modelling", k, shift=True, statement=f"language modelling over {k} tokens: {words}")
            if torch.equal(ids[:, 1:][kept[:, :-1]], targets[:, :-1][kept[:, :-1]]):
                words = "targets are the inputs one step later"
                return Task("language-modelling", k, statement=f"language modelling over {k} tokens: {words}")
        return Task("classification", k, statement=f"classification of every position into {k} classes")
    if integer and targets.dim() <= 1 and kind != "regression" and output.shape[0] == targets.shape[0]:
        if output.dim() == 1 or (output.dim() == 2 and output.shape[1] == 1):
            if int(targets.min()) >= 0 and int(targets.max()) <= 1:
                return Task("classification", 2, statement="binary classification: one output, integer targets 0 and 1")
            return Task("regression", statement="regression: one output, integer targets")
        if output.dim() == 2:
            k = output.shape[1]
            return Task("classification", k, statement=f"classification with {k} classes: integer targets, {k} outputs")
    if integer and output.dim() >= 3 and targets.shape == (output.shape[0], *output.shape[2:]):
        k = output.shape[1]
        return Task("classification", k, class_dimension=1, statement=f"classification of every position into {k} classes")
    flat_output, flat_targets = output.reshape(output.shape[0], -1), targets.reshape(targets.shape[0], -1)
    if flat_output.shape == flat_targets.shape:
        values = flat_targets.unique()
        binary = bool(((values == 0) | (values == 1)).all())
        if kind == "multilabel" or (kind is None and binary and flat_targets.shape[1] > 1):
            k = flat_targets.shape[1]
            return Task("multilabel", k, statement=f"multi-label classification with {k} labels: targets are 0 or 1")
        return Task("regression", statement=f"regression of {flat_targets.shape[1]} values: real targets")
    raise SubjectError(
        "MT202",
        f"outputs {list(output.shape)} and targets {list(targets.shape)} ({targets.dtype}) fit no known task",
        fix="integer targets [n] for classification, targets of the outputs' shape for regression; or name the target key",
    )


def _token_ids(batch: Batch) -> Tensor | None:
    if "input_ids" in batch.kwargs:
        return batch.kwargs["input_ids"]
    for leaf in batch.leaves():
        if isinstance(leaf, Tensor) and leaf.dtype in (torch.int64, torch.int32) and leaf.dim() == 2:
            return leaf
    return None
