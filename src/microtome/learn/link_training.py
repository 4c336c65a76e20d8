"""Training a scorer of facts: one loop, and the losses whose choice decides comparisons of such scorers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.learn.link_ranking import all_scores, scorer

FactLoss = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(model, head [b], relation [b], tail [b]) -> scalar."""


def fit_facts(
    model: nn.Module,
    facts: Tensor,
    *,
    loss: FactLoss,
    epochs: int = 100,
    rate: float = 0.01,
    batch_size: int | None = 512,
    optimiser: type[torch.optim.Optimizer] = torch.optim.Adam,
    unit_entities: bool = False,
    seed: int = 0,
    after_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train on true facts; what is false is drawn by the loss. In eval mode after.

    Args:
        model: a ``KGEModel`` of PyTorch Geometric.
        facts: [n, 3] head, relation, tail.
        loss: :func:`own_loss`, :func:`sampled_loss`, :func:`full_loss`.
        epochs, rate, optimiser: as usual.
        batch_size: facts an update; None is all of them.
        unit_entities: after every update entities are scaled to length 1 (TransE, DistMult), which keeps a margin
            from being met by growing.
        seed: of the order and of what is drawn; the random state is left as found.
        after_epoch: called with the number of epochs done; it may leave the model in eval mode.
    """
    steps = optimiser(model.parameters(), lr=rate)  # type: ignore[call-arg]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            model.train()
            for some in torch.randperm(len(facts)).split(batch_size or len(facts)):
                steps.zero_grad()
                loss(model, *facts[some].unbind(1)).backward()
                steps.step()
                if unit_entities:
                    with torch.no_grad():
                        model.node_emb.weight.copy_(F.normalize(model.node_emb.weight, dim=1))  # type: ignore
            if after_epoch is not None:
                after_epoch(epoch + 1)
    return model.eval()


def own_loss(model: Any, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    """What the model brings with it: the margin between a fact and one corruption, for TransE and DistMult."""
    return model.loss(head, relation, tail)


def sampled_loss(negatives: int = 1, penalty: float = 0.0) -> FactLoss:
    """Cross-entropy of true against false (Trouillon et al. 2016, R-GCN): each fact and its corruptions.

    Half of the corruptions replace the head by any entity, half the tail; with an odd number, a coin decides the last.

    Args:
        negatives: corruptions of each fact.
        penalty: factor of :func:`mean_square`.
    """

    def loss(model: Any, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        h, r, t = (each.repeat(negatives) for each in (head, relation, tail))
        drawn = torch.randint(model.num_nodes, h.shape, device=h.device)
        side = torch.arange(negatives, device=h.device).repeat_interleave(len(head)) % 2 == 0
        if negatives % 2:
            side[-len(head) :] = torch.rand(len(head), device=h.device) < 0.5
        h, t = torch.where(side, drawn, h), torch.where(side, t, drawn)
        model = scorer(model)
        scores = model(torch.cat([head, h]), torch.cat([relation, r]), torch.cat([tail, t]))
        truth = (torch.arange(len(scores), device=h.device) < len(head)).to(scores)
        return F.binary_cross_entropy_with_logits(scores, truth) + penalty * mean_square(model)

    return loss


def full_loss(penalty: float = 0.0) -> FactLoss:
    """Cross-entropy of the right entity among all, for the tail and for the head (Lacroix, Usunier & Obozinski 2018).

    Args:
        penalty: factor of :func:`mean_square`.
    """

    def loss(model: Any, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        model = scorer(model)
        tails, heads = all_scores(model, head, relation, tail)
        return F.cross_entropy(tails, tail) + F.cross_entropy(heads, head) + penalty * mean_square(model)

    return loss


def mean_square(model: Any) -> Tensor:
    """Mean square of entities plus that of relations, as facts are scored with them: after the encoder, if any."""
    inner = isinstance(model, nn.Module)
    entities = model.node_emb.weight if inner else model.entities
    relations = model.rel_emb.weight if inner else model.relations
    total: Tensor = entities.square().mean() + relations.square().mean()
    return total


__all__ = ["FactLoss", "fit_facts", "full_loss", "mean_square", "own_loss", "sampled_loss"]
