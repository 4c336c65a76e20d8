"""The bound by hand, a generator that learns a known law, and networks that average their draws."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from microtome.learn.local_augmentation import Augmented, NeighbourGenerator, real_neighbours


def test_the_bound_is_error_and_divergence():
    torch.manual_seed(0)
    model = NeighbourGenerator(3, latent=2)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    torch.manual_seed(1)
    found = float(model.bound(a, b).detach())
    mean, log = model.encoder(torch.cat([a, b], 1)).detach().chunk(2, 1)
    torch.manual_seed(1)
    z = mean + log.exp().sqrt() * torch.randn_like(mean)
    q = torch.distributions.Normal(mean, log.exp().sqrt())
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    error = (model(b, z).detach() - a).square().sum(1) / 2
    assert found == pytest.approx(float((error + divergence).mean()), rel=1e-5)


def test_what_is_generated_follows_the_neighbours_and_depends_on_the_node():
    """Neighbours of a node at s x are spread around -2 s x, half of them in each of two places."""
    torch.manual_seed(0)
    centre = torch.randn(400, 2)
    shift = torch.tensor([[4.0, 0.0]]) * (2 * (torch.rand(400, 1) < 0.5).float() - 1)
    x = torch.cat([centre, -2 * centre + shift])
    edges = torch.stack([torch.arange(400, 800), torch.arange(400)])
    model = NeighbourGenerator(2, latent=2).fit(
        SimpleNamespace(x=x, edge_index=edges), epochs=250, batch_size=400
    )
    drawn = torch.stack([model(centre) for _ in range(40)])
    off = drawn + 2 * centre
    assert float(off.mean((0, 1)).abs().max()) < 0.6
    assert float(off[..., 0].abs().mean()) > 2.5 and float(off[..., 1].abs().mean()) < 1.2
    assert not any(p.requires_grad for p in model.parameters())


def test_real_neighbours_are_drawn_alike_and_a_lone_node_keeps_its_own():
    x = torch.arange(4.0)[:, None]
    data = SimpleNamespace(x=x, edge_index=torch.tensor([[0, 1, 2], [3, 3, 0]]), num_nodes=4)
    draw = real_neighbours(data)
    seen = torch.stack([draw() for _ in range(400)])[..., 0]
    assert set(seen[:, 3].tolist()) == {0.0, 1.0} and abs(float(seen[:, 3].mean()) - 0.5) < 0.15
    assert set(seen[:, 0].tolist()) == {2.0} and set(seen[:, 1].tolist()) == {1.0}


class Plain(nn.Linear):
    def forward(self, x, edge_index):
        return super().forward(x)


def test_answers_are_averaged_over_draws_when_not_training():
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    draws = iter(torch.randn(20, 6, 3))
    model = Augmented(Plain, 3, 4, 2, lambda: next(draws), samples=3, dropout=0.0).eval()
    found = model(x, torch.zeros(2, 0).long())
    draws = iter(torch.randn(20, 6, 3, generator=torch.Generator().manual_seed(5)))
    kept = [torch.randn(6, 3) for _ in range(3)]
    model.sampler = iter(kept * 2).__next__
    one = torch.stack([model.once(x, torch.zeros(2, 0).long()).softmax(1) for _ in range(3)]).mean(0)
    assert torch.allclose(model(x, torch.zeros(2, 0).long()).exp(), one, atol=1e-6)
    assert torch.allclose(found.exp().sum(1), torch.ones(6), atol=1e-5)
    model.train()
    model.sampler = lambda: kept[0]
    assert torch.allclose(model(x, torch.zeros(2, 0).long()).exp().sum(1), torch.ones(6), atol=1e-5)
