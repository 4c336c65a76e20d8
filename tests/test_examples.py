"""Single examples: neighbours, thumbnails and what speaks for a wrong answer, against direct computation."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import microtome
from microtome.finding import Examination
from microtome.instruments.reliability._pictures import _thumbnail, nearest
from microtome.report import single


def test_nearest_is_what_a_loop_finds() -> None:
    torch.manual_seed(0)
    points, group = torch.randn(70, 3), torch.randint(0, 4, (70,))
    for label in (torch.full((70,), -1), group):
        indices, distances = nearest(points, label, 4)
        for i in range(70):
            allowed = [j for j in range(70) if j != i and (label[i] < 0 or label[j] != label[i])]
            order = sorted(allowed, key=lambda j: (float((points[i] - points[j]).norm()), j))[:4]
            assert indices[i].tolist() == order
            expected = [(points[i] - points[j]).norm() for j in order]
            torch.testing.assert_close(distances[i], torch.stack(expected), atol=1e-5, rtol=0)


def test_equal_distances_go_to_the_smaller_index_and_none_is_said() -> None:
    indices, _ = nearest(torch.zeros(6, 2), torch.full((6,), -1), 2)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]
    alone, _ = nearest(torch.randn(3, 2), torch.zeros(3).long(), 1)
    assert alone.tolist() == [[-1], [-1], [-1]]
    assert nearest(torch.randn(1, 2), torch.tensor([-1]), 5)[0].shape == (1, 0)


def test_thumbnails_keep_the_bounds_and_average_down() -> None:
    grey = torch.tensor([[[[0.0, 1.0], [0.5, 2.0]]]])
    assert _thumbnail(grey, low=0.0, high=1.0)[0, :, :, 0].tolist() == [[0, 255], [128, 255]]
    large = torch.zeros(1, 3, 64, 128)
    large[..., :64] = 1.0
    small = _thumbnail(large, low=0.0, high=1.0)
    assert small.shape == (1, 16, 32, 3) and small.dtype == torch.uint8
    assert (small[:, :, :16] == 255).all() and (small[:, :, 16:] == 0).all()
    assert _thumbnail(torch.randn(2, 5, 4, 4), low=None, high=None).shape == (2, 4, 4, 1)


def test_a_linear_network_explains_itself_exactly() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 3, bias=False))
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    finding = microtome.examine(model, [(x, y)], only=("reliability/examples",))["examples"]
    a = finding.arrays
    with torch.no_grad():
        z = model(x)
    answer = z.argmax(1)
    wrong = (answer != y).nonzero()[:, 0]
    order = wrong[torch.nn.functional.cross_entropy(z, y, reduction="none")[wrong].argsort(descending=True)]
    assert sorted(a["explained"].tolist()) == sorted(order[:256].tolist())
    weight = model[1].weight.detach()
    for at, row in enumerate(a["explained"].tolist()):
        slope = weight[answer[row]] - weight[y[row]]
        np.testing.assert_allclose(a["for the answer"][at], (slope * x[row]).numpy(), rtol=1e-4, atol=1e-6)
        lead = float(z[row, answer[row]] - z[row, y[row]])
        assert abs(a["for the answer"][at].sum() - lead) < 1e-4  # without biases it adds up to the lead
        assert abs(a["change that mends"][at] - lead / float(slope.norm())) < 1e-4
    assert a["inputs"].shape == (40, 6)
    np.testing.assert_array_equal(a["answers"], answer.numpy())


def test_the_worst_are_kept_beside_a_sample() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    x, y = torch.randn(600, 4), torch.randint(0, 2, (600,))
    exam = microtome.examine(
        model, [(x, y)], only=("reliability/examples",), options={"reliability/examples": {"examples": 100}}
    )
    finding = exam["examples"]
    losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    assert set(losses.topk(256).indices.tolist()) <= set(finding.arrays["rows"].tolist())
    assert len(finding.arrays["rows"]) < 356 + 1
    kept = len(finding.arrays["rows"]) - 100
    assert f"{kept} more are kept for their loss alone" in finding.caveats[0]
    # The interval of the errors is that of the random hundred, not of the worst.
    assert finding.quantities["errors"].value * 100 == round(finding.quantities["errors"].value * 100)


class _Bag(nn.Module):
    """The sum of its words' vectors decides."""

    vocabulary = ("<pad>", "good", "bad", "<b>film</b>", "not")

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(ids).sum(1))


def test_texts_keep_their_words() -> None:
    torch.manual_seed(0)
    ids, y = torch.randint(0, 5, (30, 4)), torch.randint(0, 2, (30,))
    longer = torch.randint(0, 5, (10, 200))
    data = [(ids, y), (longer, y[:10])]
    finding = microtome.examine(_Bag(), data, only=("reliability/examples",))["examples"]
    kept = finding.arrays["tokens"]
    assert kept.shape == (40, 128)
    np.testing.assert_array_equal(kept[:30, :4], ids.numpy())
    assert (kept[:30, 4:] == -1).all()
    np.testing.assert_array_equal(kept[30:], longer[:, :128].numpy())
    assert dict(finding.tables["vocabulary"].rows) == dict(enumerate(_Bag.vocabulary))
    exam = Examination(id="e", created="", subject={}, findings={"r/e": finding})
    found = single.records(exam, {finding.instrument: finding.arrays})
    assert single.tokens(found, 0) == [_Bag.vocabulary[i] for i in ids[0]]
