"""The end of a lane that measures: read a question a line, answer a number.

A question is ``measure argument ...``. The answer is
``ok NUMBER``, ``missing WHAT`` or ``failed REASON``. The C program in
``peers/openmp.c`` speaks the same way.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys


def answer(peer: object, question: str) -> str:
    """Carry out one question."""
    name, *arguments = question.split()
    try:
        measured = getattr(peer, name)(*(argument(word) for word in arguments))
    except ModuleNotFoundError as error:
        return f"missing {error.name}"
    except BaseException as error:  # py-dsm calls exit()
        return f"failed {type(error).__name__}: {error}".replace("\n", " ")
    return f"ok {measured!r}"


def argument(word: str) -> float | str:
    """What `word` stands for: an int, a float or itself."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def serve(name: str) -> None:
    """Answer questions to the peer `name` until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a peer prints goes to the log
    try:
        peer = importlib.import_module(f"benchmarks.peers.{name}").peer()
    except ModuleNotFoundError as error:
        print(f"missing {error.name}", file=answers)
        return
    print("ok 0", file=answers)
    for question in sys.stdin:
        print(answer(peer, question), file=answers)


if __name__ == "__main__":
    serve(sys.argv[1])
