"""Products by either library, however their operands lie in memory; both are tried wherever the processor has AVX-512."""

import pytest
import torch

from nearfar.scores import matmul


def in_rows(x):
    return x


def in_columns(x):
    return x.T.contiguous().T


def in_columns_of_a_wider_one(x):
    wide = torch.zeros(x.shape[1], x.shape[0] + 7)
    wide[:, : x.shape[0]] = x.T
    return wide[:, : x.shape[0]].T


LAYOUTS = [in_rows, in_columns, in_columns_of_a_wider_one]


@pytest.fixture(params=[25, 26], ids=["Zen 4", "Zen 5"])
def processor(request, monkeypatch):
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("the other library is taken with AVX-512 only")
    monkeypatch.setattr(matmul, "_amd_family", lambda: request.param)
    monkeypatch.setattr(matmul, "_LARGE", 1)
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


def test_columns_are_given_to_the_library_that_does_not_copy_them(processor, monkeypatch):
    other, taken = matmul._other_library(), []
    monkeypatch.setattr(matmul, "_other_library", lambda: lambda a, b: taken.append((a, b)) or other(a, b))
    a, b = torch.randn(30, 20), torch.randn(20, 4)
    matmul.mm(a, b)
    assert len(taken) == 1
    matmul.mm(in_columns_of_a_wider_one(a), b)
    assert len(taken) == (1 if processor == 25 else 2)
    assert all(first.is_contiguous() or second.T.is_contiguous() for first, second in taken)
