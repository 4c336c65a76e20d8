"""Moves in parameter space that remove weights or round them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microtome.signals.expression import ParameterChange
from microtome.signals.noise import row_uniform
from microtome.subject import Subject


@dataclass(frozen=True)
class MagnitudePruned(ParameterChange):
    """The smallest weights set to zero.

    Args:
        names: parameter tensors, judged together: several share one threshold.
        fraction: share of their weights that goes, to the nearest weight; ties go in order of position.
    """

    names: tuple[str, ...]
    fraction: float

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The pruned tensors."""
        return _pruned(self, parameters, lambda flat: flat.abs())


@dataclass(frozen=True)
class RandomPruned(ParameterChange):
    """As many weights set to zero, chosen by chance: the control of :class:`MagnitudePruned`."""

    names: tuple[str, ...]
    fraction: float
    seed: int = 0

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The pruned tensors."""
        return _pruned(
            self, parameters, lambda flat: row_uniform(torch.arange(len(flat), device=flat.device), self.seed)
        )


@dataclass(frozen=True)
class Rounded(ParameterChange):
    """Weights rounded to whole multiples of a step, one step for each output channel, and kept as they were stored.

    With q = 2^(bits - 1) - 1 and s = max |w| / q over a channel: w -> s * round(w / s), between -q s and q s; halves
    go to the even multiple. So 0 stays 0, the largest weight stays itself, and 2 bits leave three values.

    Args:
        names: parameter tensors.
        bits: of a weight, 2 or more.
    """

    names: tuple[str, ...]
    bits: int

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The rounded tensors."""
        return {name: rounded(parameters[name], self.bits, _channels(subject, name)) for name in self.names}


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _channels(subject: Subject, name: str) -> int:
    """Dimension of a weight that counts its outputs: the second of a transposed convolution, else the first."""
    owner = dict(subject.model.named_modules()).get(name.rpartition(".")[0])
    return 1 if isinstance(owner, _TRANSPOSED) else 0


def rounded(weight: Tensor, bits: int, channel: int = 0) -> Tensor:
    """A weight on the nearest of 2^bits - 1 evenly spaced values around 0, a step for each entry of ``channel``."""
    levels = 2 ** (bits - 1) - 1
    exact = weight.double()  # half a step must not be decided by the rounding of the division
    others = [d for d in range(weight.dim()) if d != channel]
    step = exact.abs().amax(others, keepdim=True) / levels
    return (torch.where(step > 0, (exact / step).round(), 0.0) * step).to(weight.dtype)


def _pruned(
    how: MagnitudePruned | RandomPruned, parameters: Mapping[str, Tensor], keys: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]:
    tensors = [parameters[name] for name in how.names]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    kept = ~smallest(keys(flat), round(how.fraction * len(flat)))
    pieces = torch.where(kept, flat, torch.zeros_like(flat)).split([t.numel() for t in tensors])
    # Tensors of several types, joined, took the widest one.
    return {
        name: piece.reshape(t.shape).to(t.dtype)
        for name, piece, t in zip(how.names, pieces, tensors, strict=True)
    }


def smallest(keys: Tensor, count: int) -> Tensor:
    """[p] bool: exactly ``count`` entries, the smallest; of equal ones the first."""
    if count <= 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    keys = keys.float() if keys.dtype in (torch.bfloat16, torch.float16) else keys
    edge = keys.kthvalue(min(count, len(keys))).values
    chosen = keys < edge
    ties = (keys == edge).nonzero()[:, 0]
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
