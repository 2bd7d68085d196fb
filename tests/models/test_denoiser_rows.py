"""The product of few rows against torch's linear layer, and where it is left alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fed_diffmic.models.denoiser import FEW_ROWS, linear_rows


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        Counted.calls += 1
        return super().forward(x)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_few_rows_give_the_layers_numbers(images, cells, width, out, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(width, out), torch.randn(images, cells, width)
    with torch.no_grad():
        torch.testing.assert_close(linear_rows(layer, x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "gradient", "calls"), [((1, FEW_ROWS), False, 0), ((1, FEW_ROWS + 1), False, 1), ((1, 2), True, 1)]
)
def test_training_and_many_rows_go_through_the_layer(shape, gradient, calls):
    layer, x = Counted(3, 4), torch.randn(*shape, 3)
    Counted.calls = 0
    with torch.set_grad_enabled(gradient):
        assert linear_rows(layer, x).shape == (*shape, 4)
    assert Counted.calls == calls
