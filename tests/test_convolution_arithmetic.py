"""Sizes against torch on the meta device; the matrix against torch's own convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from microtome.errors import UsageError
from microtome.interpret.convolution_arithmetic import Window, convolution_matrix, windows


@pytest.mark.parametrize("size", [1, 2, 7, 13])
def test_sizes_are_torchs(size: int) -> None:
    x = torch.empty(1, 1, size, device="meta")
    for k, s, p, d in itertools.product(range(1, 6), range(1, 5), range(3), (1, 2, 3)):
        window, weight = Window(k, s, p, d), torch.empty(1, 1, k, device="meta")
        try:
            expected = F.conv1d(x, weight, None, s, p, d).shape[2]
        except RuntimeError:
            assert not window.fits(size)
            continue
        assert window.output(size) == expected
        back = torch.empty(1, 1, expected, device="meta")
        left = window.leftover(size)
        restored = F.conv_transpose1d(back, weight, None, s, p, left, 1, d).shape[2]
        assert window.transposed(expected, left) == restored == size
        if p <= k // 2:
            for ceil in (False, True):
                assert window.pooled(size, ceil) == F.max_pool1d(x, k, s, p, d, ceil).shape[2]


def test_the_inverse_question() -> None:
    found = list(windows(32, 16))
    assert Window(3, 2, 1) in found and Window(2, 2) in found and Window(4, 2, 1) in found
    assert all(window.output(32) == 16 for window in found)
    assert not list(windows(4, 40))


@pytest.mark.parametrize(
    ("sizes", "kernel", "stride", "padding", "dilation", "groups"),
    [
        ((9,), (3,), 2, 1, 1, 1),
        ((6, 7), (3, 2), (2, 3), (1, 0), (1, 2), 1),
        ((5, 5), (3, 3), 1, 2, 2, 2),
        ((4, 3, 5), (2, 2, 2), (1, 1, 2), 1, 1, 2),
    ],
)
def test_the_matrix_is_the_convolution(sizes, kernel, stride, padding, dilation, groups) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 6 // groups, *kernel, dtype=torch.float64)
    x = torch.randn(1, 6, *sizes, dtype=torch.float64)
    rank = len(sizes)
    conv, back = getattr(F, f"conv{rank}d"), getattr(F, f"conv_transpose{rank}d")
    y = conv(x, weight, None, stride, padding, dilation, groups)
    matrix = convolution_matrix(weight, sizes, stride, padding, dilation, groups)
    torch.testing.assert_close(matrix @ x.flatten(), y.flatten())
    other = torch.randn_like(y)
    each = [(o,) * rank if isinstance(o, int) else o for o in (stride, padding, dilation)]
    left = [Window(k, s, p, d).leftover(i) for i, k, s, p, d in zip(sizes, kernel, *each, strict=True)]
    expected = back(other, weight, None, stride, padding, left, groups, dilation)
    torch.testing.assert_close(matrix.t() @ other.flatten(), expected.flatten())


@pytest.mark.parametrize(
    "wrong", [lambda: Window(0), lambda: Window(5).output(3), lambda: Window(3).transposed(4, 1)]
)
def test_what_does_not_fit_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match="MT320"):
        wrong()
