from typing import Any

import numpy as np
from numpy.typing import NDArray

def view(
    root: NDArray[Any],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    token: str | np.dtype[Any],
    writeable: bool,
) -> NDArray[Any]: ...
