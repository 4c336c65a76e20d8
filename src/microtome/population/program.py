"""The losses and gradients of all members as one batched program: traced once, run without autograd.

``vmap(grad(...))`` over stacked parameters already is one program, but each step pays for the transforms and
for autograd again. So the step is traced once a shape into a list of tensor operations, operations that
return their input are dropped, softmax over few classes is laid out so that it vectorises, and the list is
run. What cannot be traced runs under ``vmap``; what ``vmap`` has no rule for runs member by member.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call, grad_and_value, vmap

from microtome.population.lean import LAID_OUT, lean

Route = Literal["traced", "vmap", "sequential"]
State = dict[str, Tensor]
Loss = Callable[[Any, Tensor], Tensor]
"""(what the network returns for a batch, targets) -> a scalar."""


class SequentialWarning(UserWarning):
    """A population cannot be batched, which costs the time it was to save."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(target); [..., k] and whole numbers [...] -> scalar.

    As torch's own without class weights or ignored targets, whose handling costs a dozen small operations a step.
    """
    # Classes before examples: softmax over the last of few classes does not vectorise, over examples it does.
    log_p = F.log_softmax(logits.reshape(-1, logits.shape[-1]).mT, 0)
    return -log_p.gather(0, targets.reshape(1, -1)).mean()


class Program:
    """(parameters, buffers, inputs, targets) -> (loss [N], gradients, outputs [N, n, ...]).

    Args:
        model: the template; its own parameters are not used, its mode is.
        loss: see :data:`Loss`.
        private: whether inputs and targets have a dimension of members in front, each.
        penalty: added to the loss: parameters of one network, by name -> a scalar.
        at_once: members a call of the program; more are cut, so that memory stays bounded.
        route: where to start; what fails falls to the next, and :attr:`note` says so in one line.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        private: tuple[bool, bool],
        *,
        penalty: Callable[[State], Tensor] | None = None,
        at_once: int | None = None,
        route: Route = "traced",
    ) -> None:
        self.model, self.loss, self.penalty, self.at_once = model, loss, penalty, at_once
        self.route: Route = route
        self.note = ""
        self.private = private
        in_dims = (0, 0, 0 if private[0] else None, 0 if private[1] else None)
        self._one = grad_and_value(self._loss, has_aux=True)
        self._batched = vmap(self._one, in_dims=in_dims, randomness="different")
        self._traced: dict[tuple[Any, ...], fx.GraphModule] = {}

    def _loss(self, parameters: State, buffers: State, inputs: Any, targets: Tensor) -> tuple[Tensor, Any]:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        outputs = functional_call(self.model, (parameters, buffers), given)
        loss = self.loss(outputs, targets)
        return loss if self.penalty is None else loss + self.penalty(parameters), outputs

    def __call__(
        self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """One step of all members. Buffers that the forward writes into are written in place."""
        members = len(next(iter(parameters.values())))
        at_once = self.at_once or members
        if members <= at_once:
            return self._run(parameters, buffers, inputs, targets)
        parts = []
        for start in range(0, members, at_once):
            cut = slice(start, start + at_once)
            parts.append(
                self._run(
                    {k: v[cut] for k, v in parameters.items()},
                    {k: v[cut] for k, v in buffers.items()},
                    inputs[cut] if self.private[0] else inputs,
                    targets[cut] if self.private[1] else targets,
                )
            )
        gradients = {k: torch.cat([p[1][k] for p in parts]) for k in parameters}
        return torch.cat([p[0] for p in parts]), gradients, torch.cat([p[2] for p in parts])

    def _run(
        self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        given = (parameters, buffers, inputs, targets)
        while True:
            before = [b.clone() for b in buffers.values()] if self.route != "sequential" else []
            try:
                if self.route == "traced":
                    return self._by_trace(*given)
                if self.route == "vmap":
                    gradients, (loss, outputs) = self._batched(*given)
                    return loss, gradients, outputs
                return self._one_by_one(*given)
            # AssertionError: the tracer meets a tensor that is neither parameter nor buffer nor given
            except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
                if self.route == "sequential":
                    raise
                for buffer, old in zip(buffers.values(), before, strict=True):
                    buffer.copy_(old)
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                self.route = "vmap" if self.route == "traced" else "sequential"
                if self.route == "sequential":
                    self.note = f"members are trained one after another: {reason}"
                    warnings.warn(self.note, SequentialWarning, stacklevel=4)

    def _by_trace(
        self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        flat = [*parameters.values(), *buffers.values(), inputs, targets]
        key = tuple((t.shape, t.dtype, t.device) for t in flat)
        if key not in self._traced:
            self._traced[key] = self._trace(parameters, buffers, inputs, targets)
        loss, outputs, *rest = self._traced[key](*flat)
        for buffer, new in zip(buffers.values(), rest[len(parameters) :], strict=True):
            if new is not buffer:
                buffer.copy_(new)
        return loss, dict(zip(parameters, rest, strict=False)), outputs

    def _trace(self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor) -> fx.GraphModule:
        from torch.func import functionalize
        from torch.fx.experimental.proxy_tensor import make_fx

        names, held = list(parameters), list(buffers)

        def step(*flat: Tensor) -> list[Tensor]:
            own = dict(zip(names, flat, strict=False))
            kept = dict(zip(held, flat[len(names) : -2], strict=True))
            gradients, (loss, outputs) = self._batched(own, kept, *flat[-2:])
            if not isinstance(outputs, Tensor):
                raise TypeError("only a network that returns one tensor is traced")
            return [loss, outputs, *(gradients[n] for n in names), *(kept[n] for n in held)]

        flat = [*parameters.values(), *buffers.values(), inputs, targets]
        made = functionalize(step) if held else step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = make_fx(made, decomposition_table=LAID_OUT, tracing_mode="fake")(*flat)
        return lean(traced)

    def _one_by_one(
        self, parameters: State, buffers: State, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        losses, gradients, outputs = [], [], []
        for i in range(len(next(iter(parameters.values())))):
            found, (loss, output) = self._one(
                {k: v[i] for k, v in parameters.items()},
                {k: v[i] for k, v in buffers.items()},
                inputs[i] if self.private[0] else inputs,
                targets[i] if self.private[1] else targets,
            )
            losses.append(loss)
            gradients.append(found)
            outputs.append(output)
        stacked = {k: torch.stack([g[k] for g in gradients]) for k in parameters}
        return torch.stack(losses), stacked, torch.stack(outputs)


__all__ = ["Loss", "Program", "Route", "SequentialWarning", "State", "cross_entropy"]
