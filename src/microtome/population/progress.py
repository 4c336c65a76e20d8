"""Progress below the surface of a network that learns x + y mod p (Nanda et al. 2023): its losses by rotation alone.

Logits [..., p^2, p] are those of all pairs, in the order of :func:`microtome.data.modular.modular_pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.population.fourier import sum_coefficients, sum_waves


def key_frequencies(logits: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
    """(frequencies [..., count], share [...]): the largest parts cos(2 pi k (x + y - c) / p), and what they explain.

    The share is of the squared length of the logits less their mean over answers, pair by pair.
    """
    p = logits.shape[-1]
    power = sum_coefficients(logits)[..., 1:].square() * (p**3 / 2)
    largest, which = power.topk(count, -1)
    apart = logits.double() - logits.double().mean(-1, keepdim=True)
    return which + 1, largest.sum(-1) / apart.square().sum((-2, -1)).clamp(min=1e-300)


@dataclass(frozen=True)
class Progress:
    """Cross-entropies of one network.

    Attributes:
        train, test: as it is, on the pairs learnt from and on the others.
        restricted: on the others, with nothing left of the logits but their mean and the key waves of x + y.
        excluded: on the pairs learnt from, with the key waves taken away.
    """

    train: float
    test: float
    restricted: float
    excluded: float


def progress(logits: Tensor, answers: Tensor, trained: Tensor, frequencies: Tensor) -> Progress:
    """Of one network: logits [p^2, p], answers [p^2], trained [p^2], key frequencies [k]."""
    full = logits.double()
    waves = sum_waves(full.shape[-1], frequencies)
    key = waves @ (waves.T @ full)

    def loss(values: Tensor, of: Tensor) -> float:
        log_p = values.log_softmax(-1).gather(-1, answers[:, None])[:, 0]
        return float(-(log_p * of).sum() / of.sum())

    return Progress(
        train=loss(full, trained),
        test=loss(full, ~trained),
        restricted=loss(full.mean(0) + key, ~trained),
        excluded=loss(full - key, trained),
    )


def curves(logits: Tensor, answers: Tensor, trained: Tensor, frequencies: Tensor) -> Tensor:
    """[t, N, 4] train, test, restricted and excluded loss of logits [t, N, p^2, p]; the rest with N in front."""
    return torch.tensor(
        [
            [
                list(vars(progress(*given)).values())
                for given in zip(moment, answers, trained, frequencies, strict=True)
            ]
            for moment in logits
        ],
        dtype=torch.float64,
    )


__all__ = ["Progress", "curves", "key_frequencies", "progress"]
