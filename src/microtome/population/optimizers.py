"""Elementwise optimisers on stacked parameters: every hyper-parameter a number, or one a member.

An update that treats every entry alike is the same on [N, ...] as on N tensors of [...]. The three that nearly
every study uses are written out, so that rates, decays and momenta may differ by member; any other elementwise
``torch.optim`` class runs as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from microtome.errors import UsageError, nearest

Number = float | Tensor
"""One for all members, or [N]."""

ELEMENTWISE = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
"""The classes of ``torch.optim`` whose update of one entry depends on no other entry."""


class Optimizer(Protocol):
    """Updates lists of stacked parameters [N, ...] in place."""

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Number) -> None:
        """One update; ``rate`` is the rate of this step."""

    def keep(self, members: Tensor, parameters: Sequence[Tensor]) -> None:
        """Go on with some of the members only: [m] their places, and their parameters, cut already."""

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on later."""

    def restore(self, state: dict[str, Tensor], parameters: Sequence[Tensor]) -> None:
        """The reverse of :meth:`state`."""


def along(value: Number, like: Tensor) -> Number:
    """A number a member, shaped to multiply a stacked tensor [N, ...]."""
    if isinstance(value, Tensor) and value.dim():
        return value.to(like).reshape(-1, *[1] * (like.dim() - 1))
    return float(value)


def add_scaled(target: Sequence[Tensor], source: Sequence[Tensor], scale: Number) -> None:
    """Target += scale * source, in place; one call when the scale is the same for all."""
    if isinstance(scale, Tensor) and scale.dim():
        for t, s in zip(target, source, strict=True):
            t.addcmul_(s, along(scale, t))  # type: ignore[arg-type]
    else:
        torch._foreach_add_(list(target), list(source), alpha=float(scale))


class _Held:
    """State of one tensor a parameter, by name."""

    def __init__(self) -> None:
        self.slots: dict[str, list[Tensor]] = {}
        self.steps = 0
        self.hyper: dict[str, Number] = {}

    def _slot(self, name: str, parameters: Sequence[Tensor]) -> list[Tensor]:
        if name not in self.slots:
            self.slots[name] = [torch.zeros_like(p) for p in parameters]
        return self.slots[name]

    def keep(self, members: Tensor, parameters: Sequence[Tensor]) -> None:
        """See :class:`Optimizer`."""
        self.slots = {name: [t[members] for t in held] for name, held in self.slots.items()}
        self.hyper = {
            name: value[members] if isinstance(value, Tensor) and value.dim() else value
            for name, value in self.hyper.items()
        }

    def state(self) -> dict[str, Tensor]:
        """See :class:`Optimizer`."""
        found = {f"{name}/{i}": t.clone() for name, held in self.slots.items() for i, t in enumerate(held)}
        return found | {"steps": torch.tensor(self.steps)}

    def restore(self, state: dict[str, Tensor], parameters: Sequence[Tensor]) -> None:
        """See :class:`Optimizer`."""
        self.steps = int(state["steps"])
        for key, value in state.items():
            name, _, index = key.partition("/")
            if index:
                self._slot(name, parameters)[int(index)] = value.clone()


class SGD(_Held):
    """v = momentum v + (g + decay p); p -= rate v, or with Nesterov rate (g + decay p + momentum v).

    As ``torch.optim.SGD``.
    """

    def __init__(self, *, weight_decay: Number = 0.0, momentum: Number = 0.0, nesterov: bool = False) -> None:
        super().__init__()
        self.hyper = {"weight_decay": weight_decay, "momentum": momentum}
        self.nesterov = nesterov

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Number) -> None:
        """See :class:`Optimizer`."""
        decay, momentum = self.hyper["weight_decay"], self.hyper["momentum"]
        if _any(decay):
            gradients = [g.clone() for g in gradients]
            add_scaled(gradients, parameters, decay)
        if _any(momentum):
            first = "velocity" not in self.slots
            velocity = self._slot("velocity", parameters)
            for v, g in zip(velocity, gradients, strict=True):
                v.mul_(1.0 if first else along(momentum, v)).add_(g)
            if self.nesterov:
                gradients = [g.clone() for g in gradients]
                add_scaled(gradients, velocity, momentum)
            else:
                gradients = velocity
        self.steps += 1
        add_scaled(parameters, gradients, -rate)


