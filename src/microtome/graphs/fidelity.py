"""Fidelity of explanations, and its robust form, in PyTorch Geometric's metric conventions.

``torch_geometric.explain.metric.fidelity`` removes the whole explanation, or all the rest: unlike any graph the network
was trained on. The robust measures take away a random part only, and average (Zheng et al. 2024): RFid+ drops each edge
of the explanation with probability ``alpha1``; RFid- keeps the explanation and each other edge with probability
``alpha2``. With ``alpha1 = 1`` and ``alpha2 = 0`` they are PyTorch Geometric's for hard edge masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microtome.errors import UsageError


def robust_fidelity(
    explainer: Any,
    explanation: Any,
    *,
    alpha1: float = 0.1,
    alpha2: float = 0.9,
    samples: int = 20,
    soft: bool = False,
    seed: int = 0,
) -> tuple[float, float]:
    """(RFid+, RFid-): the first is to be high, the second low.

    Args:
        explainer: PyTorch Geometric's ``Explainer`` that made the explanation.
        explanation: with an ``edge_mask`` [edges]; edges with a positive value are the explanation, so threshold it.
        alpha1: share of the explanation's edges that RFid+ drops.
        alpha2: share of the other edges that RFid- keeps.
        samples: draws to average over.
        soft: the loss of probability of the target class instead of the share of changed answers.
        seed: of the draws.

    Raises:
        UsageError: MT449 for regression models, an explanation without edges, or shares outside 0..1.
    """
    plus, minus = fidelity_gaps(
        explainer, explanation, alpha1=alpha1, alpha2=alpha2, samples=samples, soft=soft, seed=seed
    )
    return float(plus.mean()), float(minus.mean())


def fidelity_gaps(
    explainer: Any,
    explanation: Any,
    *,
    alpha1: float = 0.1,
    alpha2: float = 0.9,
    samples: int = 20,
    soft: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """As :func:`robust_fidelity`, of each answer alone: two tensors [t]; for a batch of graphs one number a graph."""
    mask = explanation.get("edge_mask")
    if mask is None or explainer.model_config.mode.value == "regression":
        raise UsageError("MT449", "robust fidelity needs a classifier and an explanation with an edge mask")
    if not (0 <= alpha1 <= 1 and 0 <= alpha2 <= 1 and samples > 0):
        raise UsageError("MT449", f"alpha1={alpha1}, alpha2={alpha2} are not in 0..1, or samples={samples}")
    inside = mask > 0
    generator = torch.Generator().manual_seed(seed)
    kwargs = {key: explanation[key] for key in explanation._model_args}
    y = _at(explanation, explanation.target)
    reference = _agreement(explainer, explanation, torch.ones_like(mask), y, soft, kwargs)
    if not soft and explainer.explanation_type.value == "model":
        reference = torch.ones_like(reference)
    found = []
    for share, part in ((1 - alpha1, inside), (alpha2, ~inside)):
        gaps = []
        for _ in range(samples if 0 < share < 1 else 1):
            kept = torch.rand(len(mask), generator=generator) < share
            drawn = torch.where(part, kept.to(mask.dtype), torch.ones_like(mask))
            gap = reference - _agreement(explainer, explanation, drawn, y, soft, kwargs)
            gaps.append(gap if soft else gap.abs())
        found.append(torch.stack(gaps).mean(0))
    return found[0], found[1]


def _at(explanation: Any, values: Tensor) -> Tensor:
    index = explanation.get("index")
    return values if index is None else values[index]


def _agreement(
    explainer: Any, explanation: Any, edges: Tensor, y: Tensor, soft: bool, kwargs: dict[str, Any]
) -> Tensor:
    """Whether the network gives y with these edges alone, or with which probability."""
    answer = explainer.get_masked_prediction(explanation.x, explanation.edge_index, None, edges, **kwargs)
    if not soft:
        return (_at(explanation, explainer.get_target(answer)) == y).float()
    kind = explainer.model_config.return_type.value
    answer = _at(explanation, answer)
    chance = {"raw": lambda a: a.softmax(-1), "probs": lambda a: a, "log_probs": torch.exp}[kind](answer)
    return chance.gather(-1, y.reshape(-1, 1))[:, 0]


__all__ = ["fidelity_gaps", "robust_fidelity"]
