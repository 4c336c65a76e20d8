"""Explanations of nodes against PyTorch Geometric's GNNExplainer, in one process: same masks, ratio of medians.

``python -m benchmarks.graphs [--steps 200] [--nodes 3] [--threads T]``: a two-layer GCN on a graph as large as Cora
(2,708 nodes, 1,433 features of which 18 a node are 1). Both start from the same initial masks; seconds a node.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graph_generators import stochastic_blocks
from microtome.graphs.explainer import SubgraphGNNExplainer

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3, help="how many PyTorch Geometric explains")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from torch_geometric import __version__ as theirs
    from torch_geometric.explain import Explainer, GNNExplainer

    torch.manual_seed(0)
    graph = stochastic_blocks(NODES, 7, degree=3.9, features=16, seed=0)
    x = torch.zeros(NODES, FEATURES).scatter_(1, torch.randint(FEATURES, (NODES, WORDS)), 1.0)
    model = Gcn().eval()
    with torch.no_grad():
        target = model(x, graph.edge_index).argmax(1)
    ours = SubgraphGNNExplainer(epochs=options.steps)
    kwargs = {"model_config": CONFIG, "node_mask_type": "attributes", "edge_mask_type": "object"}
    Explainer(model, ours, "model", **kwargs)
    peer = Explainer(model, GNNExplainer(epochs=options.steps), "model", **kwargs)
    chosen = torch.randperm(NODES)[: 3 * ours.batch]
    slow, masks = [], []
    for node in chosen[: options.nodes].tolist():
        torch.manual_seed(0)
        began = time.perf_counter()
        masks.append(peer(x, graph.edge_index, index=node))
        slow.append(time.perf_counter() - began)
    fast, found = [], []
    for some in chosen.split(ours.batch):
        began = time.perf_counter()
        found += ours.explain(model, x, graph.edge_index, some, target=target)
        fast.append((time.perf_counter() - began) / len(some))
    alone = []
    for node in chosen[: options.nodes].tolist():
        began = time.perf_counter()
        ours.explain(model, x, graph.edge_index, [node], target=target)
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
