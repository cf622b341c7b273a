"""What a call cost: the value of a kernel's ``last_report``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in the last call of a kernel.

    Attributes
    ----------
    engine : str
        What carried the team: 'process' or 'serial'.
    workers : int
        The team's size.
    seconds : float
        From the call to its return, the copying of plain arrays included.
    bytes_in, bytes_out : int
        Copied from plain arrays into shared memory and back; 0 when all arrays are shared.
    """

    engine: str
    workers: int
    seconds: float
    bytes_in: int = 0
    bytes_out: int = 0

    def __str__(self) -> str:
        copied = f", {self.bytes_in} bytes copied in and {self.bytes_out} out"
        return (
            f"{self.engine} engine, {self.workers} workers, {self.seconds:.6f} s"
            f"{copied if self.bytes_in or self.bytes_out else ''}"
        )
