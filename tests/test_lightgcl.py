"""The two views, their contrast and its loss against dense matrices; interactions and recall against counting."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.errors import UsageError

pytest.importorskip("torch_geometric")

from microtome.data.interactions import Interactions, lastfm, planted
from microtome.learn.link_training import fit_facts
from microtome.learn.recommendation import recommended
from microtome.nn.lightgcl import LightGCL, normalised_svd

DATA = planted(12, 30, activity=(2, 7), test=3, seed=1)


def _dense():
    a = torch.zeros(12, 30, dtype=torch.double)
    a[DATA.train[0], DATA.train[1]] = 1
    du, di = a.sum(1, keepdim=True).clamp(min=1), a.sum(0).clamp(min=1)
    return a / (du * di).sqrt()


def _model(**more):
    torch.manual_seed(0)
    return LightGCL(12, 30, DATA.train, 4, rank=3, **more).double()


def _best():
    u, s, vt = torch.linalg.svd(_dense())
    return u[:, :3] * s[:3] @ vt[:3]


def test_the_truncated_svd_is_the_dense_one():
    left, s, right = normalised_svd(DATA.train, 12, 30, 3)
    assert torch.allclose(((left * s) @ right.T).double(), _best(), atol=1e-5)
    assert s.tolist() == sorted(s.tolist(), reverse=True)
    with pytest.raises(UsageError, match=r"rank 12 is not in 1\.\.11"):
        normalised_svd(DATA.train, 12, 30, 12)


def test_both_views_are_products_with_dense_matrices():
    model = _model()
    u, i = model.embedding.weight.split([12, 30])
    a, low = _dense(), _best()
    users, items = [u], [i]
    for _ in range(2):
        users, items = [*users, a @ items[-1]], [*items, a.T @ users[-1]]
    main = torch.cat([sum(users) / 3, sum(items) / 3])
    assert torch.allclose(model.embeddings(), main)
    second = [torch.cat([u, i])]
    for k in range(2):
        second.append(torch.cat([low @ items[k], low.T @ users[k]]))
    found = model.second_view(model.layers_of(model.edges))
    assert torch.allclose(found, sum(second) / 3, atol=1e-5)
    scores = main[[3, 5]] @ main[12:].T
    assert torch.allclose(model.scores(torch.tensor([3, 5])), scores)


def test_the_contrast_is_infonce_against_all_nodes_of_a_side():
    model = _model(temperature=0.3)
    layers = model.layers_of(model.edges)
    one, two = sum(layers) / 3, model.second_view(layers)
    expected = 0.0
    for rows, first, last in (([0, 4, 7], 0, 12), ([2, 9], 12, 42)):
        terms = []
        for r in rows:
            cosines = [
                float(torch.cosine_similarity(two[first + r], one[j], dim=0).detach())
                for j in range(first, last)
            ]
            top = cosines[r] / 0.3
            terms.append(math.log(sum(math.exp(c / 0.3) for c in cosines)) - top)
        expected += sum(terms) / len(terms)
    found = model.contrast(layers, torch.tensor([0, 4, 7]), torch.tensor([2, 9]))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)


def test_edges_are_left_out_of_the_second_view_alone():
    model = _model(view="edges", dropout=0.0)
    layers = model.layers_of(model.edges)
    assert torch.allclose(model.second_view(layers), model.embeddings())
    none = _model(view="edges", dropout=1.0)
    layers = none.layers_of(none.edges)
    assert torch.allclose(none.second_view(layers), none.embedding.weight / 3)
    assert torch.allclose(none.embeddings(), model.embeddings())


def test_the_loss_is_that_of_pairs_and_of_size_plus_the_contrast():
    model = _model()
    user, item = DATA.train[:, :6]
    torch.manual_seed(5)
    other = torch.randint(30, (6,))
    x, first = model.embeddings(), model.embedding.weight
    total = 0.0
    for u, i, j in zip(user.tolist(), item.tolist(), other.tolist(), strict=True):
        total += math.log(1 + math.exp(float((x[u] @ (x[12 + j] - x[12 + i])).detach())))
        total += 0.1 * float(sum(first[k].square().sum() for k in (u, 12 + i, 12 + j)).detach())
    torch.manual_seed(5)
    plain = float(model.ranking_loss(user, item, weight=0.0, penalty=0.1).detach())
    assert plain == pytest.approx(total / 6)
    contrast = model.contrast(model.layers_of(model.edges), user.unique(), item.unique())
    torch.manual_seed(5)
    whole = float(model.ranking_loss(user, item, weight=0.5, penalty=0.1).detach())
    assert whole == pytest.approx(plain + 0.5 * float(contrast.detach()))


def test_recall_and_gain_are_counts_among_what_was_not_taken():
    torch.manual_seed(2)
    table = torch.randn(12, 30)
    found = recommended(lambda users: table[users], DATA, k=5, batch_size=5)
    taken = [set(DATA.train[1][DATA.train[0] == u].tolist()) for u in range(12)]
    for u, recall, gain in zip(found.users.tolist(), found.recall, found.gain, strict=True):
        wanted = set(DATA.test[1][DATA.test[0] == u].tolist())
        order = [i for i in table[u].argsort(descending=True).tolist() if i not in taken[u]][:5]
        hits = [1 / math.log2(place + 2) for place, i in enumerate(order) if i in wanted]
        best = sum(1 / math.log2(place + 2) for place in range(min(5, len(wanted))))
        assert float(recall) == pytest.approx(len(hits) / len(wanted), abs=1e-6)
        assert float(gain) == pytest.approx(sum(hits) / best, abs=1e-6)


def test_planted_interactions_are_apart_and_follow_taste():
    data = planted(200, 100, noise=0.2, activity=(5, 20), seed=0)
    keys = [set((p[0] * 100 + p[1]).tolist()) for p in (data.train, data.test)]
    assert not keys[0] & keys[1]
    assert [len(k) for k in keys] == [data.train.shape[1], data.test.shape[1]]
    assert torch.bincount(data.test[0]).tolist() == [8] * 200
    assert int(data.activity().max()) <= 20
    assert torch.equal(data.activity(), torch.bincount(data.train[0], minlength=200))
    assert float(data.false.float().mean()) == pytest.approx(0.2, abs=0.05)
    part = data.validation(0.25, seed=3)
    both = torch.cat([part.train, part.test], 1)
    assert sorted(both.T.tolist()) == sorted(data.train.T.tolist())
    assert part.test.shape[1] == round(0.25 * data.train.shape[1])
    # Without taste and popularity every item is as likely; with popularity alone the same items come often.
    flat, steep = (
        planted(400, 50, sharpness=0.0, popularity=p, noise=0.0, activity=(5, 9)) for p in (0.0, 3.0)
    )
    counts = [torch.bincount(d.test[1], minlength=50).double() for d in (flat, steep)]
    assert float(counts[0].std()) < 12 < float(counts[1].std())
    with pytest.raises(UsageError, match="do not fit"):
        planted(10, 20, activity=(4, 10))


def test_lastfm_is_read_without_repeats(tmp_path):
    (tmp_path / "lastfm").mkdir()
    (tmp_path / "lastfm" / "data1.txt").write_text("1 2 5\n1 2 6\n3 1 1\n")
    (tmp_path / "lastfm" / "test1.txt").write_text("1 2 1\n2 4 9\n")
    data = lastfm(tmp_path)
    assert (data.users, data.items) == (3, 4)
    assert data.train.T.tolist() == [[0, 1], [2, 0]]
    assert data.test.T.tolist() == [[1, 3]]
    with pytest.raises(UsageError, match="is not there"):
        lastfm(tmp_path / "lastfm")


def test_propagation_finds_planted_tastes():
    data = planted(80, 60, rank=2, noise=0.0, activity=(8, 16), test=5, seed=0)
    torch.manual_seed(0)
    model = LightGCL(80, 60, data.train, 8)
    before = float(recommended(model.scores, data).recall.mean())
    fit_facts(
        model, data.facts(), loss=lambda m, u, _, i: m.ranking_loss(u, i, weight=0.01), epochs=40, rate=0.02
    )
    assert float(recommended(model.scores, data).recall.mean()) > max(before + 0.1, 0.6)
    assert isinstance(data, Interactions)
