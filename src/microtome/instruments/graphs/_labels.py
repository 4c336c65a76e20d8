"""Counts of labels on edges as signals; what belongs to the whole batch is shared out among its examples."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.graphs.homophily import class_edges, twins
from microtome.signals import derive, task
from microtome.signals.expression import Signal
from microtome.signals.graphs import edges_into, structure
from microtome.structure import Structure
from microtome.task import Task


def known_labels(structure: Structure, task: Task) -> Tensor:
    """[nodes] int64, -1 where a node has no label among the task's classes.

    Raises:
        Refusal: where labels do not belong to nodes.
    """
    if structure.labels is None:
        raise Refusal("nodes have no class labels of their own")
    labels = structure.labels - task.label_offset
    return torch.where((labels >= 0) & (labels < (task.classes or 0)), labels, torch.full_like(labels, -1))


def _labelled_edges(structure: Structure, labels: Tensor) -> Tensor:
    a, b = structure.edge_index
    return structure.edge_index[:, (labels[a] >= 0) & (labels[b] >= 0)]


def _counts(structure: Structure, task: Task) -> Tensor:
    labels = known_labels(structure, task)
    k = task.classes or 0
    return class_edges(_labelled_edges(structure, labels), labels, k) * structure.share


def counts() -> Signal:
    """[k, k] edges from the row's class to the column's, of the whole batch; to be summed."""
    return derive(_counts, structure, task, name="class_edges")


def _sizes(structure: Structure, task: Task) -> Tensor:
    labels = known_labels(structure, task)
    return torch.bincount(labels[labels >= 0], minlength=task.classes or 0).double() * structure.share


def sizes() -> Signal:
    """[k] nodes of each class, of the whole batch; to be summed."""
    return derive(_sizes, structure, task, name="class_sizes")


def _same(structure: Structure, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For the examples of a structure: labelled neighbours of the same class, labelled neighbours."""
    source, place, _ = edges_into(structure)
    kept = labels[source] >= 0
    source, place = source[kept], place[kept]
    n = len(structure.examples)
    own = labels[structure.examples]
    total = torch.bincount(place, minlength=n).double()
    alike = torch.bincount(place, (labels[source] == own[place]).double(), minlength=n)
    return alike, total


def _local(structure: Structure, task: Task) -> Tensor:
    alike, total = _same(structure, known_labels(structure, task))
    return torch.where(total > 0, alike / total.clamp_min(1), torch.full_like(total, -1.0))


def local_homophily() -> Signal:
    """[n] share of each example's neighbours that are of its class; -1 without neighbours."""
    return derive(_local, structure, task, name="local_homophily")


def _nodewise(structure: Structure, task: Task) -> Tensor:
    from microtome.signals.graphs import whole

    alike, total = _same(whole(structure), known_labels(structure, task))
    found = total > 0
    return torch.stack([(alike[found] / total[found]).sum(), found.double().sum()]) * structure.share


def nodewise() -> Signal:
    """[2] summed local homophily over all nodes with neighbours, and how many those are; to be summed."""
    return derive(_nodewise, structure, task, name="node_homophily")


def _twins(structure: Structure, task: Task) -> Tensor:
    labels = known_labels(structure, task)
    group = twins(structure.edge_index, labels, structure.nodes, structure.node_ids)
    group = torch.where(labels >= 0, group, torch.full_like(group, -1))
    found = torch.zeros(len(structure.examples), 2, dtype=torch.double)
    own = group[structure.examples]
    found[:, 0] = (own >= 0).double()
    if structure.train is not None:
        trained = group[structure.train]
        found[:, 1] = ((own >= 0) & torch.isin(own, trained[trained >= 0])).double()
        found[structure.train[structure.examples], 1] = 0.0
    return found


def twinned() -> Signal:
    """[n, 2] whether an example has a twin (same neighbours, same label), and whether it has one in training."""
    return derive(_twins, structure, task, name="twins")


def _duplicates(structure: Structure, task: Task) -> Tensor:
    labels = known_labels(structure, task)
    group = twins(structure.edge_index, labels, structure.nodes, structure.node_ids)
    inside = (group >= 0) & (labels >= 0)
    extra = int(inside.sum()) - len(group[inside].unique())
    trained = 0 if structure.train is None else int(structure.train.sum())
    return torch.tensor(
        [float(structure.nodes), float(inside.sum()), float(extra), float(trained)]
    ).double() * (structure.share)


def duplicates() -> Signal:
    """[4] nodes, nodes with a twin, nodes to remove so that none is left, training nodes; to be summed."""
    return derive(_duplicates, structure, task, name="duplicates")
