"""Ranking of facts among all facts one could have claimed instead, with the other true ones left out.

A test fact (h, r, t) is scored against (h, r, e) for every entity e, and against (e, r, t). True facts other than
the asked one are left out first ("filtered", Bordes et al. 2013), for a model that ranks them high is right. Equal
scores share their mean rank, so that a model which says the same of everything ranks in the middle, not first.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError

geometric()
from torch_geometric.nn.kge import ComplEx, DistMult  # noqa: E402 - only once it is known to be there


@runtime_checkable
class ScoresAll(Protocol):
    """A scorer of facts that has its own short way to score every entity."""

    def all_scores(self, head: Tensor, relation: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`all_scores`."""


@runtime_checkable
class Encodes(Protocol):
    """A scorer that first works on all entities and gives what then scores, differentiable."""

    def decoder(self) -> Any:
        """Scores facts as ``model(head, relation, tail)``, without encoding anew."""


def scorer(model: Any) -> Any:
    """What scores: the model, or what it gives when it has encoded its entities."""
    return model.decoder() if isinstance(model, Encodes) else model


def all_scores(model: Any, head: Tensor, relation: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of every entity as the tail of (head, relation), and as the head of (relation, tail): twice [b, entities].

    One matrix product for DistMult and ComplEx, and for what has a method ``all_scores``; for others
    ``b * num_nodes`` facts are scored one by one.

    Args:
        model: a ``KGEModel`` of PyTorch Geometric.
        head, relation, tail: [b] indices.
    """
    if isinstance(model, ScoresAll):
        return model.all_scores(head, relation, tail)
    if isinstance(model, DistMult):
        entities, r = model.node_emb.weight, model.rel_emb(relation)
        return (model.node_emb(head) * r) @ entities.T, (model.node_emb(tail) * r) @ entities.T
    if isinstance(model, ComplEx):
        entities = torch.complex(model.node_emb.weight, model.node_emb_im.weight)
        r = torch.complex(model.rel_emb(relation), model.rel_emb_im(relation))
        after, before = entities[head] * r, entities[tail].conj() * r  # Re <h, r, conj t>
        return (after @ entities.conj().T).real, (before @ entities.T).real
    b, n = len(head), model.num_nodes
    every = torch.arange(n, device=head.device).repeat(b)
    h, r, t = (each.repeat_interleave(n) for each in (head, relation, tail))
    return model(h, r, every).view(b, n), model(every, r, t).view(b, n)


class Ranking(NamedTuple):
    """How well facts are told from what is not known to be one.

    Attributes:
        mrr: mean reciprocal rank, 0..1.
        hits: k -> share of the ranks that are k or better.
        mean_rank: from 1.
        ranks: [n, 2] of the tail and of the head.
    """

    mrr: float
    hits: dict[int, float]
    mean_rank: float
    ranks: Tensor


def ranking(
    model: nn.Module, facts: Tensor, known: Tensor, *, at: tuple[int, ...] = (1, 3, 10), batch_size: int = 256
) -> Ranking:
    """Filtered mean reciprocal rank and hits of both sides of every fact; the model is left in eval mode.

    Args:
        model: see :func:`all_scores`.
        facts: [n, 3] head, relation, tail.
        known: [m, 3] every true fact, those that are asked among them or not.
        at: the k of hits at k.
        batch_size: facts at a time; one batch holds twice as many scores as ``batch_size`` times the entities.

    Raises:
        UsageError: MT508 without facts, or when a score is not a finite number.
    """
    if not len(facts):
        raise UsageError("MT508", "there is no fact to rank")
    model.eval()
    ranks = filtered_ranks(model, facts, known, batch_size=batch_size)
    every = ranks.flatten()
    hits = {k: float((every <= k).double().mean()) for k in at}
    return Ranking(float(every.reciprocal().mean()), hits, float(every.mean()), ranks)


@torch.no_grad()
def filtered_ranks(model: Any, facts: Tensor, known: Tensor, *, batch_size: int = 256) -> Tensor:
    """[n, 2] rank of each fact's tail and of its head, from 1, ties at their mean; float64."""
    model = scorer(model)
    sides = (
        (_Lookup(known[:, :2], known[:, 2]), (0, 1), 2),
        (_Lookup(known[:, [2, 1]], known[:, 0]), (2, 1), 0),
    )
    found = []
    for some in facts.split(batch_size):
        scored = all_scores(model, some[:, 0], some[:, 1], some[:, 2])
        row = []
        for scores, (lookup, asked, answer) in zip(scored, sides, strict=True):
            if not torch.isfinite(scores).all():
                raise UsageError(
                    "MT508", "scores are not finite, so nothing can be ranked", fix="has training diverged?"
                )
            own = scores.gather(1, some[:, [answer]])
            rows, others = lookup(some[:, asked])
            scores = scores.index_put((rows, others), scores.new_tensor(-torch.inf))
            scores = scores.scatter(1, some[:, [answer]], -torch.inf)  # itself is no rival
            row.append(1 + (scores > own).sum(1).double() + (scores == own).sum(1).double() / 2)
        found.append(torch.stack(row, 1))
    return torch.cat(found)


class _Lookup:
    """What answers a question (entity, relation), for many questions at once."""

    def __init__(self, questions: Tensor, answers: Tensor) -> None:
        self.relations = int(questions[:, 1].max()) + 1 if len(questions) else 1
        self.keys, order = (questions[:, 0] * self.relations + questions[:, 1]).sort(stable=True)
        self.answers = answers[order]

    def __call__(self, questions: Tensor) -> tuple[Tensor, Tensor]:
        """(row of the question, answer) of every known answer."""
        key = questions[:, 0] * self.relations + questions[:, 1]
        key = torch.where(questions[:, 1] < self.relations, key, -1)
        low, high = torch.searchsorted(self.keys, key), torch.searchsorted(self.keys, key, right=True)
        count = high - low
        rows = torch.arange(len(key), device=key.device).repeat_interleave(count)
        inside = torch.arange(int(count.sum()), device=key.device) - (count.cumsum(0) - count)[rows]
        return rows, self.answers[low[rows] + inside]


__all__ = ["Encodes", "Ranking", "ScoresAll", "all_scores", "filtered_ranks", "ranking", "scorer"]
