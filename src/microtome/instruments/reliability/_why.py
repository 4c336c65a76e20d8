"""What in an input speaks for a wrong answer instead of the label, to first order."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from microtome.folds import Collect, Rows
from microtome.instruments.explain._faithfulness import over_parts, parts_dimension
from microtome.instruments.reliability._pictures import LONGEST_TEXT
from microtome.signals import Constant, class_score, derive, gradient, inputs, rows
from microtome.subject import Subject

MOST_NUMBERS = 1 << 22
"""Numbers in all maps together."""
LARGE = 1e6


def bearable(subject: Subject, wanted: int) -> int:
    """How many maps of this subject's inputs may be kept."""
    return min(wanted, max(MOST_NUMBERS // math.prod(subject.input_shape or (1,)), 8))


def why(
    subject: Subject, ids: Tensor, answer: Tensor, label: Tensor
) -> Generator[Any, Any, dict[str, Tensor]]:
    """Maps [e, ...] of x * d(s_answer - s_label)/dx over the parts of the input, and the length of a change that mends.

    Args:
        ids: [e] example ids, in any order.
        answer: [e] classes that were answered.
        label: [e] classes that are true.
    """
    if not len(ids) or subject.input_shape is None or not subject.independent_rows:
        return {}
    order = ids.argsort()
    ids, answer, label = ids[order], answer[order], label[order]
    lead = derive(_lead, class_score(Constant(answer, ids)), class_score(Constant(label, ids)), name="lead")
    slope = gradient(lead, "inputs")
    text = subject.site_layer is not None
    spoken = derive(_spoken, slope, inputs, parts=parts_dimension(subject), text=text, name="spoken")
    length = derive(_length, slope, name="length")
    ids, ahead, length_, maps = yield Collect(
        signals=(rows, lead, length, spoken), over=Rows(tuple(ids.tolist()))
    )
    step = torch.where(length_ > 0, ahead.double() / length_.clamp_min(1e-30), 0.0).clamp(0, LARGE)
    return {"explained": ids, "for the answer": maps, "change that mends": step.float()}


def _lead(answer: Tensor, label: Tensor) -> Tensor:
    return answer - label


def _length(slope: Tensor) -> Tensor:
    """[n, ...] -> [n] float64 Euclidean length."""
    return slope.flatten(1).double().norm(dim=1)


def _spoken(slope: Tensor, x: Tensor, *, parts: int | None, text: bool) -> Tensor:
    """[n, ...] twice -> [n, parts ...] float32; texts are cut or filled up to one length."""
    made = over_parts((slope * x).double(), parts).clamp(-LARGE, LARGE).float()
    if not text or made.dim() != 2:
        return made
    made = made[:, :LONGEST_TEXT]
    return pad(made, (0, LONGEST_TEXT - made.shape[1]))
