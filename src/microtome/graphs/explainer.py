"""GNNExplainer where only the node's computational subgraph is optimised, and many nodes are at once.

The masks are those of PyTorch Geometric's own ``GNNExplainer`` from the same initial values, to rounding: what lies
outside the subgraph has no gradient there, keeps its initial value and is cut off at the end. Of the node features only
those that are not zero have a gradient, so only they are optimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.blocks import Blocks, computational_blocks
from microtome.graphs.sparse_features import SparseFeatures, sparse_features

geometric()
from torch_geometric.explain import Explanation, GNNExplainer  # noqa: E402 - only once it is known to be there
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks  # noqa: E402
from torch_geometric.explain.config import MaskType, ModelMode  # noqa: E402
from torch_geometric.nn import MessagePassing  # noqa: E402

TOLERANCE = 1e-4


class SubgraphGNNExplainer(GNNExplainer):
    """GNNExplainer on computational subgraphs (Ying et al. 2019); a drop-in for PyTorch Geometric's.

    Used through ``Explainer(model, SubgraphGNNExplainer(epochs=200), ...)`` as the original is, or for many nodes at
    once by :meth:`explain`. Falls back on the original for graph tasks (no ``index``) and for networks whose answer on
    the subgraph is another one (global pooling, norms over all nodes).

    Args:
        epochs, lr, **kwargs: as PyTorch Geometric's.
        hops: convolutions of the network; by default the number of its message-passing modules.
        batch: nodes explained together by :meth:`explain`.
    """

    def __init__(
        self, epochs: int = 100, lr: float = 0.01, *, hops: int | None = None, batch: int = 32, **kwargs: Any
    ) -> None:
        super().__init__(epochs, lr, **kwargs)
        self.hops, self.batch = hops, batch
        self.node_mask: Any
        self.edge_mask: Any

    def forward(
        self, model: Any, x: Any, edge_index: Any, *, target: Any, index: Any = None, **kwargs: Any
    ) -> Any:
        """As PyTorch Geometric's: masks [nodes, ...] and [edges] for the whole graph."""
        if index is None or not isinstance(x, Tensor) or self._flow(model) != "source_to_target":
            return super().forward(model, x, edge_index, target=target, index=index, **kwargs)
        asked = torch.as_tensor(index).reshape(-1)
        self.is_hetero = False
        state = torch.get_rng_state()
        self._initialize_masks(x, edge_index)
        start = self.node_mask, self.edge_mask
        self.node_mask = self.edge_mask = None
        blocks = computational_blocks(edge_index, len(x), [asked], self.hops or self._num_hops(model))
        found = self._optimise(model, x, edge_index, target, blocks, start, kwargs)
        if found is None:
            torch.set_rng_state(state)  # so that the original draws what it would have drawn
            return super().forward(model, x, edge_index, target=target, index=index, **kwargs)
        return self._explanation(x, edge_index, *found, 0, blocks)

    def explain(
        self,
        model: torch.nn.Module,
        x: Tensor,
        edge_index: Tensor,
        nodes: Sequence[int] | Tensor,
        *,
        target: Tensor,
        seed: int = 0,
        **kwargs: Any,
    ) -> list[Any]:
        """One explanation a node: the one PyTorch Geometric gives after ``torch.manual_seed(seed)``.

        Args:
            model: in eval mode.
            x: [n, d].
            edge_index: [2, m].
            nodes: which to explain.
            target: [n] as the explainer's ``get_target`` gives it.
            seed: of the initial masks, which are the same for every node.
            **kwargs: further arguments of the model.

        Raises:
            UsageError: MT447 when the network's answers on subgraphs are others than on the graph.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.is_hetero = False
            self._initialize_masks(x, edge_index)
        start = self.node_mask, self.edge_mask
        self.node_mask = self.edge_mask = None
        hops, found = self.hops or self._num_hops(model), []
        for some in torch.as_tensor(nodes).reshape(-1).split(self.batch):
            blocks = computational_blocks(edge_index, len(x), list(some.split(1)), hops)
            masks = self._optimise(model, x, edge_index, target, blocks, start, kwargs)
            if masks is None:
                raise UsageError(
                    "MT447",
                    "the network answers otherwise on a node's subgraph than on the whole graph",
                    fix="explain node by node through Explainer(...), or give hops=number of convolutions",
                )
            found += [self._explanation(x, edge_index, *masks, b, blocks) for b in range(blocks.count)]
        return found

    def _optimise(
        self,
        model: Any,
        x: Tensor,
        edge_index: Tensor,
        target: Tensor,
        blocks: Blocks,
        start: tuple[Any, Any],
        kwargs: dict[str, Any],
    ) -> tuple[Tensor | None, Tensor | None, tuple[Tensor, Tensor, Tensor]] | None:
        """Final masks of the blocks' features and edges, flat; None when the subgraph does not do."""
        given = blocks.arguments(kwargs, len(x), edge_index.shape[1])
        inner = blocks.rows(x)
        with torch.no_grad():
            asked = blocks.nodes[blocks.index]
            whole, part = (
                model(x, edge_index, **kwargs)[asked],
                model(inner, blocks.edge_index, **given)[blocks.index],
            )
            if not torch.allclose(whole, part, rtol=TOLERANCE, atol=TOLERANCE * float(whole.abs().max())):
                return None
        sparse = SparseFeatures(inner)
        row, column, values = sparse.row, sparse.column, sparse.values
        owner, features = self._owners(blocks, row, column, inner.shape[1], start[0])
        edge = None if start[1] is None else start[1].detach()[blocks.edges].clone().requires_grad_()
        parameters = [p for p in (features, edge) if p is not None]
        optimiser = torch.optim.Adam(parameters, lr=self.lr)
        labels = target[blocks.nodes[blocks.index]]
        share = (1.0 / torch.bincount(blocks.index_block, minlength=blocks.count))[blocks.index_block]
        own = self._feature_blocks(blocks, row, owner)
        hard: list[Tensor] | None = None
        try:
            if edge is not None:
                set_masks(
                    model, torch.nn.Parameter(edge, requires_grad=True), blocks.edge_index, apply_sigmoid=True
                )
                edge = next(m._edge_mask for m in model.modules() if isinstance(m, MessagePassing))
                parameters[-1] = edge
                optimiser = torch.optim.Adam(parameters, lr=self.lr)
            for _ in range(self.epochs):
                kept = None if features is None else values * features.sigmoid()[owner]
                with sparse_features(sparse, kept):
                    answers = model(inner, blocks.edge_index, **given)[blocks.index]
                loss = (self._each_loss(answers, labels) * share).sum()
                if hard is not None:
                    loss = loss + self._regularisation(parameters, hard, own, blocks, features is not None)
                slopes = torch.autograd.grad(loss, parameters)
                if hard is None:
                    hard = [g != 0 for g in slopes]
                for parameter, slope in zip(parameters, slopes, strict=True):
                    parameter.grad = slope
                optimiser.step()
        finally:
            clear_masks(model)
        assert hard is not None
        final = [
            torch.where(h, p.detach().sigmoid(), torch.zeros_like(p))
            for p, h in zip(parameters, hard, strict=True)
        ]
        found = final[0][owner] if features is not None else None
        return found, (final[-1] if edge is not None else None), (row, column, owner)

    def _owners(
        self, blocks: Blocks, row: Tensor, column: Tensor, width: int, start: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Which parameter each feature that is not zero has, and the parameters' initial values."""
        if start is None:
            return row, None
        initial, kind = start.detach(), self.explainer_config.node_mask_type
        if kind == MaskType.object:
            owner, place = row.unique(return_inverse=True)
            return place, initial[blocks.nodes[owner], 0].clone().requires_grad_()
        if kind == MaskType.common_attributes:
            keys, place = (blocks.node_block[row] * width + column).unique(return_inverse=True)
            return place, initial[0, keys % width].clone().requires_grad_()
        return torch.arange(len(row)), initial[blocks.nodes[row], column].clone().requires_grad_()

    def _feature_blocks(self, blocks: Blocks, row: Tensor, owner: Tensor) -> Tensor:
        block = torch.zeros(int(owner.max()) + 1 if len(owner) else 0, dtype=torch.long)
        block[owner] = blocks.node_block[row]
        return block

    def _each_loss(self, answers: Tensor, labels: Tensor) -> Tensor:
        """[t] PyTorch Geometric's loss of each answer alone."""
        if self.model_config.mode == ModelMode.multiclass_classification:
            log = {"raw": lambda a: a.log_softmax(1), "probs": torch.log, "log_probs": lambda a: a}
            given = log[self.model_config.return_type.value](answers)
            return -given.gather(1, labels[:, None])[:, 0]
        pairs = zip(answers, labels, strict=True)
        return torch.stack([self._calculate_base_loss(a[None], b[None]) for a, b in pairs])

    def _regularisation(
        self, parameters: list[Tensor], hard: list[Tensor], own: Tensor, blocks: Blocks, features: bool
    ) -> Tensor:
        """The sum over blocks of PyTorch Geometric's size and entropy terms."""
        total = parameters[0].new_zeros(())
        tiny = self.coeffs["EPS"]
        kinds = [("node_feat", own)] * features + [("edge", blocks.edge_block)]
        for parameter, used, (name, block) in zip(parameters, hard, kinds, strict=False):
            m, group = parameter[used].sigmoid(), block[used]
            mean = (1.0 / torch.bincount(group, minlength=blocks.count).clamp_min(1))[group]
            weight = mean if self.coeffs[f"{name}_reduction"] == "mean" else torch.ones_like(mean)
            entropy = -m * torch.log(m + tiny) - (1 - m) * torch.log(1 - m + tiny)
            total = total + self.coeffs[f"{name}_size"] * (m * weight).sum()
            total = total + self.coeffs[f"{name}_ent"] * (entropy * mean).sum()
        return total

    def _explanation(
        self,
        x: Tensor,
        edge_index: Tensor,
        features: Tensor | None,
        edges: Tensor | None,
        where: tuple[Tensor, Tensor, Tensor],
        block: int,
        blocks: Blocks,
    ) -> Any:
        """One block's masks, for the whole graph."""
        node_mask = edge_mask = None
        row, column, _ = where
        if features is not None:
            kind = self.explainer_config.node_mask_type
            inside = blocks.node_block[row] == block
            at, of = blocks.nodes[row[inside]], column[inside]
            if kind == MaskType.object:
                node_mask = torch.zeros(len(x), 1)
                node_mask[at, 0] = features[inside]
            elif kind == MaskType.common_attributes:
                node_mask = torch.zeros(1, x.shape[1])
                node_mask[0, of] = features[inside]
            else:
                node_mask = torch.zeros_like(x)
                node_mask[at, of] = features[inside]
        if edges is not None:
            inside = blocks.edge_block == block
            edge_mask = torch.zeros(edge_index.shape[1], dtype=edges.dtype)
            edge_mask[blocks.edges[inside]] = edges[inside]
        return Explanation(node_mask=node_mask, edge_mask=edge_mask)


__all__ = ["SubgraphGNNExplainer"]
