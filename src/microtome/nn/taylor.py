"""A network replaced by its first or second Taylor polynomial in the parameters: linear and quadratic models.

The linear model is what the neural tangent kernel describes; the quadratic one (Zhu, Liu, Radhakrishnan & Belkin 2022)
is the least that lets the kernel move.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from microtome.errors import UsageError


class Taylor(nn.Module):
    """f(x; w0) + J d, and with ``order`` 2 also d^T H d / 2, in the displacement d of the parameters from w0.

    Trains like any module: its parameters are d, zero at first, and its gradient there is that of the network. Costs a
    forward-mode pass an order. Piecewise-linear activations keep the pieces of w0.

    Args:
        model: the network at w0; it is copied and must be left in the mode it is to be expanded in.
        order: 1 or 2.
    """

    def __init__(self, model: nn.Module, order: int = 2) -> None:
        if order not in (1, 2):
            raise UsageError("MT463", f"a Taylor model of order {order}", fix="give 1 or 2")
        super().__init__()
        self.order = order
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        start = dict(model.named_parameters())
        self.moved = nn.ParameterList([torch.zeros_like(start[name]) for name in self.names])
        for i, name in enumerate(self.names):
            self.register_buffer(f"start_{i}", start[name].detach().clone())
        frozen = copy.deepcopy(model).requires_grad_(False)
        self.held = [frozen]  # in a list it is no submodule: its weights are the buffers above

    def forward(self, inputs: Any) -> Tensor:
        """What the network would answer, to this order."""
        start = {name: getattr(self, f"start_{i}") for i, name in enumerate(self.names)}
        moved = dict(zip(self.names, self.moved, strict=True))

        def call(parameters: dict[str, Tensor]) -> Tensor:
            answer: Tensor = functional_call(self.held[0], parameters, (inputs,))
            return answer

        def slope(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            value, change = jvp(call, (parameters,), (moved,))  # type: ignore[misc]
            return value, change

        if self.order == 1:
            value, first = slope(start)
            return value + first
        (value, first), (_, second) = jvp(slope, (start,), (moved,))  # type: ignore[misc]
        return value + first + second / 2


__all__ = ["Taylor"]
