"""The largest curvature of the loss, and other states of trainability, for every member of a population at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from microtome.population.population import Population
from microtome.population.program import Loss, State, cross_entropy


def extreme_curvatures(
    population: Population,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = cross_entropy,
    private: tuple[bool, bool] = (False, False),
    steps: int = 16,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """([N], [N]) smallest and largest eigenvalue of the Hessian of the loss, by Lanczos; in eval mode.

    Ritz values: never outside the spectrum save rounding, and near its ends after a few steps. Costs about 3
    gradients a step, all members at once; keeps ``steps`` vectors a member.

    Args:
        population: of N members.
        inputs: [n, ...], or [N, n, ...] when ``private[0]``.
        targets: [n, ...], or [N, n, ...] when ``private[1]``.
        loss: of one network.
        private: see :func:`microtome.population.train`.
        steps: products with the Hessian; at most as many as there are parameters.
        seed: of the first vector, the same for all members.
    """
    shapes = {k: p.shape[1:] for k, p in population.parameters.items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def product(own: State, buffers: State, x: Tensor, y: Tensor, vector: Tensor) -> Tensor:
        def slope(weights: State) -> State:
            return grad(lambda w: loss(functional_call(population.template, (w, buffers), (x,)), y))(weights)

        parts = zip(shapes, vector.split(sizes), strict=True)
        along = {k: part.view(shapes[k]) for k, part in parts}
        image: State = jvp(slope, (own,), (along,))[1]
        return torch.cat([image[k].reshape(-1) for k in shapes])

    many = vmap(product, in_dims=(0, 0, 0 if private[0] else None, 0 if private[1] else None, 0))
    n, count = len(population), min(steps, sum(sizes))
    first = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).to(population.vectors())
    basis = [(first / first.norm()).expand(n, -1)]
    table = torch.zeros(n, count, count, dtype=torch.float64)
    was = population.template.training
    population.template.eval()
    try:
        with torch.no_grad():
            for i in range(count):
                image = many(population.parameters, population.buffers, inputs, targets, basis[-1])
                table[:, i, i] = (image * basis[-1]).sum(1)
                held = torch.stack(basis, 1)  # [N, i + 1, p]
                for _ in range(2):  # twice is enough for rounding
                    image = image - torch.einsum("nip,ni->np", held, torch.einsum("nip,np->ni", held, image))
                length = image.norm(dim=1)
                if i + 1 == count or float(length.max()) < 1e-12:
                    count = i + 1
                    break
                table[:, i, i + 1] = table[:, i + 1, i] = length
                basis.append(image / length.clamp(min=1e-30)[:, None])
    finally:
        population.template.train(was)
    found = torch.linalg.eigvalsh(table[:, :count, :count]).to(first)
    return found[:, 0], found[:, -1]


def sharpness(
    population: Population,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = cross_entropy,
    private: tuple[bool, bool] = (False, False),
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """[N] size of the largest curvature, of either sign: see :func:`extreme_curvatures`."""
    ends = extreme_curvatures(population, inputs, targets, loss=loss, private=private, steps=steps, seed=seed)
    return torch.stack(ends).abs().amax(0)


def effective_rank(features: Tensor) -> Tensor:
    """[N] exp of the entropy of the normalised singular values (Roy & Vetterli 2007) of [N, n, d], uncentred."""
    s = torch.linalg.svdvals(features.double())
    p = s / s.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.special.entr(p).sum(-1).exp()


def dead_share(features: Tensor) -> Tensor:
    """[N] share of units of [N, n, d] that are 0 for every example, as ReLU units are that no longer learn."""
    return (features == 0).all(1).double().mean(-1)


__all__ = ["dead_share", "effective_rank", "extreme_curvatures", "sharpness"]
