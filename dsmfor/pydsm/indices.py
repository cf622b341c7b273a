"""Shares of indices, as `Cluster.splitIndices` deals them out: blocks, or at random."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsmfor._native.shares import scattered

__all__ = ["Indices", "block", "scatter"]

_WORD = 2**64 - 1
_ODD = 0x9E3779B97F4A7C15


class Indices(np.ndarray):
    """A share of indices: an array that is a list where the two differ and nobody would notice.

    It is true when it is not empty, and ``+`` with a list or a share appends.
    """

    def __bool__(self) -> bool:
        return self.size > 0

    def __add__(self, other: Any) -> Any:
        if isinstance(other, (list, Indices)):
            return np.concatenate([self, np.asarray(other, np.int64)]).view(Indices)
        return super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        if isinstance(other, list):
            return np.concatenate([np.asarray(other, np.int64), self]).view(Indices)
        return super().__radd__(other)

    def __array_wrap__(
        self, array: Any, context: Any = None, return_scalar: bool = False, /
    ) -> Any:
        """Whatever is computed from a share is a plain array."""
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain


def block(n: int, size: int, rank: int) -> Indices:
    """The share of a rank if each gets a block; the longer ones come last."""
    short, more = divmod(n, size)
    first = rank * short + max(0, rank - (size - more))
    share = np.arange(first, first + short + (rank >= size - more), dtype=np.int64)
    return share.view(Indices)


def scatter(n: int, size: int, rank: int, seed: int, turn: int) -> Indices:
    """The share of a rank under the permutation of a seed and the number of the split."""
    return scattered(n, size, rank, (seed + turn * _ODD) & _WORD).view(Indices)
