"""The real words: control.h and locks.h compiled as they are, and the twin run beside them.

Guarantees
----------
- `Real` reads every word that the twin has, where the compiler has put it.
- `perform` runs a twin alone, so that its words can be compared after each call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from model.operations import Value
from model.words import MASK, Control, Steps

FLAGS = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
HEADERS = Path(__file__).parent.parent.parent / "dsmfor" / "_native"

# Of each function: what it returns and takes, `b` being the block; the body if it is no mere call.
FUNCTIONS = {
    "poison": "void uint32_t:reason int32_t:rank",
    "repair": "void",
    "launch": "uint64_t int32_t:size uint64_t:epoch uint32_t:deaths",
    "mourn": "void int32_t:rank",
    "over": "int",
    "done": "void int32_t:rank uint64_t:epoch",
    "arrive": "int int32_t:rank int32_t:size uint64_t:signature",
    "finish": "int int32_t:rank uint64_t:history",
    "stuck": "int int32_t:size uint64_t:number",
    "leave": "void uint32_t:number int32_t:size int:stealing",
}
SOURCE = """\
#include <stddef.h>
#include "control.h"
#include "locks.h"
{calls}
int64_t call_steal(dsm_control *b, int32_t victim, int i, int64_t length, int owner)
{{ return dsm_steal(&b->ranks[victim], i, length, owner); }}
int call_take(dsm_control *b, int k, int32_t rank, int waited, uint32_t *seen)
{{ return dsm_take(&b->locks[k].word, rank, waited, seen); }}
void call_give(dsm_control *b, int k) {{ dsm_give(&b->locks[k].word); }}
int call_knotted(dsm_control *b, int32_t rank, int32_t *knot)
{{ return dsm_knotted(b, rank, knot); }}
uint64_t call_mix(uint64_t h, uint64_t v) {{ return dsm_mix(h, v); }}
long at[] = {{ {offsets} }}, width[] = {{ {widths} }}, all = sizeof(dsm_control);
"""


def place(word: str) -> str:
    """Where the C code has a word of the twin."""
    found = re.fullmatch(r"([a-z]+)(\d*)\.?(\d*)", word)
    assert found is not None
    name, number, slot = found.groups()
    if name == "steal":
        return f"ranks[{number}].steal[{slot}]"
    if name == "lock":
        return f"locks[{number}].word"
    if name in ("seq", "cancel", "gone", "sleepers", "next"):
        return f"slots[{number}].{'left' if name == 'gone' else name}"
    return f"ranks[{number}].{name}" if number else name


class Real:
    """A block of real memory, and the C functions on it; `memory` may be a block's of dsmfor.

    Parameters
    ----------
    twin : Control
        Whose words are to be read.
    folder : Path
        Where to compile.
    """

    def __init__(self, twin: Control, folder: Path) -> None:
        self.names = list(twin.words())
        calls = []
        for name, text in FUNCTIONS.items():
            result, *rest = text.split()
            takes = "".join(f", {one.replace(':', ' ')}" for one in rest)
            gives = "".join(f", {one.split(':')[1]}" for one in rest)
            word = "" if result == "void" else "return "
            calls.append(
                f"{result} call_{name}(dsm_control *b{takes}) {{ {word}dsm_{name}(b{gives}); }}"
            )
        places = [place(word) for word in self.names]
        source = SOURCE.format(
            calls="\n".join(calls),
            offsets=", ".join(f"offsetof(dsm_control, {p})" for p in places),
            widths=", ".join(f"sizeof(((dsm_control *)0)->{p})" for p in places),
        )
        (folder / "words.c").write_text(source)
        compiler = shutil.which("cc") or (sysconfig.get_config_var("CC") or "gcc").split()[0]
        library = folder / "words.so"
        subprocess.run(
            [compiler, *FLAGS, f"-I{HEADERS}", "words.c", "-o", "words.so"],
            cwd=folder,
            check=True,
            env=os.environ,
        )
        self.library = ctypes.CDLL(str(library))
        count = len(self.names)
        self.at = list((ctypes.c_long * count).in_dll(self.library, "at"))
        self.width = dict(
            zip(self.names, (ctypes.c_long * count).in_dll(self.library, "width"), strict=True)
        )
        self.size = ctypes.c_long.in_dll(self.library, "all").value
        self.memory = mmap.mmap(-1, self.size)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for name in ("launch", "mix"):
            getattr(self.library, f"call_{name}").restype = ctypes.c_uint64
        self.library.call_steal.restype = ctypes.c_int64

    def call(self, name: str, *args: Any) -> Any:
        """A function of the block."""
        block = [] if name == "mix" else [ctypes.c_void_p(self.base)]
        wide = [ctypes.c_uint64(a & MASK) if isinstance(a, int) else a for a in args]
        return getattr(self.library, f"call_{name}")(*block, *wide)

    def words(self, memory: Any = None) -> dict[str, int]:
        memory = self.memory if memory is None else memory
        return {
            word: int.from_bytes(memory[at : at + self.width[word]], "little")
            for word, at in zip(self.names, self.at, strict=True)
        }

    def poke(self, word: str, value: int) -> None:
        at = self.at[self.names.index(word)]
        self.memory[at : at + self.width[word]] = value.to_bytes(self.width[word], "little")


def perform(steps: Steps, words: dict[str, Any], widths: dict[str, int]) -> Any:
    """Run a twin to its end, with nobody beside it; what it returns."""
    answer = None
    while True:
        try:
            op = steps.send(answer)
        except StopIteration as end:
            return end.value
        answer = apply(op, words, widths)


def apply(op: Any, words: dict[str, Any], widths: dict[str, int]) -> Value:
    """One operation of a twin that nobody disturbs."""
    if op.kind in ("wake", "note"):
        return None
    if op.kind == "see":
        return op.f(words, *op.args)  # type: ignore[no-any-return]
    new, answer = op.f(words[op.word])
    if op.word in widths:
        new &= (1 << 8 * widths[op.word]) - 1
    words[op.word] = new
    return answer  # type: ignore[no-any-return]
