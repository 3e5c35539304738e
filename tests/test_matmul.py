"""Products by either library, however their operands lie in memory; both are tried wherever the processor has AVX-512."""

import pytest
import torch

from nearfar.scores import matmul


def in_rows(x):
    return x


def in_columns(x):
    return x.T.contiguous().T


def in_rows_of_a_wider_one(x):
    return torch.cat([x, torch.zeros(len(x), 7)], 1)[:, : x.shape[1]]


def in_columns_of_a_wider_one(x):
    return in_rows_of_a_wider_one(x.T).T


LAYOUTS = [in_rows, in_columns, in_rows_of_a_wider_one, in_columns_of_a_wider_one]


@pytest.fixture(params=[25, 26], ids=["Zen 4", "Zen 5"])
def processor(request, monkeypatch):
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("the other library is taken with AVX-512 only")
    monkeypatch.setattr(matmul, "_amd_family", lambda: request.param)
    monkeypatch.setattr(matmul, "_LARGE", {25: 1, 26: 1})
    library = matmul._other_library
    library.cache_clear()
    yield request.param
    library.cache_clear()


@pytest.mark.parametrize("lie_b", LAYOUTS)
@pytest.mark.parametrize("lie_a", LAYOUTS)
@pytest.mark.parametrize("shape", [(70, 33, 20), (1, 40, 3), (40, 1, 5), (5, 6, 1)])
def test_a_product_is_the_product(processor, shape, lie_a, lie_b):
    n, k, m = shape
    a, b, total = torch.randn(n, k), torch.randn(k, m), torch.randn(n, m)
    wanted = a.double() @ b.double()
    assert matmul._other_library() is not None
    torch.testing.assert_close(matmul.mm(lie_a(a), lie_b(b)), wanted.float())
    for sign in (1, -1):
        found = total.clone()
        matmul.add_mm(found, lie_a(a), lie_b(b), sign)
        torch.testing.assert_close(found, (total + sign * wanted).float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("lie_b", LAYOUTS)
@pytest.mark.parametrize("lie_a", LAYOUTS)
def test_what_the_other_library_is_slow_at_it_is_not_given(processor, monkeypatch, lie_a, lie_b):
    other, taken = matmul._other_library(), []
    monkeypatch.setattr(matmul, "_other_library", lambda: lambda a, b: taken.append((a, b)) or other(a, b))
    a, b = torch.randn(30, 20), torch.randn(20, 4)
    matmul.mm(lie_a(a), lie_b(b))
    in_rows_already = lie_a in (in_rows, in_rows_of_a_wider_one)
    assert len(taken) == (1 if in_rows_already or processor == 26 else 0)
    for first, second in taken:
        assert first.shape == (a.shape if in_rows_already else b.T.shape)  # a first operand in columns is copied
        assert second.is_contiguous() or second.T.is_contiguous()
