"""Matrix products that round as those of another processor: `ADRPO_TEST_ROUNDING=1 pytest ...`.

MKL, OpenBLAS and oneDNN add up a product's terms in an order that depends on the instructions of
the processor and on the shape. With the variable set, every float32 product on the CPU is moved by
at most eps |a| |b| / sqrt(n), n terms long, which is the error that another order brings as a rule
(it grows like a random walk). The move is a function of the result's bits, its shape and
the variable's value: the same product has the same result again, so what must be equal to the bit
within one processor still is.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

VARIABLE = "ADRPO_TEST_ROUNDING"
_libraries: list[torch.library.Library] = []


def install() -> bool:
    """Puts the moved products in place of torch's if the variable is set; says whether it is."""
    seed = os.environ.get(VARIABLE)
    if not seed or _libraries:
        return bool(seed)
    library = torch.library.Library("aten", "IMPL")
    salt, aten = int(seed), torch.ops.aten

    def mm(a: Tensor, b: Tensor) -> Tensor:
        result = aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))
        return _moved(result, lambda: _product(aten.mm.out, a, b, result), salt)

    def bmm(a: Tensor, b: Tensor) -> Tensor:
        result = aten.bmm.out(a, b, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2]))
        return _moved(result, lambda: _product(aten.bmm.out, a, b, result), salt)

    def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        result = a.new_empty(a.shape[0], b.shape[1])
        aten.addmm.out(bias, a, b, beta=beta, alpha=alpha, out=result)
        return _moved(result, lambda: _product(aten.mm.out, a, b, result), salt)

    for name, function in (("mm", mm), ("bmm", bmm), ("addmm", addmm)):
        library.impl(name, function, "CPU")
    _libraries.append(library)  # dropped, it would take its functions back
    return True


def _product(product: object, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """|a| @ |b| / sqrt(n)"""
    sizes = product(a.abs(), b.abs(), out=torch.empty_like(like))  # type: ignore[operator]
    return sizes / max(1, a.shape[-1]) ** 0.5


def _moved(result: Tensor, sizes: object, salt: int) -> Tensor:
    """result + {-1, 0, 1} x eps x sizes, the sign from a hash of the element and the shape."""
    if result.dtype != torch.float32 or not result.numel():
        return result
    with torch.no_grad():
        key = salt
        for size in result.shape:
            key = (key * 1_000_003 + size) % 2**31
        bits = result.contiguous().view(torch.int32).long() + key
        sign = ((bits * 2_654_435_761) >> 13).remainder(3) - 1
        return result + sign * torch.finfo(torch.float32).eps * sizes()  # type: ignore[operator]
