"""How many of the held-out items of a user are among the first k, when those already taken are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from microtome.data.interactions import Interactions


class Recommended(NamedTuple):
    """Of every user with a held-out item.

    Attributes:
        users: [m].
        recall: [m] share of the user's held-out items among the first k, 0..1.
        gain: [m] normalised discounted cumulative gain at k, 0..1.
    """

    users: Tensor
    recall: Tensor
    gain: Tensor


@torch.no_grad()
def recommended(
    scores: Callable[[Tensor], Tensor], data: Interactions, *, k: int = 20, batch_size: int = 512
) -> Recommended:
    """Ask for k items of every user who has some held out.

    Args:
        scores: users [b] -> [b, items].
        data: what was taken and what is held out.
        k: items; no user's recall can reach 1 who has more than k held out.
        batch_size: users at a time.
    """
    users, found = data.test[0].unique(), []
    discount = 1 / torch.arange(2, k + 2).log2()
    for some in users.split(batch_size):
        row = torch.full((data.users,), -1).index_put((some,), torch.arange(len(some)))
        hidden, asked = (pairs[:, row[pairs[0]] >= 0] for pairs in (data.train, data.test))
        value = scores(some).index_put((row[hidden[0]], hidden[1]), torch.tensor(-torch.inf))
        wanted = torch.zeros(value.shape, dtype=torch.bool).index_put(
            (row[asked[0]], asked[1]), torch.tensor(True)
        )
        hits = wanted.gather(1, value.topk(k, 1).indices).float()
        best = discount.cumsum(0)[wanted.sum(1).clamp(max=k) - 1]
        found.append(torch.stack([hits.sum(1) / wanted.sum(1), hits @ discount / best]))
    recall, gain = torch.cat(found, 1)
    return Recommended(users, recall, gain)


__all__ = ["Recommended", "recommended"]
