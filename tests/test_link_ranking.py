"""Facts, their ranking, their training and the rules in them, against direct loops and hand-made graphs."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("torch_geometric")

from torch_geometric.nn import RGCNConv
from torch_geometric.nn.kge import ComplEx, DistMult, RotatE, TransE

from microtome.data import knowledge_graphs as kg
from microtome.errors import UsageError
from microtome.graphs import rule_mining as mining
from microtome.learn.link_ranking import all_scores, filtered_ranks, ranking
from microtome.learn.link_training import fit_facts, full_loss, mean_square, own_loss, sampled_loss
from microtome.nn.relational import Bilinear, RelationalAutoencoder


def _graph(seed=0, **more):
    return kg.planted(40, seed=seed, **more)


def _autoencoder(graph, d=6, **more):
    data = graph.data()
    return RelationalAutoencoder(
        len(graph.entities), len(graph.relations), d, data.edge_index, data.edge_type, **more
    )


@pytest.mark.parametrize("kind", [DistMult, ComplEx, TransE, RotatE, Bilinear])
def test_every_entity_is_scored_as_fact_by_fact(kind):
    torch.manual_seed(0)
    model = kind(11, 3, 4)
    h, r, t = torch.randint(11, (5,)), torch.randint(3, (5,)), torch.randint(11, (5,))
    tails, heads = all_scores(model, h, r, t)
    for i, e in itertools.product(range(5), range(11)):
        one = torch.tensor([e])
        assert torch.allclose(tails[i, e], model(h[[i]], r[[i]], one)[0], atol=1e-5)
        assert torch.allclose(heads[i, e], model(one, r[[i]], t[[i]])[0], atol=1e-5)


def test_filtered_ranks_are_those_of_a_direct_loop():
    graph = _graph()
    known = {tuple(f) for f in graph.known.tolist()}
    torch.manual_seed(1)
    model = DistMult(len(graph.entities), len(graph.relations), 4)
    model.node_emb.weight.data.mul_(3).round_()  # many equal scores
    facts = graph.test[:40]
    got = filtered_ranks(model, facts, graph.known, batch_size=7)
    everyone = torch.arange(len(graph.entities))
    for i, (h, r, t) in enumerate(facts.tolist()):
        for side in (0, 1):
            fixed = torch.full_like(everyone, h if side == 0 else t)
            relation = torch.full_like(everyone, r)
            scores = model(fixed, relation, everyone) if side == 0 else model(everyone, relation, fixed)
            scores = scores.detach()
            own = t if side == 0 else h
            rivals = [
                float(scores[e])
                for e in everyone.tolist()
                if e != own and ((h, r, e) if side == 0 else (e, r, t)) not in known
            ]
            better = sum(s > float(scores[own]) for s in rivals)
            equal = sum(s == float(scores[own]) for s in rivals)
            assert got[i, side] == 1 + better + equal / 2
    whole = ranking(model, facts, graph.known)
    assert whole.mrr == pytest.approx(float((1 / got).mean()))
    assert whole.hits[10] == pytest.approx(float((got <= 10).double().mean()))


def test_a_constant_scorer_ranks_in_the_middle_and_a_broken_one_not_at_all():
    model = DistMult(9, 1, 2)
    torch.nn.init.zeros_(model.node_emb.weight)
    facts = torch.tensor([[0, 0, 1]])
    assert ranking(model, facts, facts).mean_rank == 5.0
    torch.nn.init.constant_(model.node_emb.weight, float("nan"))
    with pytest.raises(UsageError, match="MT508"):
        ranking(model, facts, facts)
    with pytest.raises(UsageError, match="MT508"):
        ranking(model, facts[:0], facts)


def test_planted_rules_hold_and_parts_are_disjoint():
    graph = _graph(held_out=0.0)
    facts = {tuple(f) for f in graph.known.tolist()}
    n = len(graph.relations)
    step = {}
    for h, r, t in facts:
        step.setdefault((h, r), set()).add(t)
        step.setdefault((t, r + n), set()).add(h)
    for rule in graph.rules:
        implied = set()
        for x in range(len(graph.entities)):
            ends = {x}
            for b in rule.body:
                ends = {y for z in ends for y in step.get((z, b), ())}
            implied |= {(x, rule.head, y) for y in ends if y != x}
        assert implied and implied <= facts, graph.spoken(rule)
    for r in graph.antisymmetric:
        pairs = {(h, t) for h, k, t in facts if k == r}
        assert not any((t, h) in pairs for h, t in pairs)
    split = _graph(seed=1, missing=0.3, noise=0.2)
    parts = [{tuple(f) for f in p.tolist()} for p in (split.train, split.valid, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(split.known)
    assert len(parts[1]) and len(parts[0]) < 0.75 * len(_graph(seed=1).train)
    with pytest.raises(UsageError, match="MT507"):
        _graph(missing=1.0)


def test_a_published_graph_is_read_from_its_folder(tmp_path):
    place = tmp_path / "knowledge_graphs" / "nations"
    place.mkdir(parents=True)
    assert not kg.available("nations", tmp_path)
    for part, text in (
        ("train", "b\tlikes\ta\na\tknows\tc\n"),
        ("valid", "c\tlikes\ta\n"),
        ("test", "a\tknows\tb"),
    ):
        (place / f"{part}.txt").write_text(text)
    graph = kg.load("nations", tmp_path)
    assert graph.entities == ("a", "b", "c") and graph.relations == ("knows", "likes")
    assert graph.train.tolist() == [[1, 1, 0], [0, 0, 2]] and graph.test.tolist() == [[0, 0, 1]]
    with pytest.raises(UsageError, match=r"MT506.*umls"):
        kg.load("umsl", tmp_path)
    with pytest.raises(UsageError, match="MT443"):
        kg.load("umls", tmp_path)


@pytest.mark.parametrize("bases", [None, 2])
def test_the_encoder_is_the_sum_over_relations_and_neighbours(bases):
    graph = _graph()
    torch.manual_seed(0)
    model = _autoencoder(graph, layers=1, bases=bases).double().eval()
    conv, x = model.convs[0], model.node_emb.weight
    assert isinstance(conv, RGCNConv)
    weight = conv.weight if bases is None else torch.einsum("rb,bio->rio", conv.comp, conv.weight)
    facts = graph.train.tolist()
    n = len(graph.relations)
    for v in (0, 7, 45):
        expected = x[v] @ conv.root + conv.bias
        for r in range(2 * n):
            near = [h for h, k, t in facts if t == v and k == r] + [
                t for h, k, t in facts if h == v and k + n == r
            ]
            if near:
                expected = expected + torch.stack([x[u] @ weight[r] for u in near]).mean(0)
        assert torch.allclose(model.encode()[v], expected)
    model.train()
    assert not torch.equal(model.encode(), model.encode())  # edges are dropped


def test_losses_are_what_they_say_and_training_leaves_the_random_state():
    graph = _graph()
    h, r, t = graph.train[:6].unbind(1)
    torch.manual_seed(0)
    model = DistMult(len(graph.entities), len(graph.relations), 4)
    everyone = torch.arange(len(graph.entities))
    expected = 0.0
    for a, b, c in zip(h, r, t, strict=True):
        tails = model(a.expand_as(everyone), b.expand_as(everyone), everyone)
        heads = model(everyone, b.expand_as(everyone), c.expand_as(everyone))
        expected += float((-tails.log_softmax(0)[c] - heads.log_softmax(0)[a]).detach()) / 6
    assert float(full_loss()(model, h, r, t).detach()) == pytest.approx(expected, rel=1e-5)
    more = float(full_loss(2.0)(model, h, r, t).detach())
    assert more == pytest.approx(expected + 2 * float(mean_square(model).detach()), rel=1e-5)
    seen = []

    class Watched(DistMult):
        def forward(self, head, relation, tail):
            seen.append((head, relation, tail))
            return super().forward(head, relation, tail)

    sampled_loss(4)(Watched(len(graph.entities), len(graph.relations), 4), h, r, t)
    heads, kinds, tails = seen[0]
    assert len(heads) == 5 * 6 and torch.equal(kinds, r.repeat(5))
    changed = (heads[6:] != h.repeat(4)).int() + 2 * (tails[6:] != t.repeat(4)).int()
    assert set(changed.tolist()) <= {0, 1, 2} and (changed == 1).sum() > 6 and (changed == 2).sum() > 6
    other = _autoencoder(graph)
    state = torch.get_rng_state()
    for made in (model, other):
        before = ranking(made, graph.test, graph.known).mrr
        fit_facts(made, graph.train, loss=full_loss(), epochs=15, rate=0.05)
        assert ranking(made, graph.test, graph.known).mrr > 2 * before
        assert torch.equal(state, torch.get_rng_state())
    unit = fit_facts(Bilinear(len(graph.entities), len(graph.relations), 4), graph.train, loss=own_loss, epochs=1,
                     unit_entities=True)  # fmt: skip
    assert torch.allclose(unit.node_emb.weight.norm(dim=1), torch.ones(len(graph.entities)))


def test_a_diagonal_form_cannot_tell_a_fact_from_its_reverse():
    graph = _graph()
    model = fit_facts(
        DistMult(len(graph.entities), len(graph.relations), 8), graph.train, loss=full_loss(), epochs=5
    )
    h, r, t = graph.test.unbind(1)
    assert torch.allclose(model(h, r, t), model(t, r, h), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(ComplEx(9, 2, 4)(h[:3] % 9, r[:3] % 2, t[:3] % 9), torch.zeros(3))


def test_candidates_and_counts_are_those_of_a_direct_loop():
    graph = _graph()
    n, e = len(graph.relations), len(graph.entities)
    facts = graph.train.tolist()
    step = {r: {(h, t) for h, k, t in facts if k == r} for r in range(n)}
    step |= {r + n: {(t, h) for h, t in step[r]} for r in range(n)}
    for length, backwards in ((1, True), (2, False)):
        got = mining.chains(graph.train, e, n, length, backwards=backwards)
        kinds = range(2 * n if backwards else n)
        expected = set()
        for head in range(n):
            for body in itertools.product(kinds, repeat=length):
                fits = {h for h, _ in step[head]} & {h for h, _ in step[body[0]]}
                fits = fits and {t for _, t in step[head]} & {t for _, t in step[body[-1]]}
                for a, b in itertools.pairwise(body):
                    fits = fits and {t for _, t in step[a]} & {h for h, _ in step[b]}
                if fits and body != (head,):
                    expected.add((head, *body))
        assert {tuple(row) for row in got.tolist()} == expected
        for partial in (True, False):
            mined = mining.mine_by_confidence(graph.train, e, n, got, partial=partial, support=1)
            scores = {(r.head, *r.body): float(s) for r, s in zip(mined.rules(), mined.score, strict=True)}
            for head, *body in expected:
                pairs = step[body[0]]
                for b in body[1:]:
                    pairs = {(x, y) for x, z in pairs for w, y in step[b] if w == z}
                borne = len(pairs & step[head])
                starts = {h for h, _ in step[head]}
                total = sum(x in starts for x, _ in pairs) if partial else len(pairs)
                assert scores.get((head, *body), 0.0) == pytest.approx(borne / max(total, 1))


def test_rules_are_counted_alike_however_many_at_once(monkeypatch):
    graph = _graph()
    n, e = len(graph.relations), len(graph.entities)
    candidates = mining.chains(graph.train, e, n, 3)[::40]
    whole = mining.mine_by_confidence(graph.train, e, n, candidates)
    monkeypatch.setattr(mining, "_ROWS", 7 * e)
    cut = mining.mine_by_confidence(graph.train, e, n, candidates)
    assert cut.rules() == whole.rules() and torch.equal(cut.score, whole.score)
    step = {r: {(h, t) for h, k, t in graph.train.tolist() if k == r} for r in range(n)}
    for rule, score in [*zip(whole.rules(), whole.score.tolist(), strict=True)][::10]:
        pairs = step[rule.body[0]]
        for b in rule.body[1:]:
            pairs = {(x, y) for x, z in pairs for w, y in step[b] if w == z}
        total = sum(x in {h for h, _ in step[rule.head]} for x, _ in pairs)
        assert score == pytest.approx(len(pairs & step[rule.head]) / max(total, 1))


def test_maps_that_compose_give_the_planted_rule_first():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 4, 4, generator=generator)
    maps = torch.stack([a, b, a @ b, c])
    candidates = torch.cartesian_prod(torch.arange(4), torch.arange(4), torch.arange(4))
    full = mining.mine_by_embedding(maps, candidates)
    assert full.rules()[0] == kg.Rule(2, (0, 1)) and full.average_precision([kg.Rule(2, (0, 1))]) == 1.0
    assert full.score[0] == 0 and full.rules()[1] != kg.Rule(2, (1, 0))
    diagonal = torch.stack([a.diagonal(), b.diagonal(), a.diagonal() * b.diagonal(), c.diagonal()])
    both = mining.mine_by_embedding(diagonal, candidates).rules()[:2]
    assert set(both) == {kg.Rule(2, (0, 1)), kg.Rule(2, (1, 0))}  # a diagonal chain has no order
    moved = torch.stack([a[0], b[0], a[0] + b[0], c[0]])
    assert kg.Rule(2, (0, 1)) in mining.mine_by_embedding(moved, candidates, compose="sum").rules()[:2]
    longer = mining.mine_by_embedding(3 * maps, candidates, measure="cosine")
    assert longer.rules()[0] == kg.Rule(2, (0, 1))
    with pytest.raises(UsageError, match="MT509"):
        full.average_precision([kg.Rule(0, (1,))])
