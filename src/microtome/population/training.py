"""Training a population: each member as if it were trained alone, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.population.denormals import flushed
from microtome.population.optimizers import Number, Optimizer, make
from microtome.population.population import Population
from microtome.population.program import Loss, Program, Route, State, cross_entropy


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; every number may be one for all members, or a tensor [N].

    Attributes:
        optimizer: "sgd", "adam", "adamw", or an elementwise class of ``torch.optim``.
        rate: learning rate.
        schedule: step (from 0) -> factor of the rate, a number or [N].
        options: of the optimiser: weight_decay, momentum, nesterov, betas, eps.
        epochs: passes over the data; or ``steps``: updates. One of the two.
        batch_size: examples an update; None is all of them.
        order: "private": each member goes through the data in its own order, which follows from its seed;
            "shared": all in the order of ``seed``; "drawn": each member draws every example of its batches anew,
            with replacement. Without batches there is no order.
        seed: of the shared order.
        loss: what is minimised (:data:`microtome.population.Loss`), for one network.
        penalty: added to the loss: parameters of one network, by name -> a scalar (a norm other than weight decay).
        members_at_once: networks computed together (None: all); smaller takes less memory.
        route: which program to try first (see :class:`Program`).
    """

    optimizer: str | type[torch.optim.Optimizer] | Callable[[], Optimizer] = "sgd"
    rate: Number = 0.1
    schedule: Callable[[int], Number] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    order: Literal["private", "shared", "drawn"] = "private"
    seed: int = 0
    loss: Loss = cross_entropy
    penalty: Callable[[State], Tensor] | None = None
    members_at_once: int | None = None
    route: Route = "traced"


