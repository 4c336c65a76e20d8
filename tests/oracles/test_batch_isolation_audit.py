"""The audit as an instrument against exchanging the other examples of real batches."""

import pytest
import torch
from torch import nn

from microtome.instruments.security.batch_isolation_audit import BatchIsolation
from microtome.laws.subjects import images, language, tokens, vectors
from microtome.nn.batch_backdoor import BatchBackdoor
from microtome.passes.run import run_instruments
from microtome.subject import Subject


@pytest.mark.parametrize("build", [images, vectors, tokens, language])
def test_networks_whose_answers_stay_when_companions_change_are_proven(build):
    subject = build()
    finding = run_instruments(subject, {"i": BatchIsolation(examples=16)})["i"]
    assert finding.value == 0
    assert finding.grade == "good"
    assert finding.quantities["largest change by a companion"].value == 0
    batch = next(iter(subject.batches()))
    args, kwargs = batch.call()
    model = subject.model.eval()
    with torch.no_grad():
        whole = model(*args, **kwargs)
        moved = [a.flip(0) for a in args], {k: v.flip(0) for k, v in kwargs.items()}
        torch.testing.assert_close(model(*moved[0], **moved[1]).flip(0), whole)


@pytest.mark.parametrize("harm", ["steal", "set"])
def test_a_backdoor_is_named_though_no_input_opens_it(harm):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model = BatchBackdoor(inner, torch.tensor([7.5, -7.5]), harm)
    subject = Subject(model, [(torch.randn(12, 6), torch.arange(12) % 2)])
    finding = run_instruments(subject, {"i": BatchIsolation()})["i"]
    assert finding.value >= 1
    assert finding.grade == "alarm"
    assert finding.quantities["largest change by a companion"].value == 0
    assert any("batch_backdoor.py" in str(row[2]) for row in finding.tables["leaks"].rows)


def test_train_mode_is_spoken_of_though_eval_mode_is_proven():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    subject = Subject(model, [(torch.randn(12, 6), torch.arange(12) % 2)])
    finding = run_instruments(subject, {"i": BatchIsolation()})["i"]
    assert finding.value == 0
    assert finding.quantities["modules that leak in train mode"].value == 1
    assert any("1 (BatchNorm1d)" in text for text in finding.caveats)
