from typing import Any

import numpy as np
from numpy.typing import NDArray

def add(root: NDArray[Any], segment: int) -> int: ...
def remove(low: int) -> bool: ...
def count() -> int: ...
def span(a: NDArray[Any]) -> tuple[int, int]: ...
def handle(
    a: NDArray[Any],
) -> tuple[int, int, tuple[int, ...], tuple[int, ...], str | np.dtype[Any], bool] | None: ...
def view(
    root: NDArray[Any],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    token: str | np.dtype[Any],
    writeable: bool,
) -> NDArray[Any]: ...
