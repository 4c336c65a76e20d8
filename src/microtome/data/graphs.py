"""Graphs of the literature, read by PyTorch Geometric's own classes from a folder; nothing is downloaded.

The folder holds one folder a collection (``planetoid``, ``heterophilous``, ``webkb``, ``tudataset``), each laid out as
PyTorch Geometric lays it out. It is given as ``root`` or by the environment variable ``MICROTOME_GRAPHS``. What PyTorch
Geometric writes when it first reads a set goes to the cache, so the folder may be read-only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from microtome.errors import MissingExtraError, UsageError, nearest

ENVIRONMENT = "MICROTOME_GRAPHS"

_PLANETOID = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}
_HETEROPHILOUS = {
    "minesweeper": "Minesweeper", "tolokers": "Tolokers", "roman-empire": "Roman-empire",
    "amazon-ratings": "Amazon-ratings", "questions": "Questions",
}  # fmt: skip
_FILTERED = ("chameleon-filtered", "squirrel-filtered")
_WEBKB = ("texas", "cornell", "wisconsin")
_TUDATASET = {"mutag": "MUTAG", "proteins": "PROTEINS", "enzymes": "ENZYMES", "aids": "AIDS", "nci1": "NCI1"}
NAMES = (*_PLANETOID, *_HETEROPHILOUS, *_FILTERED, *_WEBKB, "actor", *_TUDATASET)
"""Every set :func:`load` knows."""


def geometric() -> Any:
    """The package ``torch_geometric``.

    Raises:
        MissingExtraError: MT110 when it is not installed.
    """
    try:
        import torch_geometric
    except ImportError as error:
        raise MissingExtraError("torch_geometric", "graphs", "work on graphs") from error
    return torch_geometric


def folder(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds the collections.

    Raises:
        UsageError: MT443 when none is named or it does not exist.
    """
    named = os.fspath(root) if root is not None else os.environ.get(ENVIRONMENT, "")
    if not named:
        raise UsageError(
            "MT443", "no folder of graph data is named", fix=f"give root=..., or set {ENVIRONMENT}=FOLDER"
        )
    path = Path(named).expanduser()
    if not path.is_dir():
        raise UsageError("MT443", "the folder of graph data does not exist", where=str(path))
    return path


def available(name: str, root: str | os.PathLike[str] | None = None) -> bool:
    """Whether a set lies in the folder, so that :func:`load` can read it."""
    try:
        return _raw(name, folder(root)).exists()
    except UsageError:
        return False


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    split: int = 0,
    transform: Callable[[Any], Any] | None = None,
) -> Any:
    """A graph (``Data``) of a node classification set, or the data set of graphs of a TUDataset.

    Node sets have ``x`` [nodes, d], ``edge_index`` [2, edges], ``y`` [nodes] and ``train_mask``, ``val_mask``,
    ``test_mask`` [nodes]; where a set has several splits, ``split`` chooses one.

    Args:
        name: one of :data:`NAMES`.
        root: the folder; by default that of the environment variable ``MICROTOME_GRAPHS``.
        split: which of the published splits.
        transform: a PyTorch Geometric transform, applied to the graph, or to each graph of a data set.

    Raises:
        UsageError: MT443 when the folder or the set in it is absent, MT444 for an unknown set or split.
        MissingExtraError: MT110 without PyTorch Geometric.
    """
    geometric()
    key = name.lower().replace("_", "-")
    if key not in NAMES:
        raise UsageError(
            "MT444", f"no graph data is called '{name}'", fix=nearest(key, NAMES) or ", ".join(NAMES)
        )
    home = folder(root)
    if not _raw(key, home).exists():
        raise UsageError(
            "MT443", f"'{name}' is not there", where=str(_raw(key, home)), fix="put its raw files there"
        )
    from torch_geometric import datasets

    if key in _TUDATASET:
        made = _reading(datasets.TUDataset)
        return made(str(home / "tudataset"), _TUDATASET[key], transform=transform)
    if key in _FILTERED:
        data = _filtered(_raw(key, home))
    elif key in _PLANETOID:
        data = _reading(datasets.Planetoid)(str(home / "planetoid"), _PLANETOID[key])[0]
    elif key in _HETEROPHILOUS:
        data = _reading(datasets.HeterophilousGraphDataset)(str(home / "heterophilous"), _HETEROPHILOUS[key])[
            0
        ]
    elif key == "actor":
        data = _reading(datasets.Actor)(str(home / "webkb" / "actor"))[0]
    else:
        data = _reading(datasets.WebKB)(str(home / "webkb"), key)[0]
    data = _chosen_split(data, key, split)
    return data if transform is None else transform(data)


def _raw(name: str, home: Path) -> Path:
    key = name.lower().replace("_", "-")
    if key in _PLANETOID:
        return home / "planetoid" / _PLANETOID[key] / "raw"
    if key in _HETEROPHILOUS:
        return home / "heterophilous" / key.replace("-", "_") / "raw"
    if key in _FILTERED:
        return home / "heterophilous" / f"{key.replace('-', '_')}.npz"
    if key in _TUDATASET:
        return home / "tudataset" / _TUDATASET[key] / "raw"
    return home / "webkb" / key / "raw"


def _reading(kind: type) -> type:
    """A data set class that reads what is there, never downloads, and keeps what it makes in the cache."""
    from microtome.reference import cache_folder

    def processed(self: Any) -> str:
        place = hashlib.blake2b(str(Path(self.raw_dir).resolve()).encode(), digest_size=8).hexdigest()
        return str(cache_folder() / "graphs" / f"{kind.__name__}-{place}")

    def download(self: Any) -> None:
        absent = [n for n in self.raw_file_names if not Path(self.raw_dir, n).exists()]
        raise UsageError(
            "MT443",
            f"files are missing: {', '.join(absent[:3])}",
            where=self.raw_dir,
            fix="put them there; nothing is downloaded",
        )

    return type(kind.__name__, (kind,), {"processed_dir": property(processed), "download": download})


def _filtered(path: Path) -> Any:
    import numpy as np
    import torch
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    with np.load(path, allow_pickle=False) as stored:
        edges = torch.from_numpy(stored["edges"]).long().T
        x, y = (
            torch.from_numpy(stored["node_features"]).float(),
            torch.from_numpy(stored["node_labels"]).long(),
        )
        masks = {
            f"{part}_mask": torch.from_numpy(stored[f"{part}_masks"]).bool().T
            for part in ("train", "val", "test")
        }
    return Data(x=x, edge_index=to_undirected(edges, num_nodes=len(x)), y=y, **masks)


def _chosen_split(data: Any, name: str, split: int) -> Any:
    masks = [k for k in ("train_mask", "val_mask", "test_mask") if getattr(data, k, None) is not None]
    count = next((data[k].shape[1] for k in masks if data[k].dim() > 1), 1)
    if not 0 <= split < count:
        raise UsageError("MT444", f"'{name}' has no split {split}", where=f"it has {count}, 0..{count - 1}")
    for k in masks:
        if data[k].dim() > 1:
            data[k] = data[k][:, split].contiguous()
    return data


__all__ = ["ENVIRONMENT", "NAMES", "available", "folder", "geometric", "load"]
