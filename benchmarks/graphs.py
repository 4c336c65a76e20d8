"""Graph networks against PyTorch Geometric as it comes, in one process: ratios of medians.

``python -m benchmarks.graphs explain [--steps 200] [--nodes 3] [--threads T]``: explanations of nodes against its
GNNExplainer, for a two-layer GCN on a graph as large as Cora (2,708 nodes, 1,433 features of which 18 a node are 1).
Both start from the same initial masks; seconds a node.

``python -m benchmarks.graphs epochs [--turns 15] [--threads T]``: a training epoch and inference of two-layer networks
of its own layers on the same graph, as they are and inside ``sparse_features``, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graph_generators import stochastic_blocks
from microtome.graphs.explainer import SubgraphGNNExplainer
from microtome.graphs.sparse_features import SparseFeatures, sparse_features

NODES, FEATURES, WORDS = 2708, 1433, 18
CONFIG = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}


class Gcn(nn.Module):
    """1433-16-7."""

    def __init__(self) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.conv1, self.conv2 = GCNConv(FEATURES, 16), GCNConv(16, 7)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, 1433] -> [nodes, 7]."""
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)


def graph() -> tuple[Tensor, Any]:
    """Features and the graph."""
    torch.manual_seed(0)
    made = stochastic_blocks(NODES, 7, degree=3.9, features=16, seed=0)
    return torch.zeros(NODES, FEATURES).scatter_(1, torch.randint(FEATURES, (NODES, WORDS)), 1.0), made


def epochs(options: argparse.Namespace) -> None:
    """Print a line a network."""
    from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

    def isomorphism(inputs: int, outputs: int) -> nn.Module:
        return GINConv(nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs)))

    class Two(nn.Module):
        def __init__(self, layer: Callable[[int, int], nn.Module], dropped: float) -> None:
            super().__init__()
            self.first, self.second, self.dropped = layer(FEATURES, 16), layer(16, 7), dropped

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            x = F.dropout(x, self.dropped, self.training) if self.dropped else x
            return self.second(F.relu(self.first(x, edge_index)), edge_index)

    x, made = graph()
    held = SparseFeatures(x)
    kinds = {"GCN": GCNConv, "GAT": GATConv, "SAGE": SAGEConv, "GIN": isomorphism}
    for name, layer in kinds.items():
        for dropped in (0.0, 0.5):
            torch.manual_seed(0)
            model = Two(layer, dropped)
            optimiser = torch.optim.Adam(model.parameters(), 0.01)

            def epoch(model: Any = model, optimiser: Any = optimiser) -> None:
                model.train()
                optimiser.zero_grad()
                F.cross_entropy(model(x, made.edge_index), made.y).backward()
                optimiser.step()

            def answer(model: Any = model) -> None:
                model.eval()
                with torch.no_grad():
                    model(x, made.edge_index)

            times: dict[str, list[float]] = {}
            for _ in range(options.turns):
                for kind, work in (("epoch", epoch), ("inference", answer)):
                    for sparse in (False, True):
                        began = time.perf_counter()
                        with sparse_features(held) if sparse else contextlib.nullcontext():
                            work()
                        times.setdefault(f"{kind}{', sparse' if sparse else ''}", []).append(
                            time.perf_counter() - began
                        )
            ms = {k: 1e3 * statistics.median(v[1:]) for k, v in times.items()}
            print(
                f"{name}, dropout of features {dropped}: "
                + "; ".join(
                    f"{k} {ms[k]:.1f} ms, sparse {ms[f'{k}, sparse']:.1f} ms, ratio {ms[f'{k}, sparse'] / ms[k]:.2f}"
                    for k in ("epoch", "inference")
                )
            )


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("explain", "epochs"), default="explain")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3, help="how many PyTorch Geometric explains")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (epochs if options.what == "epochs" else explain)(options)


def explain(options: argparse.Namespace) -> None:
    """Print the ratio of seconds a node."""
    from torch_geometric import __version__ as theirs
    from torch_geometric.explain import Explainer, GNNExplainer

    x, made = graph()
    model = Gcn().eval()
    with torch.no_grad():
        target = model(x, made.edge_index).argmax(1)
    ours = SubgraphGNNExplainer(epochs=options.steps)
    kwargs = {"model_config": CONFIG, "node_mask_type": "attributes", "edge_mask_type": "object"}
    Explainer(model, ours, "model", **kwargs)
    peer = Explainer(model, GNNExplainer(epochs=options.steps), "model", **kwargs)
    chosen = torch.randperm(NODES)[: 3 * ours.batch]
    slow, masks = [], []
    for node in chosen[: options.nodes].tolist():
        torch.manual_seed(0)
        began = time.perf_counter()
        masks.append(peer(x, made.edge_index, index=node))
        slow.append(time.perf_counter() - began)
    fast, found = [], []
    for some in chosen.split(ours.batch):
        began = time.perf_counter()
        found += ours.explain(model, x, made.edge_index, some, target=target)
        fast.append((time.perf_counter() - began) / len(some))
    alone = []
    for node in chosen[: options.nodes].tolist():
        began = time.perf_counter()
        ours.explain(model, x, made.edge_index, [node], target=target)
        alone.append(time.perf_counter() - began)
    gap = max(
        max(float((a.edge_mask - b.edge_mask).abs().max()), float((a.node_mask - b.node_mask).abs().max()))
        for a, b in zip(masks, found, strict=False)
    )
    peer_time, many, one = (statistics.median(v) for v in (slow, fast, alone))
    print(
        json.dumps(
            {
                "torch_geometric": theirs, "torch": torch.__version__, "threads": options.threads,
                "steps": options.steps, "largest difference of masks": gap, "seconds a node, PyG": peer_time,
                "seconds a node, one at a time": one, "seconds a node, many at once": many,
                "ratio, one at a time": peer_time / one, "ratio, many at once": peer_time / many,
            },
            indent=1,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
