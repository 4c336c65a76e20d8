"""Graphs like molecules, with functional groups planted in them, and molecules read from SMILES.

A generated skeleton is a random tree of carbons with rings; groups hang where a carbon has a bond left. Atoms have
the same features in both: element, degree, aromatic or not. Bonds have none: a carbonyl's oxygen and a hydroxyl's are
told apart by what else their carbon holds.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import UsageError

ELEMENTS = ("C", "N", "O", "S", "F", "Cl", "Br", "I", "P", "other")
DEGREES = 6
GROUPS: dict[str, tuple[tuple[str, ...], tuple[tuple[int, int], ...]]] = {
    "hydroxyl": (("O",), ()),
    "amine": (("N",), ()),
    "chloride": (("Cl",), ()),
    "carboxyl": (("C", "O", "O"), ((0, 1), (0, 2))),
    "amide": (("C", "O", "N"), ((0, 1), (0, 2))),
    "sulfonyl": (("S", "O", "O", "N"), ((0, 1), (0, 2), (0, 3))),
}
"""Atoms, the first of which is bound to the skeleton, and bonds among them."""
WEIGHTS = {"carboxyl": 1.0, "amide": -1.0, "amine": 0.5}
"""What each group adds to the target by default; the others look alike and add nothing."""
_TOKEN = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|[BCNOSPFIbcnosp]|[-=#:/\\.()]|\d|\$|~")
_BRACKET = re.compile(r"\d*([A-Z][a-z]?|se|as|[bcnosp])")


def atom_features(elements: Sequence[str], aromatic: Sequence[bool], degree: Tensor) -> Tensor:
    """[atoms, 17] one-hot of the element and of the degree (6 at most), and whether the atom is aromatic."""
    kind = torch.tensor([ELEMENTS.index(e) if e in ELEMENTS else len(ELEMENTS) - 1 for e in elements])
    one_hot = torch.nn.functional.one_hot
    parts = (one_hot(kind, len(ELEMENTS)), one_hot(degree.clamp_max(DEGREES - 1), DEGREES))
    return torch.cat([*parts, torch.tensor(aromatic)[:, None].long()], 1).float()


def _graph(
    elements: Sequence[str], aromatic: Sequence[bool], bonds: Sequence[tuple[int, int]], **more: Any
) -> Any:
    from torch_geometric.data import Data

    pairs = torch.tensor(bonds, dtype=torch.long).reshape(-1, 2).T
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    degree = torch.bincount(edges[1], minlength=len(elements))
    return Data(
        x=atom_features(elements, aromatic, degree), edge_index=edges, num_nodes=len(elements), **more
    )


def molecules(
    count: int = 200,
    *,
    atoms: tuple[int, int] = (8, 16),
    groups: tuple[int, int] = (1, 4),
    weights: dict[str, float] | None = None,
    noise: float = 0.1,
    seed: int = 0,
) -> list[Any]:
    """Skeletons of carbon with planted groups; y [1] is the groups' weighted count and noise.

    Args:
        count: how many.
        atoms: fewest and most carbons of a skeleton, rings included.
        groups: fewest and most groups planted in one.
        weights: of groups by name, ``WEIGHTS`` by default.
        noise: standard deviation.
        seed: of everything.

    Returns:
        Data each with x [atoms, 17], ``planted`` [atoms] which of ``GROUPS`` an atom belongs to or -1, ``instance``
        [atoms] the planted group's number in its molecule or -1, ``counts`` [1, 6] how many of each group.

    Raises:
        UsageError: MT501 for an unknown group or ranges without a number in them.
    """
    table = WEIGHTS if weights is None else weights
    if not set(table) <= set(GROUPS):
        raise UsageError(
            "MT501", f"no group {sorted(set(table) - set(GROUPS))}", fix=f"known: {', '.join(GROUPS)}"
        )
    if not (1 <= atoms[0] <= atoms[1] and 0 <= groups[0] <= groups[1]):
        raise UsageError("MT501", f"atoms={atoms}, groups={groups} are no ranges of (fewest, most)")
    rng = np.random.RandomState(seed)
    names, found = list(GROUPS), []
    for _ in range(count):
        elements, aromatic, bonds, free = _skeleton(rng.randint(atoms[0], atoms[1] + 1), rng)
        planted, instance = [-1] * len(elements), [-1] * len(elements)
        counts = [0] * len(names)
        for number in range(rng.randint(groups[0], groups[1] + 1)):
            places = np.flatnonzero(np.array(free) > 0)
            if not len(places):
                break
            kind, root, start = rng.randint(len(names)), int(rng.choice(places)), len(elements)
            kinds, inside = GROUPS[names[kind]]
            free[root] -= 1
            bonds += [(root, start), *((start + a, start + b) for a, b in inside)]
            elements += kinds
            aromatic += [False] * len(kinds)
            free += [0] * len(kinds)
            planted += [kind] * len(kinds)
            instance += [number] * len(kinds)
            counts[kind] += 1
        value = (
            sum(table.get(name, 0.0) * c for name, c in zip(names, counts, strict=True)) + noise * rng.randn()
        )
        found.append(
            _graph(elements, aromatic, bonds, y=torch.tensor([value]).float(), planted=torch.tensor(planted),
                   instance=torch.tensor(instance), counts=torch.tensor([counts]))
        )  # fmt: skip
    return found


def _skeleton(
    size: int, rng: np.random.RandomState
) -> tuple[list[str], list[bool], list[tuple[int, int]], list[int]]:
    """Elements, aromatic or not, bonds and free bonds of carbons: pieces (an atom, or a ring of six) in a tree."""
    aromatic: list[bool] = []
    bonds: list[tuple[int, int]] = []
    free: list[int] = []
    while len(free) < size:
        ring = size - len(free) >= 6 and rng.rand() < 0.3
        start, new = len(free), 6 if ring else 1
        places = np.flatnonzero(np.array(free) > 0)
        if start and not len(places):
            break
        bonds += [(start + i, start + (i + 1) % 6) for i in range(6)] if ring else []
        free += [1] * 6 if ring else [3]  # a chain atom keeps one bond for hydrogen: no carbon is crowded
        aromatic += [ring] * new
        if start:
            root, end = int(rng.choice(places)), start + (rng.randint(6) if ring else 0)
            bonds.append((root, end))
            free[root] -= 1
            free[end] -= 1
    return ["C"] * len(free), aromatic, bonds, free


def from_smiles(text: str) -> Any:
    """The heavy atoms and bonds of a SMILES string (charges, stereo, hydrogens and bond orders are left out).

    Raises:
        UsageError: MT501 where it cannot be read.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text or not tokens:
        raise UsageError("MT501", f"'{text}' is no SMILES that can be read here")
    elements: list[str] = []
    aromatic: list[bool] = []
    bonds: list[tuple[int, int]] = []
    stack: list[int] = []
    last, rings = -1, dict[str, int]()
    for token in tokens:
        if token == "(":
            stack.append(last)
        elif token == ")" and stack:
            last = stack.pop()
        elif token == ".":
            last = -1
        elif token.isdigit() or token[0] == "%":
            if token in rings:
                bonds.append((rings.pop(token), last))
            else:
                rings[token] = last
        elif token[0] == "[" or token[0].isalpha():
            named = _BRACKET.match(token[1:]) if token[0] == "[" else None
            name = named.group(1) if named else token
            if name == "H":
                continue
            elements.append(name.capitalize())
            aromatic.append(name.islower())
            if last >= 0:
                bonds.append((last, len(elements) - 1))
            last = len(elements) - 1
        elif token == ")":
            raise UsageError("MT501", f"'{text}' closes a branch that it does not open")
    if rings or stack or not elements:
        raise UsageError("MT501", f"'{text}' leaves a ring or a branch open")
    return _graph(elements, aromatic, bonds)


def read_table(path: str | Path, *, smiles: str = "smiles", target: str) -> list[Any]:
    """Molecules of a CSV file with y [1]; lines that cannot be read are left out.

    Args:
        path: the file.
        smiles, target: its columns.
    """
    found = []
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                graph = from_smiles(row[smiles].strip())
                graph.y = torch.tensor([float(row[target])])
            except (UsageError, ValueError):
                continue
            found.append(graph)
    return found


__all__ = ["ELEMENTS", "GROUPS", "WEIGHTS", "atom_features", "from_smiles", "molecules", "read_table"]
