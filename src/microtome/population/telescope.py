"""Training as a chain of first-order steps (Jeffares, Curth & van der Schaar 2024), recorded while a population trains.

A trained network is f_0(x) + sum over steps of J_(t-1)(x) (w_t - w_(t-1)), up to the curvature of single steps: each
step is linear in the change of weights though the whole is not. For squared error that makes the answers linear in the
training labels, with weights that count how many parameters training has used, at training and at unseen points apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vmap

from microtome.errors import UsageError
from microtome.population.optimizers import Number
from microtome.population.population import Population
from microtome.population.program import State
from microtome.population.tangent_kernel import jacobians
from microtome.population.training import Moment


def _change(population: Population, at: State, by: State, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(answers, first-order change of answers) [N, n, ...] of networks at some weights when these change."""
    was = population.template.training
    population.template.eval()

    def one(weights: State, buffers: State, delta: State) -> tuple[Tensor, Tensor]:
        def answer(own: State) -> Tensor:
            out: Tensor = functional_call(population.template, (own, buffers), (inputs,))
            return out

        value, change = jvp(answer, (weights,), (delta,))  # type: ignore[misc]
        return value, change

    try:
        with torch.no_grad():
            found: tuple[Tensor, Tensor] = vmap(one)(at, population.buffers, by)
    finally:
        population.template.train(was)
    return found


def linearised(start: Population, end: Population, inputs: Tensor) -> Tensor:
    """[N, n, ...] f_0(x) + J_0(x) (w_T - w_0): the first-order model of all of training in one step."""
    by = {k: end.parameters[k] - p for k, p in start.parameters.items()}
    value, change = _change(start, start.parameters, by, inputs)
    return value + change


class Telescope:
    """An observer of every step: the sum of first-order changes of the answers at given inputs.

    Whatever the optimiser, loss and batches. One forward-mode pass over the inputs a step. ::

        telescope = Telescope(population, x)
        train(population, ..., observers=[(telescope, every(1))])
        telescope.estimate                          # [N, n, k], beside population.predict(x)

    Seen less often it takes several steps for one.
    """

    def __init__(self, population: Population, inputs: Tensor) -> None:
        self.inputs = inputs
        self.estimate = population.predict(inputs)
        self.before = {k: p.clone() for k, p in population.parameters.items()}

    def __call__(self, moment: Moment) -> None:
        """Add the steps made since the last call."""
        now = moment.population.parameters
        by = {k: now[k] - p for k, p in self.before.items()}
        self.estimate = self.estimate + _change(moment.population, self.before, by, self.inputs)[1]
        self.before = {k: p.clone() for k, p in now.items()}


class Smoother:
    """An observer of full-batch descent on half squared error: the weights that answers give to training labels.

    f(x) = c(x) + S(x) y with S <- S + rate / n K_(t-1) (I - S_train) and c <- c - rate / n K_(t-1) c_train, where K is
    the tangent kernel between all points and those of training. Seen less often than every step, it holds the kernel in
    between, which is cheaper and less exact.

    Attributes:
        weights: [N, m, n] S: training points first, then others.
        offset: [N, m] c.

    Args:
        population: networks of one output.
        train: [n, ...] inputs in the order of training.
        others: [m - n, ...] further inputs.
        rate: the learning rate of the recipe, or one a member [N].
    """

    def __init__(self, population: Population, train: Tensor, others: Tensor, rate: Number) -> None:
        self.inputs, self.n, self.step = torch.cat([train, others]), len(train), 0
        answers = population.predict(self.inputs)
        if answers[0, 0].numel() != 1:
            raise UsageError(
                "MT464", "label weights are of networks with one output", fix="train one a class"
            )
        self.offset = answers.flatten(1)
        self.weights = torch.zeros(*self.offset.shape, self.n).to(self.offset)
        self.rate = torch.as_tensor(rate).to(self.offset).expand(len(population))[:, None, None]
        self.kernels = self._kernels(population)

    def _kernels(self, population: Population) -> Tensor:
        found = (j[:, 0] for j in jacobians(population, self.inputs))
        return torch.stack([j @ j[: self.n].T for j in found])  # [N, m, n]

    def __call__(self, moment: Moment) -> None:
        """Take the steps made since the last call."""
        if moment.step == self.step:
            return
        eye, step = torch.eye(self.n).to(self.weights), self.rate / self.n * self.kernels
        for _ in range(moment.step - self.step):
            self.weights = self.weights + step @ (eye - self.weights[:, : self.n])
            self.offset = self.offset - (step @ self.offset[:, : self.n, None])[..., 0]
        self.step = moment.step
        self.kernels = self._kernels(moment.population)

    def estimate(self, targets: Tensor) -> Tensor:
        """[N, m] answers as a sum of training labels [n]."""
        return self.offset + self.weights @ targets.flatten()

    def effective_parameters(self) -> tuple[Tensor, Tensor]:
        """([N], [N]) n times the mean squared length of the weights, over training and over other points.

        As many as a linear smoother of that many parameters would have (Curth, Jeffares & van der Schaar 2023); the
        two differ where training points are answered by other means than unseen ones.
        """
        each = self.n * self.weights.square().sum(-1)
        return each[:, : self.n].mean(1), each[:, self.n :].mean(1)


__all__ = ["Smoother", "Telescope", "linearised"]
