"""Does each hidden unit climb its own energy? For every member of a population, at any moment of training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from microtome.learn.energy import centred_one_hot, unit_energy
from microtome.nn.modular_mlp import ModularMLP
from microtome.population.population import Population
from microtome.population.program import Loss, State


def energy_ascent(loss: Loss, x: Tensor, y: Tensor, classes: int) -> Callable[[Population], Tensor]:
    """A measure for a Recorder of networks :class:`ModularMLP`: [N, 2].

    First the mean over units of the cosine between descent of the loss and ascent of the unit's energy, both in what
    the unit receives (u, v); then the length of the loss's gradient there, the signal that reaches the hidden layer.

    Args:
        loss: what is minimised, without penalty or weight decay.
        x: [N, n, 2] the examples learnt from.
        y: [N, n].
        classes: answers there are.
    """

    def read(population: Population) -> Tensor:
        net = population.template
        assert isinstance(net, ModularMLP)

        def hidden(state: State, inputs: Tensor) -> Tensor:
            placed = (inputs[..., None] == torch.arange(net.p)).to(state["u"]).flatten(1)
            return net.activation(placed @ torch.cat([state["u"], state["v"]]))

        def one(state: State, inputs: Tensor, answers: Tensor) -> Tensor:
            down = grad(lambda s: loss(functional_call(net, s, (inputs,)), answers))(state)
            up = grad(lambda s: unit_energy(hidden(s, inputs), centred_one_hot(answers, classes)).sum())(
                state
            )
            moved, climbed = (torch.cat([g["u"], g["v"]]) for g in (down, up))
            return torch.stack([-F.cosine_similarity(moved, climbed, dim=0, eps=1e-30).mean(), moved.norm()])

        return vmap(one)(population.parameters, x, y)

    return read


__all__ = ["energy_ascent"]
