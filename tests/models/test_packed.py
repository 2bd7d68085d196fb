"""Products with weights laid out before, against the layers themselves."""

import pytest
import torch
from torch import nn

from fed_diffmic.models import packed as module
from fed_diffmic.models.denoiser import Denoiser, ResidualDenoiser
from fed_diffmic.models.packed import packed


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "LEAST_WEIGHTS", 1)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_what_the_layer_gives(bias):
    torch.manual_seed(0)
    layer = nn.Linear(70, 33, bias=bias)
    product = packed(layer, 10)
    assert product is not layer
    for shape in ((4, 6, 70), (24, 70), (1, 1, 70), (9, 5, 70)):  # other numbers of rows are right too
        x = torch.randn(shape)
        assert product(x).shape == layer(x).shape
        assert (product(x) - layer(x).double()).abs().max() < 1e-5
    x = torch.randn(6, 4, 70).transpose(0, 1)  # rows that do not lie one after the other
    assert (product(x) - layer(x)).abs().max() < 1e-5
    assert torch.equal(product(x), product(x))


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 1030])
def test_a_row_does_not_depend_on_how_many_there_are(side):
    torch.manual_seed(0)
    product, x = packed(nn.Linear(side, side), 10), torch.randn(96, side)
    whole = product(x)
    for rows in (1, 6, 24, 30, 90):
        assert torch.equal(product(x[:rows]), whole[:rows])


def test_weights_that_change_are_packed_anew():
    layer = nn.Linear(8, 8)
    x = torch.randn(2, 8)
    with torch.no_grad():
        before = packed(layer, 10)(x)
        layer.weight.data.mul_(2)
        layer.bias.data.mul_(2)
        assert torch.allclose(packed(layer, 10)(x), 2 * before, atol=1e-5)


@torch.no_grad()
def test_the_layer_itself_where_packing_is_no_gain_or_cannot_be(monkeypatch):
    layer = nn.Linear(8, 8)
    assert packed(layer, 10) is not layer
    assert packed(layer, 3) is layer
    with torch.enable_grad():  # a product that nothing flows back through would be a wrong gradient
        assert packed(layer, 10) is layer
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(layer, 10) is layer
    assert packed(double := nn.Linear(8, 8).double(), 10) is double
    monkeypatch.setattr(module, "LEAST_WEIGHTS", 65)
    assert packed(layer, 10) is layer


@torch.no_grad()
@pytest.mark.parametrize("kind", ["paper", "residual"])
def test_a_head_gives_the_same_noise_with_packed_products(kind):
    torch.manual_seed(0)
    head = Denoiser(3, 64, 50, "group") if kind == "paper" else ResidualDenoiser(3, 64, 50, "group", multilabel=False)
    for block in (head.block1, head.block2, head.block3):
        nn.init.normal_(block.timestep_table.weight)
    nn.init.normal_(head.head.weight)
    guidance, y, prior = torch.randn(4, 6, 3), torch.randn(4, 6, 3), torch.randn(4, 64)
    t = torch.randint(50, (4, 6))
    products = head.products(10)
    assert products[0] is not head.block2.conv and products[1] is not head.block3.conv
    found, wanted = head.cells(guidance, y, t, prior, products), head.cells(guidance, y, t, prior)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_an_exported_graph_holds_the_layers_themselves():
    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Denoiser(3, 64, 50, "group")

        def forward(self, guidance, y, prior):
            products = self.head.products(10)
            return self.head.cells(guidance, y, torch.zeros(1, 6, dtype=torch.int64), prior, products)

    given = (torch.randn(1, 6, 3), torch.randn(1, 6, 3), torch.randn(1, 64))
    with torch.no_grad():
        graph = torch.export.export(Sampler().eval(), given).graph
    assert "mkldnn" not in str(graph)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(5, 70), (2, 3, 70)])
def test_numbers_that_do_not_lie_side_by_side_are_taken_as_they_are_meant(shape):
    torch.manual_seed(0)
    layer = nn.Linear(70, 33)
    product, plain = packed(layer, 10), torch.randn(*shape[:-1], 140)
    for x in (
        plain[..., ::2],
        plain[..., 70:],
        plain[..., :1].expand(shape),
        torch.randn(70, *shape[:-1]).movedim(0, -1),
    ):
        assert (product(x) - layer(x)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("shape", [(0, 70), (4, 0, 70)])
def test_no_rows_give_no_rows(shape):
    assert packed(nn.Linear(70, 33), 10)(torch.zeros(shape)).shape == (*shape[:-1], 33)


def test_what_the_copy_cannot_compute_the_layer_does_or_refuses():
    layer = nn.Linear(70, 33)
    with torch.no_grad():
        product = packed(layer, 10)
        for wrong in (torch.zeros(2, 140), torch.zeros(2, 35), torch.zeros(2, 70).double()):
            with pytest.raises(RuntimeError):
                layer(wrong)
            with pytest.raises(RuntimeError):
                product(wrong)
    x = torch.randn(2, 70, requires_grad=True)
    product(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, 70), atol=1e-5) and layer.weight.grad is not None


@torch.no_grad()
def test_a_layer_that_does_more_than_its_product_goes_on_doing_it():
    class More(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    hooked, before = nn.Linear(8, 8), nn.Linear(8, 8)
    hooked.register_forward_hook(lambda module, given, out: 2 * out)
    before.register_forward_pre_hook(lambda module, given: (2 * given[0],))
    for layer in (More(8, 8), hooked, before):
        assert packed(layer, 10) is layer
