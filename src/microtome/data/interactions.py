"""Who took what: users and items with planted preferences, and the LastFM set read from a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.data.graphs import folder
from microtome.errors import UsageError


@dataclass(frozen=True)
class Interactions:
    """Pairs (user, item), each once.

    Attributes:
        users, items: how many.
        train, test: [2, n] user, item; no pair is in both.
        false: [n] which training pairs are noise, as planted; empty where it is not known.
    """

    users: int
    items: int
    train: Tensor
    test: Tensor
    false: Tensor

    def facts(self) -> Tensor:
        """[n, 3] the training pairs as facts (user, 0, item), for :func:`microtome.learn.link_training.fit_facts`."""
        return torch.stack([self.train[0], torch.zeros_like(self.train[0]), self.train[1]], 1)

    def validation(self, share: float = 0.1, seed: int = 0) -> Interactions:
        """The training pairs alone, a random ``share`` of them held out; to choose settings without the test pairs."""
        order = torch.randperm(self.train.shape[1], generator=torch.Generator().manual_seed(seed))
        held, kept = order[: round(share * len(order))], order[round(share * len(order)) :]
        false = self.false[kept] if len(self.false) else self.false
        return Interactions(self.users, self.items, self.train[:, kept], self.train[:, held], false)

    def activity(self) -> Tensor:
        """[users] how many training items each has."""
        return torch.bincount(self.train[0], minlength=self.users)


def planted(
    users: int = 600,
    items: int = 400,
    *,
    rank: int = 6,
    sharpness: float = 3.0,
    popularity: float = 1.0,
    activity: tuple[int, int] = (4, 40),
    noise: float = 0.1,
    test: int = 8,
    seed: int = 0,
) -> Interactions:
    """Users draw items without repeats from softmax(sharpness * p_u . q_i / sqrt(rank) + popularity * b_i).

    Preferences p and q are normal of so many dimensions, b_i is normal; how much a user takes is log-uniform.

    Args:
        users, items: how many.
        rank: dimensions of taste.
        sharpness: how far taste decides; 0 leaves popularity alone.
        popularity: how far items differ in popularity.
        activity: least and most training items of a user.
        noise: share of the training pairs that are then replaced by any item.
        test: items of each user that are held out, drawn from the same law, never noise.
        seed: of everything.

    Raises:
        UsageError: MT511 when a user could be asked for more items than there are.
    """
    if activity[0] < 1 or activity[1] < activity[0] or activity[1] + test > items // 2:
        raise UsageError("MT511", f"activity {activity} and {test} test items do not fit {items} items")
    rng = np.random.RandomState(seed)
    taste = rng.randn(users, rank) @ rng.randn(rank, items) / np.sqrt(rank)
    logits = sharpness * taste + popularity * rng.randn(items)
    order = np.argsort(
        -(logits + rng.gumbel(size=logits.shape)), axis=1
    )  # draws without repeats (Gumbel top-k)
    count = np.exp(rng.uniform(np.log(activity[0]), np.log(activity[1]), size=users)).round().astype(int)
    place = np.arange(items)
    asked = np.stack(np.nonzero(place < np.full((users, 1), test)))
    taken = np.stack(np.nonzero((place >= test) & (place < test + count[:, None])))
    held, train = (np.stack([p[0], order[p[0], p[1]]]) for p in (asked, taken))
    false = rng.rand(train.shape[1]) < noise
    train[1, false] = rng.randint(items, size=false.sum())
    keys, first = np.unique(train[0] * items + train[1], return_index=True)
    kept = first[~np.isin(keys, held[0] * items + held[1])]
    train, false = train[:, kept], false[kept]
    return Interactions(users, items, *(torch.from_numpy(m) for m in (train, held, false)))


def lastfm(root: str | os.PathLike[str] | None = None) -> Interactions:
    """The LastFM listening set as it is used for LightGCN, from ``<root>/lastfm``; weights are not used.

    Args:
        root: the folder; by default that of the environment variable ``MICROTOME_GRAPHS``.

    Raises:
        UsageError: MT443 when the folder or the set in it is absent.
    """
    home = folder(root) / "lastfm"
    if not (home / "data1.txt").is_file() or not (home / "test1.txt").is_file():
        raise UsageError(
            "MT443", "'lastfm' is not there", where=str(home), fix="put data1.txt and test1.txt there"
        )
    parts = [np.loadtxt(home / name)[:, :2].astype(np.int64).T - 1 for name in ("data1.txt", "test1.txt")]
    users, items = (int(max(p[k].max() for p in parts)) + 1 for k in (0, 1))
    train, test = (np.unique(p[0] * items + p[1]) for p in parts)
    test = test[~np.isin(test, train)]
    made = [torch.from_numpy(np.stack([k // items, k % items])) for k in (train, test)]
    return Interactions(users, items, made[0], made[1], torch.zeros(0, dtype=torch.bool))


__all__ = ["Interactions", "lastfm", "planted"]
