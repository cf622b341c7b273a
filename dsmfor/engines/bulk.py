"""What is too large for the mailbox and the pages, in the caller: asked for, wrapped and opened.

It travels in sealed files in memory (`channel.envelope`). The control groups and the machine are
asked beforehand, for beyond their limits the kernel kills instead of refusing.
"""

from __future__ import annotations

import os

from dsmfor import limits, segments
from dsmfor._native.interrupts import undisturbed
from dsmfor.engines.channel import contents, envelope, spread
from dsmfor.engines.letters import Letters
from dsmfor.engines.recruits import Recruit
from dsmfor.payload import Message

__all__ = ["open_result", "send_message"]


def send_message(letters: Letters, message: Message, size: int) -> None:
    """Send a message to `size` ranks, for the next region.

    All ranks unpickle at once, and each that looked for itself would find room where there is room
    for one: so what they will take is asked for here, for all of them. Of buffers that is what they
    take if every rank writes to every page.

    Raises
    ------
    SharedMemoryFull
        There is no room for it and its copies, also after what is kept for speed was given back.
    """
    data, buffers = message.data, message.buffers
    sizes = [len(data), *(buffer.nbytes for buffer in buffers)]
    nbytes = spread(sizes)[-1] * (1 + size)
    what = f"a message that takes {{}} with its copies in {size} workers"
    with undisturbed:
        segments.relieved(lambda: limits.check(nbytes, what))
        bulk = envelope(data, buffers=buffers)
        try:
            for rank in range(size):
                letters.send(rank, "message", sizes, [bulk])
        finally:
            os.close(bulk)


def open_result(recruit: Recruit, epoch: int, rank: int) -> memoryview:
    """The outcome of a rank that comes by letter, where it lies.

    Raises
    ------
    SharedMemoryFull
        There is no room for what will be made of it, also after what is kept for speed was given
        back; or no descriptor.
    """
    with undisturbed:
        fd = recruit.receive_outcome(epoch)
        try:
            return segments.relieved(lambda: contents(fd, f"the result, {{}}, of rank {rank}"))
        finally:
            os.close(fd)
