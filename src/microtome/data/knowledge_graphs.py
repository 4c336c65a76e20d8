"""Knowledge graphs: one with planted rules, and published ones read from a folder; nothing is downloaded.

A fact is (head, relation, tail). A relation read backwards has the index ``relation + len(relations)``, so that one
kind of rule covers symmetry, inverses and composition: a chain of relations that implies a relation.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.data.graphs import folder, geometric
from microtome.errors import UsageError, nearest

NAMES = ("kinship", "umls", "nations", "fb15k-237", "wn18rr")
"""Every published set :func:`load` knows."""
_PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Rule:
    """If ``body`` leads from x to y, then head(x, y); indices past the relations read them backwards."""

    head: int
    body: tuple[int, ...]


@dataclass(frozen=True)
class KnowledgeGraph:
    """Facts in three parts.

    Attributes:
        entities, relations: names.
        train, valid, test: [n, 3] head, relation, tail; the parts are disjoint and each fact is there once.
        rules: what was planted; empty where it is not known.
        antisymmetric: relations that never hold in both directions, as planted.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor
    rules: tuple[Rule, ...] = ()
    antisymmetric: tuple[int, ...] = ()

    @property
    def known(self) -> Tensor:
        """[n, 3] every fact of every part: what a filtered ranking leaves out."""
        return torch.cat([self.train, self.valid, self.test])

    def spoken(self, rule: Rule) -> str:
        """The rule in words, such as ``born_in, city_in => nationality``."""
        names = [*self.relations, *(f"{name} backwards" for name in self.relations)]
        return f"{', '.join(names[b] for b in rule.body)} => {names[rule.head]}"

    def data(self) -> Any:
        """The training facts as PyTorch Geometric ``Data`` with edge_index [2, n] and edge_type [n]."""
        geometric()
        from torch_geometric.data import Data

        return Data(edge_index=self.train[:, [0, 2]].T.contiguous(), edge_type=self.train[:, 1],
                    num_nodes=len(self.entities))  # fmt: skip


