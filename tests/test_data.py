"""The embedded digits and the reference network trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.data.digits import arrays, digits, split_rows
from microtome.errors import UsageError
from microtome.reference import reference_subject


def test_the_digits_are_the_published_ones() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    published = datasets.load_digits()
    x, y = arrays()
    np.testing.assert_array_equal(x, published.images)
    np.testing.assert_array_equal(y, published.target)


def test_the_split_is_fixed_stratified_and_whole() -> None:
    train, test = split_rows("train"), split_rows("test")
    assert (len(train), len(test)) == (1201, 596)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), split_rows("all"))
    _, y = arrays()
    shares = np.bincount(y[test]) / np.bincount(y)
    assert shares.min() > 0.32
    assert shares.max() < 0.34


def test_batches_are_pixels_in_unit_range_and_whole_labels() -> None:
    data = digits("test", batch_size=100)
    batches = list(data)
    assert len(batches) == len(data) == 6
    x, y = batches[0]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((100, 1, 8, 8), torch.float32, (100,), torch.int64)
    assert (float(data.x.min()), float(data.x.max())) == (0.0, 1.0)
    assert torch.equal(next(iter(data))[0], x)


def test_a_seed_orders_the_rows_and_keeps_the_split() -> None:
    first, second, again = digits("test"), digits("test", seed=1), digits("test", seed=1)
    assert torch.equal(second.x, again.x)
    assert not torch.equal(first.x, second.x)
    assert first.y is not None
    assert second.y is not None
    assert torch.equal(first.y.bincount(), second.y.bincount())


def test_an_unknown_split_is_told() -> None:
    with pytest.raises(UsageError, match=r"no split 'tset'.*did you mean 'test'"):
        digits("tset")  # type: ignore[arg-type]


def test_the_reference_is_trained_once_well_and_without_touching_the_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path))
    state = torch.get_rng_state()
    model, data = reference_subject()
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    (file,) = tmp_path.glob("*.safetensors")
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    assert right / 596 > 0.97

    written = file.stat().st_mtime_ns
    again, _ = reference_subject()
    assert file.stat().st_mtime_ns == written
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name

    file.write_bytes(file.read_bytes()[:1000])  # torn: trained again, to the same bits
    third, _ = reference_subject()
    for a, b in zip(model.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("MICROTOME_CACHE", str(blocked))
    monkeypatch.setattr("microtome.reference.EPOCHS", 1)
    model, _ = reference_subject()
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
