"""Each example's answer beside two different companions: what of it the others of a batch decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.interpret import forward
from microtome.signals.interpretation import Interpretation, Scene


@dataclass(frozen=True)
class Companions(Interpretation):
    """[n] largest change of an example's outputs when the other example of a batch of two is exchanged.

    The companions are made of the example itself, so that the answer does not depend on its batch: ten times its
    negative, and zeros (token ids: the reverse, and the first one repeated). Exactly 0 where examples are apart.
    """

    cost = 8.0

    def read(self, scene: Scene) -> Tensor:
        """As float64."""
        graph = scene.graph
        if not graph.dynamic or not scene.batch.divisible:
            raise Refusal(
                "the network takes only whole batches of the loader: an example has no batch of its own"
            )
        n = len(scene.batch)
        found = torch.zeros(n, dtype=torch.float64)
        for i in range(n):
            answers = []
            for kind in (0, 1):
                pair = {
                    node: torch.stack([value[i], _companion(value[i], kind)])
                    if node in graph.batched
                    else value
                    for node, value in scene.inputs.items()
                }
                run = forward(graph, pair, parameters=scene.parameters)
                answers.append(
                    [v[0] for v in run.values.values() if isinstance(v, Tensor) and v.dim() and len(v) == 2]
                )
            for a, b in zip(*answers, strict=True):
                found[i] = torch.maximum(found[i], (a.double() - b.double()).abs().max().cpu())
        return found


def _companion(own: Tensor, kind: int) -> Tensor:
    if own.is_floating_point():
        return -10 * own - 1 if kind else torch.zeros_like(own)
    if own.dtype == torch.bool or not own.dim():
        return own
    return own.flip(-1) if kind else own.flatten()[:1].expand(own.numel()).reshape(own.shape)


__all__ = ["Companions"]
