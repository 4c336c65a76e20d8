"""Muon on stacked parameters: momentum whose matrix is made orthogonal, for every member at once (Jordan 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from microtome.population.optimizers import Number, _Held, add_scaled, along

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that takes singular values in 0..1 to about 0.7..1.2 in a few rounds."""


def orthogonalised(matrices: Tensor, rounds: int = 5) -> Tensor:
    """[..., a, b] about U V^T of each matrix's singular value decomposition U S V^T, by products alone."""
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if turned else x


class Muon(_Held):
    """v = momentum v + g; p -= rate (0.2 sqrt(max(a, b)) orthogonalised(g + momentum v) + decay p).

    With the factor an update has the size that Adam's has, so that rates carry over (Liu et al. 2025). Matrices [a, b]
    only: ``Recipe(optimizer=Muon)``.
    """

    def __init__(self, *, momentum: float = 0.95, weight_decay: Number = 0.0) -> None:
        super().__init__()
        self.hyper = {"weight_decay": weight_decay}
        self.momentum = momentum

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Number) -> None:
        """See :class:`microtome.population.optimizers.Optimizer`."""
        velocity = self._slot("velocity", parameters)
        self.steps += 1
        for p, g, v in zip(parameters, gradients, velocity, strict=True):
            v.mul_(self.momentum).add_(g)
            update = 0.2 * max(p.shape[-2:]) ** 0.5 * orthogonalised(g + self.momentum * v)
            update = update + along(self.hyper["weight_decay"], p) * p
            add_scaled([p], [update], -rate)


__all__ = ["Muon", "orthogonalised"]
