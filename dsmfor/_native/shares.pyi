import numpy as np
import numpy.typing as npt

def scattered(n: int, size: int, rank: int, key: int) -> npt.NDArray[np.int64]: ...
