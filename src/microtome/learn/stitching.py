"""Join the first layers of one network to the last of another by one affine map (Csiszarik et al. 2021; Lenc 2015).

The map acts on units: of [n, d] on all of them, of [n, c, h, w] on the channels of each position (a 1 x 1 convolution).
It is fitted to the activations (:func:`affine_map`), or trained through the loss of the second network, which stays as
it is::

    stitched = Stitched(a[:4], b[4:], *affine_map(a[:4](x), b[:4](x)))
    train(Population([stitched]), x, y, recipe)         # only the map learns
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.errors import UsageError, nearest

Kind = Literal["least squares", "orthogonal", "permutation"]
KINDS: tuple[Kind, ...] = ("least squares", "orthogonal", "permutation")


class Stitched(nn.Module):
    """x -> tail(map(front(x))); front and tail are frozen.

    Args:
        front: gives [n, d] or [n, d, ...].
        tail: takes [n, e] or [n, e, ...].
        weight: [e, d] where the map starts.
        bias: [e].
    """

    def __init__(self, front: nn.Module, tail: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.front, self.tail = front, tail
        for held in (front, tail):
            held.requires_grad_(False)
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """What the second network makes of the first one's activations."""
        return self.tail(F.linear(self.front(x).movedim(1, -1), self.weight, self.bias).movedim(-1, 1))


def affine_map(
    a: Tensor, b: Tensor, kind: Kind = "least squares", *, rank: int | None = None, ridge: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """(weight [e, d], bias [e]) that takes activations a of one network to b of another, on the same inputs.

    "least squares": the smallest squared distance; with ``rank``, the smallest among maps of that rank (reduced-rank
    regression, Izenman 1975). "orthogonal": among rotations and reflections (Schoenemann 1966), d = e. "permutation":
    each unit takes its one-to-one match, scaled to its own mean and deviation.

    Args:
        a: [n, d] or [n, d, h, w].
        b: [n, e] or [n, e, h, w], of the same positions.
        kind: see above.
        rank: of a least-squares map.
        ridge: share of the mean variance of a unit that is added to each, so that dead units do no harm.

    Raises:
        UsageError: MT495 for activations of other positions, an unknown kind, or a rank with another kind.
    """
    if kind not in KINDS:
        raise UsageError("MT495", f"no map is called '{kind}'", fix=nearest(kind, KINDS) or ", ".join(KINDS))
    if rank is not None and kind != "least squares":
        raise UsageError("MT495", f"a rank is of a least-squares map, not of '{kind}'", fix="leave rank out")
    x, y = (t.detach().double().movedim(1, -1).flatten(0, -2) for t in (a, b))
    if len(x) != len(y):
        raise UsageError(
            "MT495",
            f"activations {list(a.shape)} and {list(b.shape)} are not of the same examples and positions",
            fix="stitch layers of one resolution",
        )
    mean, goal = x.mean(0), y.mean(0)
    x, y = x - mean, y - goal
    cross = x.T @ y
    if kind == "orthogonal":
        u, _, vh = torch.linalg.svd(cross, full_matrices=False)
        weight = (u @ vh).T
    elif kind == "permutation":
        from scipy.optimize import linear_sum_assignment

        scale = x.norm(dim=0), y.norm(dim=0)
        correlation = cross / (scale[0][:, None] * scale[1]).clamp(min=1e-12)
        first, second = (
            torch.as_tensor(i) for i in linear_sum_assignment(correlation.numpy(), maximize=True)
        )
        weight = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype)
        weight[second, first] = scale[1][second] / scale[0][first].clamp(min=1e-12)
        weight[:, scale[0] <= 1e-12] = 0
    else:
        gram = x.T @ x
        gram = gram + max(ridge * float(gram.diagonal().mean()), 1e-12) * torch.eye(
            len(gram), dtype=gram.dtype
        )
        weight = torch.linalg.solve(gram, cross).T
        if rank is not None:  # the fitted values' leading directions
            vectors = torch.linalg.eigh(weight @ gram @ weight.T)[1][:, -rank:]
            weight = vectors @ vectors.T @ weight
    return weight.to(a), (goal - weight @ mean).to(a)


__all__ = ["KINDS", "Kind", "Stitched", "affine_map"]
