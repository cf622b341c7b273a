"""NumPy arrays whose memory is shared: creation, and the handles by which they travel.

Each function here makes what the NumPy function of the same name makes, a plain `numpy.ndarray`
with the same dtype, shape, strides and values, over the bytes of a segment of its own or, below a
mebibyte, of a block in an arena. Memory is the business of `dsmfor.segments` and `dsmfor.arenas`;
which memory an array lies in, of `dsmfor._native.registry`.

A *handle* says where an array lies, in a few integers and a dtype. It is what crosses to another
process in the array's stead, for any view of a shared array as for the array itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from dsmfor import arenas, naming, segments, shapes, team
from dsmfor._native import registry
from dsmfor.shapes import Shape

__all__ = [
    "Handle",
    "array",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "handle",
    "is_shared",
    "ones",
    "ones_like",
    "rebuild",
    "zeros",
    "zeros_like",
]

Array: TypeAlias = NDArray[Any]
Order: TypeAlias = Literal["C", "F"]
LikeOrder: TypeAlias = Literal["C", "F", "A", "K"]
Handle: TypeAlias = tuple[
    int, "int | bytes", tuple[int, ...], tuple[int, ...], "str | np.dtype[Any]", bool
]
"""(segment, place in it, shape, strides, dtype or its letter, writeable)"""


def zeros(
    shape: Shape, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None
) -> Array:
    """A shared array of zeros.

    Parameters
    ----------
    shape : int or sequence of ints
        Lengths of its dimensions.
    dtype : dtype, default float
        Any dtype of fixed size: numbers, structured, big-endian, datetime64, fixed-length strings.
    order : {"C", "F"}
        Row-major or column-major.
    name : str, optional
        Publish it under this name, for `attach` here or in another program of this user, until
        this program lets go of the array, deletes the name or ends. By default it has no name.

    Returns
    -------
    ndarray of `dtype`, shape `shape`
        An ordinary ndarray in shared memory. A view of it is shared as well. It frees itself when
        the last reference goes. An array without any bytes is not shared: there is nothing to.

    Raises
    ------
    SharedMemoryFull
        It does not fit; nothing was taken.
    TypeError
        The dtype holds references (``object``, ``StringDType``), or the shape is not of integers.
    ValueError
        A length is negative, or there are too many of them.
    RegionError
        Called by a rank of a region, where every rank would make its own: use ``dsm.single``. A
        kernel cannot give names.
    NameTaken
        Somebody who lives has an array of that name.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.zeros((2, 3))
    array([[0., 0., 0.],
           [0., 0., 0.]])
    """
    return _new("zeros", shape, dtype, order, name)


def empty(
    shape: Shape, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None
) -> Array:
    """A shared array whose values mean nothing yet.

    Fresh shared memory happens to read zero, so `zeros` costs no more.

    Parameters
    ----------
    shape, dtype, order, name
        As of `zeros`.

    Returns
    -------
    ndarray of `dtype`, shape `shape`
        As `zeros` returns it; it raises the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.empty((2, 3), dtype="i4").shape
    (2, 3)
    """
    return _new("empty", shape, dtype, order, name)


def ones(
    shape: Shape, dtype: DTypeLike = float, order: Order = "C", *, name: str | None = None
) -> Array:
    """A shared array of ones.

    Parameters
    ----------
    shape, dtype, order, name
        As of `zeros`.

    Returns
    -------
    ndarray of `dtype`, shape `shape`
        As `zeros` returns it; it raises the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.ones(3, dtype=int)
    array([1, 1, 1])
    """
    return _filled(_new("ones", shape, dtype, order, name), 1)


def full(
    shape: Shape,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    order: Order = "C",
    *,
    name: str | None = None,
) -> Array:
    """A shared array filled with a value.

    Parameters
    ----------
    shape : int or sequence of ints
        Lengths of its dimensions.
    fill_value : scalar or array_like
        The value, broadcast to `shape`.
    dtype : dtype, optional
        By default that of ``numpy.asarray(fill_value)``.
    order : {"C", "F"}
        Row-major or column-major.
    name : str, optional
        As of `zeros`.

    Returns
    -------
    ndarray of `dtype`, shape `shape`
        As `zeros` returns it; it raises the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.full(3, 7)
    array([7, 7, 7])
    """
    if dtype is None:
        dtype = np.asarray(fill_value).dtype
    return _filled(_new("full", shape, dtype, order, name), fill_value)


def zeros_like(
    a: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: Shape = None,
    *,
    name: str | None = None,
) -> Array:
    """A shared array of zeros with the shape and dtype of another array.

    Parameters
    ----------
    a : array_like
        The model.
    dtype : dtype, optional
        In place of the model's.
    order : {"K", "C", "F", "A"}
        "K" keeps the model's layout as closely as possible, "A" is "F" for a column-major model
        and "C" for any other.
    shape : int or sequence of ints, optional
        In place of the model's.
    name : str, optional
        As of `zeros`.

    Returns
    -------
    ndarray
        A plain one, whatever subclass the model is. As `zeros` returns it; the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.zeros_like([1, 2, 3])
    array([0, 0, 0])
    """
    return _new_like("zeros_like", a, dtype, order, shape, name)


def empty_like(
    a: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: Shape = None,
    *,
    name: str | None = None,
) -> Array:
    """A shared array like another one, whose values mean nothing yet.

    Parameters
    ----------
    a, dtype, order, shape, name
        As of `zeros_like`.

    Returns
    -------
    ndarray
        As `zeros_like` returns it; it raises the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.empty_like([1.0, 2.0]).shape
    (2,)
    """
    return _new_like("empty_like", a, dtype, order, shape, name)


def ones_like(
    a: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: Shape = None,
    *,
    name: str | None = None,
) -> Array:
    """A shared array of ones with the shape and dtype of another array.

    Parameters
    ----------
    a, dtype, order, shape, name
        As of `zeros_like`.

    Returns
    -------
    ndarray
        As `zeros_like` returns it; it raises the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.ones_like([5, 6])
    array([1, 1])
    """
    return _filled(_new_like("ones_like", a, dtype, order, shape, name), 1)


def full_like(
    a: ArrayLike,
    fill_value: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    shape: Shape = None,
    *,
    name: str | None = None,
) -> Array:
    """A shared array filled with a value, with the shape and dtype of another array.

    Parameters
    ----------
    a, dtype, order, shape, name
        As of `zeros_like`.
    fill_value : scalar or array_like
        The value, broadcast to the shape.

    Returns
    -------
    ndarray
        As `zeros_like` returns it; it raises the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.full_like([1, 2], 9)
    array([9, 9])
    """
    return _filled(_new_like("full_like", a, dtype, order, shape, name), fill_value)


def array(
    obj: ArrayLike,
    dtype: DTypeLike | None = None,
    order: LikeOrder = "K",
    *,
    name: str | None = None,
) -> Array:
    """A shared copy of an array, or of what NumPy makes an array of.

    Parameters
    ----------
    obj : array_like
        What to copy.
    dtype : dtype, optional
        By default that of ``numpy.asarray(obj)``.
    order : {"K", "C", "F", "A"}
        As in `zeros_like`.
    name : str, optional
        As of `zeros`.

    Returns
    -------
    ndarray
        A plain one with the values of `obj`. As `zeros` returns it; the same errors.

    Examples
    --------
    >>> import dsmfor as dsm
    >>> dsm.array([[1, 2], [3, 4]])
    array([[1, 2],
           [3, 4]])
    """
    team.check_creation("array")
    if dtype is not None and isinstance(obj, np.ndarray) and not shapes.adapts(np.dtype(dtype)):
        source, final = np.asarray(obj), np.dtype(dtype)  # cast while copying
    else:
        source = np.asarray(obj, dtype=dtype)
        final = source.dtype
    result = _new_like("array", source, final, order, None, name)
    np.copyto(result, source, casting="unsafe")
    return result


def handle(a: Array) -> Handle | None:
    """Where an array lies, or None; a ValueError if it reaches beyond a shared array."""
    return registry.handle(a)


def rebuild(handle: Handle) -> Array:
    """The array that a handle describes, over the memory of its segment in this process.

    Raises a DSMError if that is not known here, a ValueError if the handle does not fit.
    """
    segment, place, shape, strides, token, writeable = handle
    if isinstance(place, bytes):
        return arenas.view(segment, place, shape, strides, token, writeable)
    if segment & segments.ARENA:
        raise ValueError(f"place {place} in arena {segment} names no block; pass a handle's own")
    return registry.view(segments.fetch(segment), place, shape, strides, token, writeable)


def is_shared(a: object) -> bool:
    """Whether an object is an ndarray in shared memory, a view or not."""
    return isinstance(a, np.ndarray) and registry.is_shared(a)


# ---------------------------------------------------------------------------------------------
# Everything is checked before a byte is taken.


def _new(
    function: str, shape: Shape, dtype: DTypeLike | None, order: str | None, name: str | None
) -> Array:
    team.check_creation(function, name)
    final, inner = shapes.fixed_dtype(function, dtype)
    dims = shapes.lengths(function, shape) + inner
    return _allocate(function, dims, final, shapes.layout(function, order, "CF"), name)


def _new_like(
    function: str,
    model: ArrayLike,
    dtype: DTypeLike | None,
    order: str | None,
    shape: Shape,
    name: str | None,
) -> Array:
    team.check_creation(function, name)
    model = np.asarray(model)
    final, inner = shapes.fixed_dtype(function, model.dtype if dtype is None else dtype)
    dims = (model.shape if shape is None else shapes.lengths(function, shape)) + inner
    order = shapes.layout(function, order, "CFAK")
    flags = model.flags
    if order == "A":
        order = "F" if flags.fnc else "C"
    elif order == "K":
        if flags.c_contiguous or model.ndim <= 1 or len(dims) - len(inner) != model.ndim:
            order = "C"
        elif flags.f_contiguous:
            order = "F"
    axes: list[int] = []
    if order == "K":  # the widest stride first, as in the model
        axes = sorted(range(model.ndim), key=lambda axis: -abs(model.strides[axis]))
        axes += range(model.ndim, len(dims))
    return _allocate(function, dims, final, order, name, axes)


def _filled(target: Array, value: ArrayLike) -> Array:
    np.copyto(target, value, casting="unsafe")
    return target


def _allocate(
    function: str,
    dims: tuple[int, ...],
    dtype: np.dtype[Any],
    order: str,
    name: str | None,
    axes: Sequence[int] = (),
) -> Array:
    """An array over new memory, which is zero; for order K, `axes` by their strides, descending."""
    nbytes = shapes.total(function, dims, dtype)
    if name is not None:
        if order != "K":
            axes = range(len(dims))[:: -1 if order == "F" else 1]
        return naming.publish(name, dims, dtype, tuple(axes))
    if order == "K":
        packed = _allocate(function, tuple(dims[axis] for axis in axes), dtype, "C", None)
        return packed.transpose(np.argsort(axes))
    if nbytes == 0:
        return np.zeros(dims, dtype, order="F" if order == "F" else "C")
    if nbytes < arenas.LARGE and (hold := arenas.take(nbytes)) is not None:
        return hold.array(dims, dtype, order == "F")
    return np.ndarray(dims, dtype, segments.create(nbytes), order="F" if order == "F" else "C")
