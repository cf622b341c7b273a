"""What the ranks of a region have told at its end: read from their pages, or from their letters.

How an outcome is written and opened is `dsmfor.outcome`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsmfor._native.block import Block
from dsmfor.engines.bulk import open_result
from dsmfor.engines.letters import Worker
from dsmfor.engines.worker import ELSEWHERE
from dsmfor.handlers import by_handler
from dsmfor.outcome import Bereft, Outcome, open_outcome, unopened

__all__ = ["collect"]


def collect(
    block: Block, workers: Sequence[Worker | None], epoch: int
) -> tuple[list[Outcome | None], bool]:
    """The outcomes of the ranks that told theirs, also of those that have ended since.

    Parameters
    ----------
    block : Block
        At rest.
    workers : sequence of Worker or None, one for each rank of the region
    epoch : int
        The region's.

    Returns
    -------
    outcomes : list
        By rank; None for who returned None or told nothing.
    bereft : bool
        One could not be opened, because an array in it has gone with its worker.

    Raises
    ------
    Exception
        What a handler of a signal raises meanwhile.
    """
    outcomes: list[Outcome | None] = []
    bereft = False
    for rank, worker in enumerate(workers):
        code, length = block.outcome(rank)
        if worker is None or code == 0:
            outcomes.append(None)
            continue
        try:
            if code & ELSEWHERE:
                data = open_result(worker.recruit, epoch, rank)
            else:
                data = memoryview(worker.page.read(0, length))
            outcomes.append(open_outcome(data))
        except Bereft:
            bereft = True
            outcomes.append(None)
        except Exception as error:  # no room, or whatever the user's unpickling raises
            if by_handler(error):
                raise
            outcomes.append(Outcome(failure=unopened(error, rank, len(workers))))
    return outcomes, bereft
