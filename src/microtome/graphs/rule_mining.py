"""Rules of a knowledge graph: chains of relations that imply a relation, read off embeddings or counted.

A chain b_1, ..., b_k says that x -b_1-> ... -b_k-> y. Relations read backwards have the indices past the relations, as
in :mod:`microtome.data.knowledge_graphs`. By embedding (Yang et al. 2015): a relation is a map, a chain is their
product, and a rule is credible when the product lies near the head's map. By count (AMIE, Galarraga et al. 2013): how
often the body's ends are joined by the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from microtome.data.knowledge_graphs import Rule
from microtome.errors import UsageError

_ROWS = 1_000_000
"""Rows, an entity and a body each, whose pairs are held at once."""


class MinedRules(NamedTuple):
    """Rules, the best first.

    Attributes:
        head: [n] relation.
        body: [n, length] relations, those read backwards past the others.
        score: [n] larger is better.
    """

    head: Tensor
    body: Tensor
    score: Tensor

    def rules(self) -> list[Rule]:
        """The same, one by one."""
        return [Rule(h, tuple(b)) for h, b in zip(self.head.tolist(), self.body.tolist(), strict=True)]

    def average_precision(self, planted: Sequence[Rule]) -> float:
        """Mean over the planted rules of this length of the precision at their place; one that is missed counts 0.

        Raises:
            UsageError: MT509 when none has this length.
        """
        wanted = {rule for rule in planted if len(rule.body) == self.body.shape[1]}
        if not wanted:
            raise UsageError("MT509", f"no planted rule has a body of {self.body.shape[1]}")
        right = np.array([rule in wanted for rule in self.rules()], dtype=float)
        precision = right.cumsum() / np.arange(1, len(right) + 1)
        return float((precision * right).sum() / len(wanted))


def incidence(facts: Tensor, entities: int, relations: int) -> list:
    """Sparse 0/1 matrices [entities, entities] of every relation, then of every relation backwards."""
    from scipy.sparse import csr_array

    h, r, t = facts.T.numpy()
    found = []
    for k in range(relations):
        own = r == k
        made = csr_array((np.ones(own.sum(), dtype=np.float32), (h[own], t[own])), shape=(entities, entities))
        made.data[:] = 1  # repeated facts count once
        found.append(made)
    return found + [m.T.tocsr() for m in found]


def chains(facts: Tensor, entities: int, relations: int, length: int, *, backwards: bool = False) -> Tensor:
    """[n, length + 1] candidate rules, head first, whose types fit (the EmbedRule algorithm's first steps).

    Neighbours in the chain share an entity, the first relation starts where the head does for some entity, the last
    ends where it does; a rule that says a relation implies itself is left out. The product of diagonal maps does not
    depend on their order, so without this step DistMult could not order a chain.
    """
    r, n = relations, 2 * relations if backwards else relations
    starts = torch.zeros(n, entities, dtype=torch.bool)
    ends = torch.zeros(n, entities, dtype=torch.bool)
    for table, column in ((starts, 0), (ends, 2)):
        table[facts[:, 1], facts[:, column]] = True
        if backwards:
            table[facts[:, 1] + r, facts[:, 2 - column]] = True
    meet = (ends.float() @ starts.float().T) > 0
    begin = (starts[:r].float() @ starts.float().T) > 0  # [head, first]
    finish = (ends[:r].float() @ ends.float().T) > 0
    found = begin.nonzero()
    for _ in range(length - 1):
        rows, nexts = meet[found[:, -1]].nonzero(as_tuple=True)
        found = torch.cat([found[rows], nexts[:, None]], 1)
    found = found[finish[found[:, 0], found[:, -1]]]
    return found[(found[:, 1:] != found[:, :1]).any(1)] if length == 1 else found


def mine_by_embedding(
    maps: Tensor,
    candidates: Tensor,
    *,
    compose: Literal["product", "sum"] = "product",
    measure: Literal["distance", "cosine"] = "distance",
) -> MinedRules:
    """Candidates ordered by how near the composed maps of the body lie to the head's.

    Args:
        maps: [relations, d] diagonals (DistMult) or translations (TransE, with ``compose="sum"``), or
            [relations, d, d] matrices; those of relations read backwards follow if candidates use them.
        candidates: [n, length + 1] of :func:`chains`.
        measure: Frobenius distance, as in the paper, or the cosine, which does not ask of the size of the maps.
    """
    head, body = candidates[:, 0], candidates[:, 1:]
    made = maps[body[:, 0]]
    for step in body.T[1:]:
        other = maps[step]
        made = made + other if compose == "sum" else made @ other if maps.dim() == 3 else made * other
    a, b = made.flatten(1), maps[head].flatten(1)
    score = -(a - b).norm(dim=1) if measure == "distance" else torch.cosine_similarity(a, b)
    order = score.argsort(descending=True, stable=True)
    return MinedRules(head[order], body[order], score[order])


def _joined(matrices: list[Any], bodies: np.ndarray) -> Any:
    """Sparse 0/1 [bodies * entities, entities]: the pairs each body joins, however many ways; a product a relation."""
    from scipy.sparse import vstack

    entities = matrices[0].shape[0]
    if bodies.shape[1] == 1:
        return vstack([matrices[b] for b in bodies[:, 0]], format="csr")
    before, place = np.unique(bodies[:, :-1], axis=0, return_inverse=True)
    stacked, every = _joined(matrices, before), np.arange(entities)
    order = np.argsort(bodies[:, -1], kind="stable")
    found = []
    for last in np.unique(bodies[:, -1]):
        own = place.reshape(-1)[order][bodies[order, -1] == last]
        product = stacked[(own[:, None] * entities + every).ravel()] @ matrices[last]
        product.data[:] = 1
        found.append(product)
    made = vstack(found, format="csr")
    return made[(np.argsort(order)[:, None] * entities + every).ravel()]


def mine_by_confidence(
    facts: Tensor,
    entities: int,
    relations: int,
    candidates: Tensor,
    *,
    partial: bool = True,
    support: int = 2,
) -> MinedRules:
    """Candidates ordered by the share of the body's pairs that the head joins; ties by support.

    Args:
        facts: [n, 3] what is counted.
        entities, relations: how many.
        candidates: [n, length + 1] of :func:`chains`.
        partial: pairs whose start has no known fact of the head at all do not count against the rule ("partial
            completeness", AMIE), for their fact may only be unknown.
        support: pairs that bear a rule out, at least; rules with fewer are left out.
    """
    from scipy.sparse import csr_array

    matrices = incidence(facts, entities, relations)
    bodies, place = np.unique(candidates[:, 1:].numpy(), axis=0, return_inverse=True)
    order = np.argsort(bodies[:, -1], kind="stable")  # bodies with one end share a product
    bodies, place = bodies[order], np.argsort(order)[place.reshape(-1)]
    heads = candidates[:, 0].numpy()
    h, r, t = facts.T.numpy()
    pairs, column = np.unique(h * entities + t, return_inverse=True)
    said = csr_array((np.ones(len(r)), (column.reshape(-1), r)), shape=(len(pairs), relations))
    said.data[:] = 1  # repeated facts count once
    known = np.zeros((entities, relations))
    known[h, r] = 1
    score, count = np.zeros(len(heads)), np.zeros(len(heads))
    some = max(_ROWS // entities, 1)
    for start in range(0, len(bodies), some):
        joined = _joined(matrices, bodies[start : start + some]).tocoo()
        body, x = np.divmod(joined.row.astype(np.int64), entities)
        own = np.flatnonzero((place >= start) & (place < start + some))
        rows = min(some, len(bodies) - start)
        key = x * entities + joined.col
        where = np.searchsorted(pairs, key).clip(max=len(pairs) - 1)
        fact = pairs[where] == key
        shape = (rows, len(pairs))
        borne = csr_array((np.ones(fact.sum()), (body[fact], where[fact])), shape=shape) @ said
        starts = csr_array((np.ones(len(x)), (body, x)), shape=(rows, entities))
        against = starts @ (known if partial else np.ones_like(known))
        at = place[own] - start, heads[own]
        count[own] = borne.toarray()[at]
        score[own] = count[own] / np.maximum(against[at], 1)
    kept = np.flatnonzero(count >= support)
    order = kept[np.lexsort((-count[kept], -score[kept]))]
    chosen = torch.from_numpy(order)
    return MinedRules(candidates[chosen, 0], candidates[chosen, 1:], torch.from_numpy(score[order]))


__all__ = ["MinedRules", "chains", "incidence", "mine_by_confidence", "mine_by_embedding"]