class _Facts:
    """Facts gathered relation by relation; a relation's index is its place in the order of being added."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.pairs: list[np.ndarray] = []

    def add(self, name: str, head: np.ndarray, tail: np.ndarray) -> int:
        self.names.append(name)
        self.pairs.append(np.unique(np.stack([head, tail], 1)[head != tail], axis=0))
        return len(self.names) - 1

    def join(self, name: str, first: int, second: int) -> int:
        """X -first-> z -second-> y gives name(x, y)."""
        a, b = self.pairs[first], self.pairs[second]
        order = np.argsort(b[:, 0], kind="stable")
        b = b[order]
        low, high = np.searchsorted(b[:, 0], a[:, 1]), np.searchsorted(b[:, 0], a[:, 1], side="right")
        count = high - low
        inside = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
        return self.add(name, np.repeat(a[:, 0], count), b[np.repeat(low, count) + inside, 1])

    def back(self, name: str, of: int) -> int:
        return self.add(name, self.pairs[of][:, 1], self.pairs[of][:, 0])


def planted(
    people: int = 300, *, missing: float = 0.0, noise: float = 0.0, held_out: float = 0.2, seed: int = 0
) -> KnowledgeGraph:
    """People, cities, countries, companies and languages, with relations that follow from others by rule.

    Compositions: nationality (born_in, city_in), resident_of (lives_in, city_in), works_in (works_for, company_in),
    speaks (nationality, official_language), grandparent_of (parent_of twice). Inverses: child_of, employs. Symmetric:
    spouse, friend. Antisymmetric: older_than, which follows a hidden age. Half of the people live where they were
    born, which a rule miner may take for a rule and is none.

    Args:
        people: how many; there are 3/20 as many cities, 1/10 companies, 1/15 countries and 1/20 languages.
        missing: share of the training facts that are then lost, whatever their relation.
        noise: share of the training facts whose tail becomes any other tail of the same relation.
        held_out: share of the facts of relations that are derived, symmetric or antisymmetric which become validation
            and test facts, half each.
        seed: of everything.

    Raises:
        UsageError: MT507 for a dial outside its range.
    """
    for name, value in (("missing", missing), ("noise", noise), ("held_out", held_out)):
        if not 0 <= value < 1:
            raise UsageError("MT507", f"{name}={value} is not in 0..1")
    if people < 40:
        raise UsageError("MT507", f"{people} people are too few", fix="at least 40")
    rng = np.random.RandomState(seed)
    sizes = {"person": people, "city": people * 3 // 20, "country": people // 15,
             "company": people // 10, "language": people // 20}  # fmt: skip
    start = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))

    def some(kind: str, count: int) -> np.ndarray:
        return start[kind] + rng.randint(sizes[kind], size=count)

    def every(kind: str) -> np.ndarray:
        return start[kind] + np.arange(sizes[kind])

    person, facts = every("person"), _Facts()
    born = some("city", people)
    born_in = facts.add("born_in", person, born)
    city_in = facts.add("city_in", every("city"), some("country", sizes["city"]))
    official = facts.add("official_language", every("country"), some("language", sizes["country"]))
    lives_in = facts.add("lives_in", person, np.where(rng.rand(people) < 0.5, born, some("city", people)))
    works_for = facts.add("works_for", person, some("company", people))
    company_in = facts.add("company_in", every("company"), some("city", sizes["company"]))
    child = person[1:][rng.rand(people - 1) < 0.8]
    parent_of = facts.add("parent_of", (rng.rand(len(child)) * child).astype(np.int64), child)
    pairs = rng.permutation(people)[: people // 2 * 2].reshape(-1, 2)
    spouse = facts.add("spouse", np.r_[pairs[:, 0], pairs[:, 1]], np.r_[pairs[:, 1], pairs[:, 0]])
    a, b = some("person", people), some("person", people)
    friend = facts.add("friend", np.r_[a, b], np.r_[b, a])
    a, b, age = some("person", 3 * people), some("person", 3 * people), rng.rand(people)
    older = facts.add("older_than", np.where(age[a] > age[b], a, b), np.where(age[a] > age[b], b, a))
    nationality = facts.join("nationality", born_in, city_in)
    resident_of = facts.join("resident_of", lives_in, city_in)
    works_in = facts.join("works_in", works_for, company_in)
    speaks = facts.join("speaks", nationality, official)
    grandparent_of = facts.join("grandparent_of", parent_of, parent_of)
    child_of, employs = facts.back("child_of", parent_of), facts.back("employs", works_for)
    back = len(facts.names)
    rules = (
        Rule(nationality, (born_in, city_in)), Rule(resident_of, (lives_in, city_in)),
        Rule(works_in, (works_for, company_in)), Rule(speaks, (nationality, official)),
        Rule(grandparent_of, (parent_of, parent_of)), Rule(child_of, (parent_of + back,)),
        Rule(parent_of, (child_of + back,)), Rule(employs, (works_for + back,)),
        Rule(works_for, (employs + back,)), Rule(spouse, (spouse + back,)), Rule(friend, (friend + back,)),
    )  # fmt: skip
    splittable = {
        spouse,
        friend,
        older,
        nationality,
        resident_of,
        works_in,
        speaks,
        grandparent_of,
        child_of,
        employs,
    }
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _PARTS}
    for r, pair in enumerate(facts.pairs):
        rows = np.stack([pair[:, 0], np.full(len(pair), r), pair[:, 1]], 1)[rng.permutation(len(pair))]
        held = round(held_out * len(rows) / 2) if r in splittable else 0
        kept = rows[2 * held :]
        kept = kept[rng.rand(len(kept)) >= missing]
        wrong = rng.rand(len(kept)) < noise
        kept[wrong, 2] = rng.permutation(pair[:, 1])[: wrong.sum()]
        for name, rows_of in zip(_PARTS, (kept, rows[:held], rows[held : 2 * held]), strict=True):
            parts[name].append(rows_of)
    train, valid, test = (torch.from_numpy(np.concatenate(parts[name])) for name in _PARTS)
    keys = torch.cat([_keys(valid, back, sum(sizes.values())), _keys(test, back, sum(sizes.values()))])
    train = torch.unique(train, dim=0)  # a false tail may make a fact that is there already, or is held out
    train = train[~torch.isin(_keys(train, back, sum(sizes.values())), keys)]
    names = tuple(f"{kind} {i}" for kind, size in sizes.items() for i in range(size))
    return KnowledgeGraph(names, tuple(facts.names), train, valid, test, rules, (older,))


def _keys(facts: Tensor, relations: int, entities: int) -> Tensor:
    return (facts[:, 0] * relations + facts[:, 1]) * entities + facts[:, 2]


def load(name: str, root: str | os.PathLike[str] | None = None) -> KnowledgeGraph:
    """A published knowledge graph from ``<root>/knowledge_graphs``, in the parts it was published in.

    Args:
        name: one of :data:`NAMES`.
        root: the folder; by default that of the environment variable ``MICROTOME_GRAPHS``.

    Raises:
        UsageError: MT443 when the folder or the set in it is absent, MT506 for an unknown set.
    """
    key = name.lower().replace("_", "-")
    if key not in NAMES:
        raise UsageError(
            "MT506", f"no knowledge graph is called '{name}'", fix=nearest(key, NAMES) or ", ".join(NAMES)
        )
    home = folder(root) / "knowledge_graphs"
    read = {part: text for part, text in _texts(key, home)}
    if set(read) != set(_PARTS):
        raise UsageError(
            "MT443", f"'{name}' is not there", where=str(home), fix="put its three text files there"
        )
    rows = {
        part: np.array([line.split() for line in text.splitlines() if line.strip()])
        for part, text in read.items()
    }
    facts = np.concatenate([rows[part] for part in _PARTS])
    entities, ends = np.unique(facts[:, [0, 2]], return_inverse=True)
    relations, kinds = np.unique(facts[:, 1], return_inverse=True)
    ends = ends.reshape(-1, 2)
    whole = torch.from_numpy(np.stack([ends[:, 0], kinds.reshape(-1), ends[:, 1]], 1))
    train, valid, test = whole.split([len(rows[part]) for part in _PARTS])
    return KnowledgeGraph(tuple(entities.tolist()), tuple(relations.tolist()), train, valid, test)


def available(name: str, root: str | os.PathLike[str] | None = None) -> bool:
    """Whether a published set lies in the folder, so that :func:`load` can read it."""
    try:
        return {part for part, _ in _texts(name.lower(), folder(root) / "knowledge_graphs")} == set(_PARTS)
    except UsageError:
        return False


def _texts(key: str, home: Path) -> Iterator[tuple[str, str]]:
    """(part, text) of every part that is there."""
    packed = home / "FB15k-237" / "FB15k-237.tar.gz"
    if key == "fb15k-237" and packed.is_file():
        with tarfile.open(packed) as archive:
            for member in archive.getmembers():
                part = Path(member.name).stem
                found = archive.extractfile(member) if part in _PARTS and member.isfile() else None
                if found is not None:
                    yield part, io.TextIOWrapper(found, "utf-8").read()
        return
    place = home / "WN18RR" / "raw" if key == "wn18rr" else home / key
    for part in _PARTS:
        if (place / f"{part}.txt").is_file():
            yield part, (place / f"{part}.txt").read_text(encoding="utf-8")


__all__ = ["NAMES", "KnowledgeGraph", "Rule", "available", "load", "planted"]
