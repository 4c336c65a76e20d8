"""One protocol for kernels and networks on sets of graphs: repeated folds with inner selection (Morris et al. 2020).

Every graph is tested once in each repetition. A part of the other graphs is kept for validation and chooses among
candidates (a kernel and its cost, or an epoch of training); all candidates are also tested, so that what choosing by
the test fold would have claimed can be said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import MissingExtraError, UsageError
from microtome.learn.graph_training import fit_graphs

COSTS = tuple(10.0**k for k in range(-3, 4))
"""Of misclassified graphs in support vector machines, as in the paper."""


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of graphs, int64 and without overlap: to fit, to choose, to test."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracies of every candidate on every split.

    Attributes:
        validation, test: [repetitions, folds, candidates].
        candidates: their names, in order; of equal validation accuracy the first is chosen.
    """

    validation: Tensor
    test: Tensor
    candidates: tuple[Any, ...]

    @property
    def chosen(self) -> Tensor:
        """[repetitions, folds] the candidate with the best validation accuracy."""
        best = self.validation.amax(2, keepdim=True)
        return (self.validation == best).int().argmax(2)

    @property
    def accuracy(self) -> Tensor:
        """[repetitions] mean test accuracy of what was chosen, over folds."""
        return self.test.gather(2, self.chosen[..., None])[..., 0].mean(1)

    @property
    def mean(self) -> float:
        """Of all splits."""
        return float(self.accuracy.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions' means: what another draw of folds would change."""
        return float(self.accuracy.std(correction=0))

    @property
    def deviation_of_folds(self) -> float:
        """Standard deviation over all splits: folds of few graphs make it large."""
        return float(self.test.gather(2, self.chosen[..., None]).std(correction=0))

    @property
    def best_of_each_fold(self) -> Tensor:
        """[repetitions] what choosing by the test fold itself would claim."""
        return self.test.amax(2).mean(1)

    @property
    def best_of_all_folds(self) -> Tensor:
        """[repetitions] what one candidate for all folds, chosen by their mean test accuracy, would claim."""
        return self.test.mean(1).amax(1)


def repeated_folds(
    labels: Tensor, *, folds: int = 10, repetitions: int = 10, validation: float = 0.1, seed: int = 0
) -> list[list[Split]]:
    """[repetitions][folds] splits with each class dealt out evenly.

    Args:
        labels: [graphs] int64.
        folds: parts, each tested once.
        repetitions: with the graphs dealt out anew.
        validation: share of the graphs that are not tested.
        seed: of the order.

    Raises:
        UsageError: MT504 where there are too few graphs.
    """
    count = len(labels)
    if folds < 2 or count < 2 * folds or not 0 < validation < 1:
        raise UsageError(
            "MT504", f"{count} graphs cannot be parted into {folds} folds with a share of {validation} to choose by",
            fix="two graphs a fold or more, a share within 0 and 1",
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    every = max(round(1 / validation), 2)
    found = []
    for _ in range(repetitions):
        shuffled = torch.randperm(count, generator=generator)
        dealt = shuffled[labels[shuffled].argsort(stable=True)]
        fold = torch.arange(count) % folds
        turn = []
        for f in range(folds):
            rest = dealt[fold != f]
            held = torch.arange(len(rest)) % every == int(torch.randint(every, (), generator=generator))
            turn.append(Split(rest[~held], rest[held], dealt[fold == f]))
        found.append(turn)
    return found


def evaluate_kernels(
    kernels: Mapping[Any, Tensor],
    labels: Tensor,
    splits: Sequence[Sequence[Split]],
    *,
    costs: Sequence[float] = COSTS,
) -> Evaluation:
    """Support vector machines with each kernel [graphs, graphs] and cost; candidates are (name, cost).

    Networks need the validation part to stop, so machines are not fitted to it either.

    Raises:
        MissingExtraError: MT110 without scikit-learn.
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "studies", "support vector machines") from error
    y = labels.numpy()
    candidates = tuple((name, cost) for name in kernels for cost in costs)
    grams = {name: k.numpy() for name, k in kernels.items()}
    scores = np.zeros((2, len(splits), len(splits[0]), len(candidates)))
    for r, turn in enumerate(splits):
        for f, split in enumerate(turn):
            train, asked = split.train.numpy(), torch.cat([split.validation, split.test]).numpy()
            middle = len(split.validation)
            for c, (name, cost) in enumerate(candidates):
                machine = SVC(C=cost, kernel="precomputed", cache_size=100, max_iter=100_000)
                machine.fit(grams[name][np.ix_(train, train)], y[train])
                right = machine.predict(grams[name][np.ix_(asked, train)]) == y[asked]
                scores[:, r, f, c] = right[:middle].mean(), right[middle:].mean()
    return Evaluation(torch.from_numpy(scores[0]), torch.from_numpy(scores[1]), candidates)


def evaluate_network(
    build: Callable[[], nn.Module],
    graphs: Sequence[Any],
    splits: Sequence[Sequence[Split]],
    *,
    epochs: int = 50,
    rate: float = 0.01,
    batch_size: int = 32,
    seed: int = 0,
) -> Evaluation:
    """A network trained on every split; candidates are the numbers of epochs.

    Args:
        build: called once a split with the random state of ``seed`` and the split; the model is called as
            ``model(x, edge_index, batch)`` with one row of logits a graph.
        graphs: with y [1].
        splits: of :func:`repeated_folds`.
        epochs, rate, batch_size: of :func:`~microtome.learn.graph_training.fit_graphs`.
        seed: of weights and order.
    """
    from torch_geometric.data import Batch

    scores = torch.zeros(2, len(splits), len(splits[0]), epochs, dtype=torch.double)
    for r, turn in enumerate(splits):
        for f, split in enumerate(turn):
            middle = len(split.validation)
            asked = Batch.from_data_list(
                [graphs[i] for i in torch.cat([split.validation, split.test]).tolist()]
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + len(turn) * r + f)
                model = build()

                def note(epoch: int, model: nn.Module = model, asked: Any = asked, at: tuple[int, int] = (r, f),
                         middle: int = middle) -> None:  # fmt: skip
                    with torch.no_grad():
                        answers = model.eval()(asked.x, asked.edge_index, asked.batch).argmax(1)
                    right = (answers == asked.y).double()
                    scores[(0, *at, epoch - 1)], scores[(1, *at, epoch - 1)] = (
                        right[:middle].mean(), right[middle:].mean(),
                    )  # fmt: skip

                fit_graphs(
                    model, [graphs[i] for i in split.train.tolist()], epochs=epochs, rate=rate,
                    batch_size=batch_size, seed=seed + len(turn) * r + f, after_epoch=note,
                )  # fmt: skip
    return Evaluation(scores[0], scores[1], tuple(range(1, epochs + 1)))


__all__ = ["COSTS", "Evaluation", "Split", "evaluate_kernels", "evaluate_network", "repeated_folds"]