class Adam(_Held):
    """Adam (Kingma & Ba 2015); ``decoupled``: AdamW (Loshchilov & Hutter 2019). As torch's own."""

    def __init__(
        self,
        *,
        weight_decay: Number = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        decoupled: bool = False,
    ) -> None:
        super().__init__()
        self.hyper = {"weight_decay": weight_decay}
        self.betas, self.eps, self.decoupled = betas, eps, decoupled

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Number) -> None:
        """See :class:`Optimizer`."""
        decay = self.hyper["weight_decay"]
        if _any(decay):
            if self.decoupled:
                for p in parameters:
                    p.mul_(1 - along(rate, p) * along(decay, p))
            else:
                gradients = [g.clone() for g in gradients]
                add_scaled(gradients, parameters, decay)
        mean, square = self._slot("mean", parameters), self._slot("square", parameters)
        self.steps += 1
        one, two = self.betas
        torch._foreach_lerp_(mean, list(gradients), 1 - one)
        torch._foreach_mul_(square, two)
        torch._foreach_addcmul_(square, list(gradients), list(gradients), 1 - two)
        below = torch._foreach_sqrt(square)
        torch._foreach_div_(below, math.sqrt(1 - two**self.steps))
        torch._foreach_add_(below, self.eps)
        scale = 1 / (1 - one**self.steps)
        if isinstance(rate, Tensor) and rate.dim():
            for p, m, d in zip(parameters, mean, below, strict=True):
                p.sub_(m.div(d).mul_(along(rate * scale, p)))
        else:
            torch._foreach_addcdiv_(list(parameters), mean, below, -float(rate) * scale)


class Elementwise:
    """Any elementwise class of ``torch.optim``, on the stacked tensors; its rate is one for all members."""

    def __init__(self, kind: type[torch.optim.Optimizer], **options: Any) -> None:
        if kind.__name__ not in ELEMENTWISE:
            raise UsageError(
                "MT411",
                f"{kind.__name__} cannot train a population: its update of one weight depends on other weights",
                fix=f"use one of {', '.join(ELEMENTWISE)}",
            )
        self.kind, self.options = kind, options
        self.inner: torch.optim.Optimizer | None = None
        self.leaves: list[torch.nn.Parameter] = []

    def _made(self, parameters: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
        if self.inner is None:
            self.leaves = [torch.nn.Parameter(p) for p in parameters]
            self.inner = self.kind(self.leaves, lr=rate, **self.options)  # type: ignore[call-arg]
        return self.inner

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Number) -> None:
        """See :class:`Optimizer`."""
        if isinstance(rate, Tensor) and rate.dim():
            raise UsageError(
                "MT412", f"{self.kind.__name__} takes one rate for all members", fix="use sgd, adam or adamw"
            )
        inner = self._made(parameters, float(rate))
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        for group in inner.param_groups:
            group["lr"] = float(rate)
        inner.step()

    def keep(self, members: Tensor, parameters: Sequence[Tensor]) -> None:
        """See :class:`Optimizer`."""
        if self.inner is None:
            return
        total = len(self.leaves[0])
        for leaf, parameter in zip(self.leaves, parameters, strict=True):
            leaf.grad = None
            leaf.data = parameter
            held = self.inner.state[leaf]
            for name, value in held.items():
                if isinstance(value, Tensor) and value.dim() and len(value) == total:
                    held[name] = value[members]

    def state(self) -> dict[str, Tensor]:
        """See :class:`Optimizer`."""
        if self.inner is None:
            return {}
        return {
            f"{name}/{i}": torch.as_tensor(value).clone()
            for i, leaf in enumerate(self.leaves)
            for name, value in self.inner.state[leaf].items()
        }

    def restore(self, state: dict[str, Tensor], parameters: Sequence[Tensor]) -> None:
        """See :class:`Optimizer`."""
        if not state:
            return
        inner = self._made(parameters, 1.0)
        for key, value in state.items():
            name, _, index = key.rpartition("/")
            inner.state[self.leaves[int(index)]][name] = value.clone()


def _any(value: Number) -> bool:
    return bool((value != 0).any()) if isinstance(value, Tensor) else value != 0


def make(
    kind: str | type[torch.optim.Optimizer] | Callable[[], Optimizer], options: dict[str, Any]
) -> Optimizer:
    """The optimiser a recipe names.

    Raises:
        UsageError: MT411 for a class that is not elementwise, MT413 for an unknown name.
    """
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        return Elementwise(kind, **options)
    if callable(kind):
        return cast(Optimizer, kind())
    if kind == "sgd":
        return SGD(**options)
    if kind in ("adam", "adamw"):
        return Adam(**options, decoupled=kind == "adamw")
    raise UsageError(
        "MT413",
        f"no optimiser is called '{kind}'",
        fix=nearest(kind, ("sgd", "adam", "adamw")) or "give sgd, adam, adamw or a class of torch.optim",
    )


__all__ = ["ELEMENTWISE", "SGD", "Adam", "Elementwise", "Number", "Optimizer", "add_scaled", "along", "make"]
