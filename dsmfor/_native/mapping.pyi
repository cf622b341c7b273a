from dsmfor._native.farewell import Descriptor

def open_file(path: str, flags: int, mode: int = 0) -> Descriptor: ...

class Title:
    lock: Descriptor
    def __init__(self, path: str, device: int, inode: int, lock: Descriptor) -> None: ...
    def withdraw(self) -> None: ...

class Mapping:
    nbytes: int
    writeable: bool
    def __init__(
        self,
        fd: int,
        nbytes: int,
        writeable: bool,
        kept: object = None,
        *,
        start: int = 0,
        private: bool = False,
    ) -> None: ...
    @property
    def data(self) -> memoryview: ...
