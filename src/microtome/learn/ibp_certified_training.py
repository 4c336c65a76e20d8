"""Certified training by interval bounds: the loss at the worst logits that a ball of inputs can bring about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.errors import UsageError
from microtome.interpret import capture, sources
from microtome.interpret.interval import Interval
from microtome.interpret.linear_bounds import margins
from microtome.signals.bounds import interval_rows


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Radius and weight of the ordinary loss by step (Gowal et al. 2018).

    For ``warm_up`` steps the loss is the ordinary one. Over the next ``ramp`` steps the radius grows from 0 to
    ``radius`` and the weight kappa of the ordinary loss falls from 1 to ``kappa``, both linearly; there they stay.
    """

    radius: float
    kappa: float = 0.5
    warm_up: int = 0
    ramp: int = 1

    def at(self, step: int) -> tuple[float, float]:
        """(radius, kappa) at a step, counted from 0."""
        share = min(max((step - self.warm_up) / max(self.ramp, 1), 0.0), 1.0)
        return self.radius * share, 1.0 + (self.kappa - 1.0) * share


class IBPLoss:
    """The loss of interval-bound training, for a loop of one's own.

    kappa * CE(f(x), y) + (1 - kappa) * CE(worst, y), where worst_j bounds logit_j - logit_y from above for all
    |x' - x|_inf <= radius within ``bounds``; the last linear layer is joined with the difference. Two forwards and
    one backward of about three times the cost of the network's own. ::

        loss = IBPLoss(model, x[:2], bounds=(0, 1))
        for step, (x, y) in enumerate(batches):
            optimizer.zero_grad()
            loss(x, y, *schedule.at(step)).backward()
            optimizer.step()

    The model is captured once, as it is in eval mode: dropout is off, and batch norm uses its running
    statistics (which the ordinary forward, in the mode the model is in, goes on updating). The bounds read
    the model's own parameters at every call. Bounds are not widened for rounding here: certify afterwards with
    ``security/certified_accuracy``.

    Args:
        model: any network that can be captured, with one real-valued input [n, ...] and logits [n, k].
        example: a few inputs [n >= 2, ...], for their shape.
        bounds: range of valid inputs.
    """

    def __init__(self, model: nn.Module, example: Tensor, bounds: tuple[float, float] | None = None) -> None:
        self.model, self.bounds = model, bounds
        self.graph = capture(model, (example,))
        places = sources(self.graph)
        if len(places) != 1 or places[0].kind != "input":
            raise UsageError(
                "MT318",
                "interval-bound training needs a network with one real-valued input",
                fix="train from the embeddings on: a model that takes them as its input",
            )
        self.place = places[0]

    def worst(self, x: Tensor, labels: Tensor, radius: float) -> Tensor:
        """[n, k] logits less that of the label, each as large as the bounds allow; 0 for the label itself."""
        low, high = self.bounds or (None, None)
        shape = self.graph.output.shape
        if shape is None or len(shape) != 2 or not isinstance(shape[1], int):
            raise UsageError("MT318", "interval-bound training needs logits [n, k]", fix="return logits")
        rows = margins(labels, shape[1], x.dtype)
        box = {self.place: Interval.around(x, radius, low, high)}
        lower = interval_rows(self.graph, box, rows, rounding="none", gradient=torch.is_grad_enabled())
        others = torch.arange(shape[1] - 1, device=x.device).expand(len(x), -1)
        others = others + (others >= labels[:, None])
        return torch.zeros(len(x), shape[1], dtype=lower.dtype, device=x.device).scatter(1, others, -lower)

    def __call__(self, x: Tensor, labels: Tensor, radius: float, kappa: float = 0.0) -> Tensor:
        """The mean loss of a batch: x [n, ...], labels [n]."""
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        if kappa > 0:
            total = total + kappa * F.cross_entropy(self.model(x), labels)
        if kappa < 1:
            total = total + (1 - kappa) * F.cross_entropy(self.worst(x, labels, radius), labels)
        return total


def certified_train(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]] | Any,
    schedule: Schedule,
    *,
    epochs: int,
    rate: float = 1e-3,
    bounds: tuple[float, float] | None = None,
) -> list[float]:
    """Train with Adam on batches (x, y) that can be gone through again; returns the loss of every step."""
    loss: IBPLoss | None = None
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    seen: list[float] = []
    for _ in range(epochs):
        for x, y in batches:
            loss = loss or IBPLoss(model, x[:4], bounds)
            model.train()  # capture leaves modes as found; bounds do not depend on them
            optimizer.zero_grad()
            value = loss(x, y, *schedule.at(len(seen)))
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            seen.append(float(value.detach()))
    model.eval()
    return seen


__all__ = ["IBPLoss", "Schedule", "certified_train"]
