from types import CodeType

from dsmfor._native.plan import Plan
from dsmfor.team import Team

class Loop:
    def __init__(
        self,
        member: Team,
        plan: Plan,
        first: int,
        step: int,
        line: int,
        code: CodeType,
        nowait: bool,
    ) -> None: ...

class Indices(Loop): ...
class Slices(Loop): ...

class Tuples:
    def __init__(
        self,
        member: Team,
        plan: Plan,
        shape: tuple[int, ...],
        line: int,
        code: CodeType,
        nowait: bool,
    ) -> None: ...

class Tiles:
    def __init__(
        self,
        member: Team,
        plan: Plan,
        grid: tuple[int, ...],
        extent: tuple[int, ...],
        tile: tuple[int, ...],
        line: int,
        code: CodeType,
        nowait: bool,
    ) -> None: ...
