"""What may be asked of a new array: its shape, dtype and layout, checked before a byte is taken.

SharedArray and NumPy's own constructors over a buffer do not fail well. Messages begin with the
name of the public function that was called. Taking the memory is the business of `dsmfor.arrays`.
"""

from __future__ import annotations

import math
import operator
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Shape", "adapts", "fixed_dtype", "layout", "lengths", "total"]

Shape: TypeAlias = Any  # an integer or a sequence of integers; checked by `lengths`

_MAX_BYTES = 2**63 - 1
_MAX_DIMENSIONS = 64
"""NumPy's."""


def total(name: str, dims: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of an array; a ValueError if there cannot be one."""
    if len(dims) > _MAX_DIMENSIONS:
        raise ValueError(
            f"{name} makes arrays of at most {_MAX_DIMENSIONS} dimensions, got {len(dims)}; "
            "combine some of them into one"
        )
    nbytes = math.prod(dims) * dtype.itemsize
    if nbytes > _MAX_BYTES:
        raise ValueError(
            f"{name} cannot make an array of shape {dims} and {nbytes} bytes: no address reaches "
            f"beyond {_MAX_BYTES}; check the shape for a wrong factor"
        )
    return nbytes


def fixed_dtype(name: str, dtype: DTypeLike | None) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype as an array has it, and the dimensions that a subarray dtype adds."""
    model = np.empty(0, dtype)
    final = model.dtype
    if final.hasobject or final.kind == "T":
        raise TypeError(
            f"{name} cannot share dtype {final}: it holds references to objects of one process; "
            "use a dtype of fixed size, for text a fixed length such as 'U20' or 'S20', or pass "
            "the objects as a list"
        )
    return final, model.shape[1:]


def adapts(dtype: np.dtype[Any]) -> bool:
    """Whether the values decide the final size or unit, or the dtype brings more dimensions."""
    return dtype.itemsize == 0 or dtype.subdtype is not None or dtype.kind in "mM"


def lengths(name: str, shape: Shape) -> tuple[int, ...]:
    """The dimensions that are meant by a shape."""
    try:
        given: list[SupportsIndex] = [operator.index(shape)]
    except TypeError:
        try:
            given = list(shape)
        except TypeError:
            raise TypeError(_not_a_shape(name, shape)) from None
    dims = []
    for length in given:
        try:
            dims.append(operator.index(length))
        except TypeError:
            raise TypeError(_not_a_shape(name, shape)) from None
    if any(length < 0 for length in dims):
        raise ValueError(f"{name} takes a shape without negative lengths, got {shape!r}")
    return tuple(dims)


def _not_a_shape(name: str, shape: Shape) -> str:
    return (
        f"{name} takes an integer or a sequence of integers as its shape, got {shape!r}; "
        "divide with // or round with int()"
    )


def layout(name: str, order: object, allowed: str) -> str:
    """The letter of an order, if it is among those allowed."""
    found = "C" if order is None else order
    if isinstance(found, str) and len(found) == 1 and found.upper() in allowed:
        return found.upper()
    choices = ", ".join(repr(each) for each in allowed)
    raise ValueError(f"{name} takes an order among {choices}, got {order!r}")
