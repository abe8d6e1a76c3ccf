"""Whoever multiplies, the products are those of float32, and the process's settings stay as they were."""

import pytest
import torch

from featkd.align import products

SETTING = torch.backends.mkldnn.matmul


@pytest.fixture(params=[True, False], ids=["one-dnn", "default"])
def who(request, monkeypatch):
    products.exact_one_dnn.cache_clear()
    if not request.param:
        monkeypatch.setattr(products, "exact_one_dnn", lambda: False)


def test_products_are_exact_and_the_setting_is_restored(who):
    before = SETTING.fp32_precision
    random = torch.Generator().manual_seed(0)
    states, weight, gradient = (torch.randn(*shape, generator=random) for shape in ((130, 96), (5000, 96), (130, 5000)))
    logits, total = torch.empty(130, 5000), torch.full((5000, 96), float("nan"))
    with products.one_dnn():
        products.times_transposed(states, weight, 0.5, logits)
        by_states = products.by_states(gradient, weight)
        products.add_by_weight(total, gradient, states, 2.0, first=True)
        products.add_by_weight(total, gradient, states, 2.0, first=False)
    assert SETTING.fp32_precision == before
    s, w, g = states.double(), weight.double(), gradient.double()
    for found, exact in ((logits, 0.5 * s @ w.T), (by_states, g @ w), (total, 4 * g.T @ s)):
        assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_one_dnn_is_not_asked_where_it_rounds(monkeypatch):
    """As with AMX: bf16 arithmetic is allowed there, and used."""
    products.exact_one_dnn.cache_clear()

    def rounded(a, b):
        return torch.mm(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else torch.mm(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not products.exact_one_dnn()
    before = SETTING.fp32_precision
    with products.one_dnn():
        assert SETTING.fp32_precision == before
    products.exact_one_dnn.cache_clear()