@dataclass(frozen=True)
class Moment:
    """What an observer sees. ``population`` is the live one: copy what is to be kept.

    Attributes:
        step: updates made so far.
        loss: [N] of the batch the last update was made on; NaN before the first, and for members that have stopped.
        last: whether training ends here.
    """

    step: int
    epoch: float
    population: Population
    loss: Tensor
    last: bool
    state: Callable[[], dict[str, Tensor]]
    """Of the optimiser, to go on from here."""


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        loss: [N] of the last batch each member saw.
        steps: [N] updates each member made.
        route: the program that ran, and ``note`` why it was not a faster one.
    """

    loss: Tensor
    steps: Tensor
    route: Route
    note: str


Observer = Callable[[Moment], None]
Stop = Callable[[Moment], Tensor]
"""Which members have had enough: [N] of truth values."""


def orders(seeds: Sequence[int], epoch: int, count: int, *, drawn: bool = False) -> Tensor:
    """[N, count] the order in which each member sees the data in an epoch; the same for the same seed, wherever.

    A permutation, or with ``drawn`` as many independent draws with replacement.
    """
    found = torch.empty(len(seeds), count, dtype=torch.int64)
    draw = torch.Generator()
    for row, seed in zip(found, seeds, strict=True):
        draw.manual_seed((int(seed) * 1_000_003 + epoch) % (1 << 63))
        if drawn:
            torch.randint(count, (count,), generator=draw, out=row)
        else:
            torch.randperm(count, generator=draw, out=row)
    return found


@flushed()
def train(
    population: Population,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    private: tuple[bool, bool] = (False, False),
    observers: Sequence[tuple[Observer, Callable[[int], bool]]] = (),
    until: Stop | None = None,
    check_every: int = 1,
    state: Mapping[str, Tensor] | None = None,
    start: int = 0,
) -> Trained:
    """Train all members in place.

    Args:
        inputs: [n, ...], or [N, n, ...] when ``private[0]``.
        targets: [n, ...], or [N, n, ...] when ``private[1]`` (label noise of each member's own).
        observers: (observer, whether it wants this step); see :func:`every`. Each is also called at the end.
        until: asked every ``check_every`` steps; a member that has had enough is left as it is from then on.
        state, start: optimiser state and step to go on from (:class:`Recorder` keeps both).

    Raises:
        UsageError: MT405 for a recipe without an end or with two, or rates that do not fit the members; MT406 for
            inputs and targets of different length.
    """
    count = _check(population, inputs, targets, recipe, private)
    size = min(recipe.batch_size or count, count)
    per_epoch = -(-count // size)
    total = recipe.steps if recipe.steps is not None else (recipe.epochs or 0) * per_epoch
    whole = size == count
    own = not whole and recipe.order != "shared"  # each member has a batch of its own
    optimizer = make(recipe.optimizer, dict(recipe.options))
    program = Program(
        population.template,
        recipe.loss,
        (private[0] or own, private[1] or own),
        penalty=recipe.penalty,
        at_once=recipe.members_at_once,
        route=recipe.route,
    )
    run = _Run(population, optimizer, recipe)
    if state:
        optimizer.restore(dict(state), list(run.parameters.values()))
    run.observe(observers, start, start / per_epoch, start >= total)
    order = torch.empty(0)
    for step in range(start, total):
        epoch, place = divmod(step, per_epoch)
        if whole:
            x, y = run.cut(inputs, private[0]), run.cut(targets, private[1])
        else:
            if place == 0 or step == start:
                order = _order(population, recipe, epoch, count)
            index = order[:, place * size : (place + 1) * size].to(inputs.device)
            x = run.batch(inputs, private[0], index)
            y = run.batch(targets, private[1], index)
        run.update(program, x, y, step)
        done = step + 1
        if until is not None and (done % check_every == 0 or done == total):
            run.stop(until, done, done / per_epoch)
        last = done == total or not len(run.active)
        run.observe(observers, done, done / per_epoch, last)
        if last:
            break
    run.write_back()
    return Trained(run.loss, run.steps, program.route, program.note)


def every(steps: int) -> Callable[[int], bool]:
    """Wants step 0 and every ``steps``-th."""
    return lambda step: step % steps == 0


def geometric(total: int, points: int = 50) -> Callable[[int], bool]:
    """Wants step 0 and about ``points`` steps, ever further apart, up to ``total``."""
    wanted = {0, total} | {round(total ** (i / max(points - 1, 1))) for i in range(points)}
    return wanted.__contains__


class _Run:
    """The working state: the members still training, cut out of the population once half of them have stopped."""

    def __init__(self, population: Population, optimizer: Optimizer, recipe: Recipe) -> None:
        self.population, self.optimizer, self.recipe = population, optimizer, recipe
        self.parameters: State = population.parameters
        self.buffers: State = population.buffers
        self.masks: State = population.masks
        n = len(population)
        self.active = torch.arange(n)  # members in the working tensors that still train
        self.rows = torch.arange(n)  # members in the working tensors
        self.loss = torch.full((n,), float("nan"))
        self.steps = torch.zeros(n, dtype=torch.int64)
        self.kept: list[tuple[Tensor, State, State]] = []
        population.apply_masks()

    def cut(self, tensor: Tensor, private: bool) -> Tensor:
        return tensor[self.rows] if private and len(self.rows) < len(self.population) else tensor

    def batch(self, tensor: Tensor, private: bool, index: Tensor) -> Tensor:
        """The examples of this update: [b, ...] of a shared order, else [N, b, ...]."""
        shared = self.recipe.order == "shared"
        if shared and not private:
            return tensor[index[0]]
        index = index.expand(len(self.rows), -1) if shared else index[self.rows]
        if private:
            return self.cut(tensor, True)[torch.arange(len(self.rows), device=index.device)[:, None], index]
        taken = tensor.index_select(0, index.reshape(-1))
        return taken.view(*index.shape, *tensor.shape[1:])

    def update(self, program: Program, x: Tensor, y: Tensor, step: int) -> None:
        loss, gradients, _ = program(self.parameters, self.buffers, x, y)
        for name, mask in self.masks.items():
            gradients[name] = gradients[name] * mask
        rate = self.recipe.rate
        if self.recipe.schedule is not None:
            rate = rate * self.recipe.schedule(step)
        if isinstance(rate, Tensor) and rate.dim() and len(self.rows) < len(self.population):
            rate = rate[self.rows]
        held = list(self.parameters.values())
        self.optimizer.step(held, [gradients[k] for k in self.parameters], rate)
        if len(self.active) == len(self.population):
            self.loss = loss
        else:
            places = torch.isin(self.rows, self.active)
            self.loss = self.loss.clone()
            self.loss[self.active] = loss[places.to(loss.device)]
        self.steps[self.active] += 1

    def stop(self, until: Stop, done: int, epoch: float) -> None:
        self.write_back()
        enough = until(self._moment(done, epoch, False)).cpu()
        leaving = self.active[enough[self.active]]
        if not len(leaving):
            return
        places = torch.isin(self.rows, leaving)
        self.kept.append(
            (
                leaving,
                {k: v[places.to(v.device)].clone() for k, v in self.parameters.items()},
                {k: v[places.to(v.device)].clone() for k, v in self.buffers.items()},
            )
        )
        self.active = self.active[~torch.isin(self.active, leaving)]
        if 0 < len(self.active) <= len(self.rows) // 2:
            index = torch.isin(self.rows, self.active).nonzero()[:, 0]
            self.rows = self.rows[index]
            self.parameters = {k: v[index.to(v.device)] for k, v in self.parameters.items()}
            self.buffers = {k: v[index.to(v.device)] for k, v in self.buffers.items()}
            self.masks = {k: v[index.to(v.device)] for k, v in self.masks.items()}
            self.optimizer.keep(index, list(self.parameters.values()))

    def write_back(self) -> None:
        """Bring the population up to date: members that still train as they are, the others as they stopped."""
        population = self.population
        if self.parameters is not population.parameters:  # cut out: what still trains is not in place
            for held, ours in ((population.parameters, self.parameters), (population.buffers, self.buffers)):
                for name, value in ours.items():
                    held[name][self.rows.to(value.device)] = value
        for members, parameters, buffers in self.kept:
            for held, old in ((population.parameters, parameters), (population.buffers, buffers)):
                for name, value in old.items():
                    held[name][members.to(value.device)] = value

    def _moment(self, step: int, epoch: float, last: bool) -> Moment:
        return Moment(step, epoch, self.population, self.loss, last, self.optimizer.state)

    def observe(
        self, observers: Sequence[tuple[Observer, Callable[[int], bool]]], step: int, epoch: float, last: bool
    ) -> None:
        wanting = [observer for observer, wants in observers if last or wants(step)]
        if wanting:
            self.write_back()
            moment = self._moment(step, epoch, last)
            for observer in wanting:
                observer(moment)


def _order(population: Population, recipe: Recipe, epoch: int, count: int) -> Tensor:
    seeds = [recipe.seed] if recipe.order == "shared" else population.seeds
    return orders(seeds, epoch, count, drawn=recipe.order == "drawn")


def _check(
    population: Population, inputs: Tensor, targets: Tensor, recipe: Recipe, private: tuple[bool, bool]
) -> int:
    if (recipe.epochs is None) == (recipe.steps is None):
        raise UsageError("MT405", "a recipe ends after epochs or after steps", fix="give one of the two")
    if recipe.batch_size is not None and recipe.batch_size < 1:
        raise UsageError(
            "MT405", f"a batch of {recipe.batch_size} examples", fix="give at least 1, or None for all"
        )
    members = len(population)
    for name, value in {"rate": recipe.rate, **recipe.options}.items():
        if isinstance(value, Tensor) and value.dim() and value.shape != (members,):
            raise UsageError(
                "MT405",
                f"{name} has {list(value.shape)} values for {members} members",
                fix="give one each, or one",
            )
    lengths = [t.shape[1 if own else 0] for t, own in zip((inputs, targets), private, strict=True)]
    if lengths[0] != lengths[1] or not lengths[0]:
        raise UsageError(
            "MT406", f"{lengths[0]} inputs and {lengths[1]} targets", fix="give one target for each example"
        )
    for tensor, own, name in zip((inputs, targets), private, ("inputs", "targets"), strict=True):
        if own and len(tensor) != members:
            raise UsageError(
                "MT406",
                f"{name} of {len(tensor)} members for {members}",
                fix=f"give {name} as [{members}, n, ...]",
            )
    return lengths[0]


__all__ = ["Moment", "Observer", "Recipe", "Stop", "Trained", "every", "geometric", "orders", "train"]
