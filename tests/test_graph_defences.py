"""Defences against poisoned edges, against direct loops, dense matrices and a general minimiser."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from microtome.data.graph_generators import stochastic_blocks
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")

from microtome.graphs import poisoning
from microtome.graphs import purification as pure
from microtome.graphs.resistance import undirected


def _graph(nodes=40, seed=0, **more):
    return stochastic_blocks(nodes, 3, degree=5, features=6, shares=(0.3, 0.2), seed=seed, **more)


def _words(graph, seed=0):
    draw = torch.Generator().manual_seed(seed)
    own = torch.arange(60) % 3 == graph.y[:, None]
    graph.x = (torch.rand(len(graph.y), 60, generator=draw) < torch.where(own, 0.4, 0.1)).float()
    return graph


def test_likeness_is_that_of_sets_and_of_angles():
    graph = _words(_graph())
    graph.x[3] = 0
    pairs = torch.tensor([[0, 1, 3, 3], [1, 5, 2, 4]])
    for metric in ("jaccard", "cosine"):
        found = pure.similarity(graph.x, pairs, metric)
        for i, (u, v) in enumerate(pairs.T.tolist()):
            a, b = set(graph.x[u].nonzero()[:, 0].tolist()), set(graph.x[v].nonzero()[:, 0].tolist())
            size = len(a | b) if metric == "jaccard" else (len(a) * len(b)) ** 0.5
            assert float(found[i]) == pytest.approx(len(a & b) / size if size else 0.0)


def test_cutting_leaves_the_alike_edges_and_their_marks():
    graph = poisoning.InsertBetweenClasses(share=0.3)(_words(_graph()))
    cut = pure.DropUnlike(0.1)(graph)
    before, marks = poisoning.injected(graph)
    alike = pure.similarity(graph.x, before, "jaccard") >= 0.1
    after, kept = poisoning.injected(cut)
    assert 0 < after.shape[1] < before.shape[1]
    assert torch.equal(after, before[:, alike])
    assert torch.equal(kept, marks[alike])
    assert cut.is_undirected()


def test_low_rank_is_the_truncated_decomposition_and_spreads_like_its_dense_matrix():
    graph = _graph()
    dense = torch.zeros(40, 40, dtype=torch.float64)
    dense[graph.edge_index[0], graph.edge_index[1]] = 1
    low = pure.LowRank(graph.edge_index, 40, 7)
    u, s, v = torch.linalg.svd(dense)
    expected = (u[:, :7] * s[:7]) @ v[:7]
    pairs = undirected(graph.edge_index, 40)
    assert torch.allclose(low.score(pairs).double(), expected[pairs[0], pairs[1]], atol=1e-5)
    loops = expected + torch.eye(40)
    scale = loops.sum(1).clamp_min(1).rsqrt()
    spread = scale[:, None] * loops * scale @ graph.x.double()
    assert torch.allclose(low.spread(graph.x).double(), spread, atol=1e-5)
    with pytest.raises(UsageError, match="MT474"):
        pure.LowRank(graph.edge_index, 40, 40)


def test_the_auc_of_a_score_counts_pairs():
    trust, marks = torch.tensor([0.9, 0.1, 0.5, 0.5]), torch.tensor([False, True, True, False])
    pairs = [(t, f) for t in (0.1, 0.5) for f in (0.9, 0.5)]
    expected = np.mean([1.0 if t < f else 0.5 if t == f else 0.0 for t, f in pairs])
    assert pure.injected_auroc(trust, marks) == pytest.approx(expected)
    assert pure.injected_auroc(trust, torch.zeros(4, dtype=torch.bool)) is None


def test_the_contrast_is_the_cross_entropy_of_two_views():
    from microtome.graphs.stable import ContrastiveEncoder

    graph = _graph()
    torch.manual_seed(0)
    encoder = ContrastiveEncoder(6, 4)
    clean, _ = poisoning.propagation(graph.edge_index, 40)
    views = [poisoning.propagation(graph.edge_index[:, i::3], 40)[0] for i in range(2)]
    order = torch.randperm(40)
    encoder.requires_grad_(False)
    real, false = encoder(graph.x, clean), encoder(graph.x[order], clean)
    summaries = [encoder(graph.x, v).mean(0).sigmoid() for v in views]
    logits = torch.tensor(
        [[sum(float(h @ encoder.judge @ s) for s in summaries) for h in rows] for rows in (real, false)]
    )
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.stack([torch.ones(40), torch.zeros(40)])
    )
    assert float(encoder.loss(graph.x, clean, views, order)) == pytest.approx(float(expected), abs=1e-5)


def test_refinement_cuts_the_unlike_and_joins_the_nearest_trusted_nodes():
    from microtome.graphs.stable import STABLE

    graph = poisoning.InsertBetweenClasses(share=0.4)(_graph(seed=2))
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    refined = STABLE(cut=0.0, neighbours=2, trusted=3).refine(graph, rows)
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    kept = {(u, v) for u, v in poisoning.injected(graph)[0].T.tolist() if cosine[u, v] > 0}
    degree = [sum(n in e for e in kept) for n in range(40)]
    added = set()
    for n in range(40):
        others = sorted(
            (m for m in range(40) if m != n and degree[m] > 3), key=lambda m: -float(cosine[n, m])
        )
        added |= {(min(n, m), max(n, m)) for m in others[:2]}
    pairs, marks = poisoning.injected(refined)
    assert {tuple(e) for e in pairs.T.tolist()} == kept | added
    old, false = poisoning.injected(graph)
    bad = {tuple(e) for e in old[:, false].T.tolist()}
    assert {tuple(e) for e in pairs[:, marks].T.tolist()} == kept & bad
    assert torch.equal(refined.x, rows)


def test_stable_rows_find_injected_edges_and_do_not_disturb_random_numbers():
    from microtome.graphs.stable import STABLE

    graph = poisoning.InsertBetweenClasses(share=0.2)(_words(_graph(150)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    method = STABLE(rough=0.1, epochs=60, rate=0.005)
    rows = method.represent(graph)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(rows, method.represent(graph))
    pairs, marks = poisoning.injected(graph)
    assert pure.injected_auroc(pure.similarity(rows, pairs), marks) > 0.8
    with pytest.raises(UsageError, match="MT475"):
        STABLE(recover=2.0).represent(graph)


def test_degree_weights_add_up_to_one_and_heed_the_power():
    from microtome.graphs.stable import DegreeGCN

    graph = _graph()
    edges, weight = DegreeGCN(6, 4, 3, alpha=0.6).weigh(graph.edge_index, 40)
    degree = [1 + int((graph.edge_index[1] == n).sum()) for n in range(40)]
    for n in range(40):
        sources = edges[0, edges[1] == n].tolist()
        total = sum((degree[s] * degree[n]) ** 0.6 for s in sources)
        expected = torch.tensor([(degree[s] * degree[n]) ** 0.6 / total for s in sources])
        assert torch.allclose(weight[edges[1] == n], expected)


def test_the_convex_cleaning_is_the_minimum_that_a_general_method_finds():
    from scipy.optimize import minimize

    from microtome.graphs.plapgnn import PLaplacianCleaning

    graph = _graph(20)
    pairs = undirected(graph.edge_index, 20)
    clean = PLaplacianCleaning(p=3.0, smooth=1.2, steps=20000)
    u, v = pairs.numpy()
    x = graph.x.double().numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[u] - unit[v], axis=1)

    def laplacian(w):
        dense = np.zeros((20, 20))
        dense[u, v] = dense[v, u] = -w
        return dense + np.diag(-dense.sum(1))

    def objective(w):
        gap = laplacian(w) - laplacian(np.ones(len(u)))
        return 0.5 * (gap**2).sum() + 1.2 * (w * distance**3).sum()

    best = minimize(objective, np.ones(len(u)), bounds=[(0, None)] * len(u), method="L-BFGS-B")
    found = clean.weigh(pairs, graph.x)
    assert objective(found.numpy()) == pytest.approx(best.fun, rel=1e-4)
    assert np.allclose(found.numpy(), best.x, atol=0.02)
    assert 0 < int((found == 0).sum()) < len(u)


def test_no_step_of_the_cleaning_raises_its_objective():
    from microtome.graphs.plapgnn import PLaplacianCleaning

    graph = _graph(seed=3)
    pairs = undirected(graph.edge_index, 40)
    for p, bend in ((1.0, 0.5), (2.0, 1.0), (6.0, 0.3)):
        values = []
        for steps in range(1, 25):
            clean = PLaplacianCleaning(p=p, bend=bend, smooth=2.0, steps=steps)
            values.append(float(clean.objective(clean.weigh(pairs, graph.x), pairs, graph.x)))
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(values))
        assert values[-1] < values[0]
    with pytest.raises(UsageError, match="MT476"):
        PLaplacianCleaning(bend=1.5).weigh(pairs, graph.x)


def test_a_weighted_network_is_the_plain_one_when_all_weights_are_one():
    from torch_geometric.nn import GCNConv

    from microtome.graphs.plapgnn import PLaplacianCleaning, WeightedGCN

    graph = _graph()
    same = PLaplacianCleaning(smooth=0.0)(graph)
    assert torch.equal(same.edge_weight, torch.ones(same.edge_index.shape[1]))
    network = WeightedGCN(same.edge_weight, 6, 5, 3).eval()
    plain = GCNConv(6, 5)
    plain.load_state_dict(network.first.state_dict())
    expected = network.second(torch.relu(plain(graph.x, graph.edge_index)), graph.edge_index)
    assert torch.allclose(network(graph.x, same.edge_index), expected, atol=1e-6)


def test_outliers_are_far_on_the_side_of_strangers_alone():
    from microtome.graphs.edog import edge_outliers

    graph = poisoning.InsertBetweenClasses(share=0.1)(_words(_graph(60)))
    pairs, marks = poisoning.injected(graph)
    near = {n: set() for n in range(60)}
    for u, v in graph.edge_index.T.tolist():
        near[v].add(u)

    def cosine(a, b):
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    unit = torch.nn.functional.normalize(graph.x, dim=1)
    rows = []
    for u, v in pairs.T.tolist():
        others = [
            cosine(unit[a], sum((unit[w] for w in near[b] - {a}), torch.zeros(60)))
            for a, b in ((u, v), (v, u))
        ]
        common = sum(1 / np.log(max(len(near[w]), 2)) for w in near[u] & near[v])
        rows.append([cosine(graph.x[u], graph.x[v]), min(others), np.log1p(common)])
    table = torch.tensor(rows, dtype=torch.float64)
    table = table - table.median(0).values
    inverse = torch.linalg.inv(table.T @ table / len(table) + 1e-6 * torch.eye(3))
    low = table.clamp_max(0)
    expected = torch.einsum("mi,ij,mj->m", low, inverse, low).clamp_min(0).sqrt()
    found = edge_outliers(graph, pairs)
    assert torch.allclose(found.double(), expected, atol=1e-3)
    assert pure.injected_auroc(-found, marks) > 0.7


def test_no_edge_vouches_for_itself():
    from microtome.graphs.edog import EDoG

    graph = _graph(50)
    pairs = undirected(graph.edge_index, 50)
    for seen in (0.25, 0.5, 0.75):
        detector = EDoG(steps=5, seen=seen, samples=4)
        model = detector.fit(graph)
        trust, x = detector.trust(graph, model=model), detector.rows(graph)
        draw = torch.Generator().manual_seed(1)
        total, times = torch.zeros(len(trust)), torch.zeros(len(trust))
        folds = 2 if seen == 0.5 else 4
        for sample in range(4):
            if sample % folds == 0:
                fold = torch.randperm(len(trust), generator=draw) % folds
            left = fold != sample % folds if seen < 0.5 else fold == sample % folds
            rows = model(x, poisoning.propagation(pairs[:, ~left], 50)[0]).detach()
            for e in left.nonzero()[:, 0].tolist():
                u, v = pairs[:, e]
                total[e] += float(rows[u] @ rows[v]) / 16**0.5 + float(model.bias.detach())
                times[e] += 1
        assert int(times.min()) > 0
        assert torch.allclose(trust, total / times, atol=1e-4)


def test_a_generator_of_links_finds_edges_between_blocks_whatever_order_they_come_in():
    from microtome.graphs.edog import EDoG

    graph = stochastic_blocks(200, 3, degree=8, homophily=0.9, features=6, signal=2.0, seed=3)
    attacked = poisoning.InsertBetweenClasses(share=0.1)(graph)
    pairs, marks = poisoning.injected(attacked)
    trust = EDoG(steps=80).trust(attacked)
    assert pure.injected_auroc(trust, marks) > 0.85
    turned = EDoG(steps=80).trust(attacked, pairs.flip(0))
    assert torch.allclose(trust, turned, atol=1e-5)
    for bad in (EDoG(seen=1.0), EDoG(filtered=1.0)):
        with pytest.raises(UsageError, match="MT477"):
            bad.fit(graph)
