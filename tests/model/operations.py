"""What an actor of the model can do in one step: operations on words, futex calls, choices.

A word's operation takes its value to a new one and an answer; it knows nothing of other actors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any, NamedTuple

Value = Hashable
Words = dict[str, Value]


class Op(NamedTuple):
    """What an actor does next. `f` takes the word's value to (its new value, the answer).

    None instead of that pair: the actor cannot go on while the word has this value.
    """

    kind: str
    word: str
    f: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()


Actor = Generator[Op, Any, Any]

CHANGED, TIMEOUT = 0, 1  # how a sleep ends, as dsm_sleep


def Load(word: str) -> Op:
    return Op("load", word, lambda v: (v, v))


def Store(word: str, value: Value) -> Op:
    return Op("store", word, lambda _: (value, None), (value,))


def Add(word: str, n: int) -> Op:
    """fetch_add: the answer is the old value."""
    return Op("add", word, lambda v: (v + n, v), (n,))


def Or(word: str, bits: int) -> Op:
    return Op("or", word, lambda v: (v | bits, v), (bits,))


def And(word: str, bits: int) -> Op:
    return Op("and", word, lambda v: (v & bits, v), (bits,))


def Cas(word: str, old: Value, new: Value) -> Op:
    """Compare and exchange: the answer is the value found, which is `old` if it was exchanged."""
    return Op("cas", word, lambda v: (new if v == old else v, v), (old, new))


def Await(word: str, *values: Value) -> Op:
    """Go on when the word has one of these values: a blocking read of something not a futex."""
    return Op("await", word, lambda v: (v, v) if v in values else None, values)


def Sleep(word: str, expected: Value, bits: int = -1) -> Op:
    return Op("sleep", word, None, (expected, bits))


def Wake(word: str, bits: int = -1, many: bool = True) -> Op:
    """Wake all who sleep on the word with one of the bits, or any one of them."""
    return Op("wake", word, None, (bits, many))


def Pick(*options: Value) -> Op:
    """Any of these may happen."""
    return Op("pick", "", None, options)


def Note(f: Callable[..., Any], *args: Any) -> Op:
    """The laws and their book-keeping: `f(view, *args)`, in one step with what precedes it."""
    return Op("note", "", f, args)


def See(f: Callable[..., Any], *args: Any) -> Op:
    """One step on several words: the answer is `f(view, *args)`; None: not yet."""
    return Op("see", "", f, args)


def Poll(f: Callable[..., Any]) -> Op:
    """Any of the answers that `f(view)` gives, none of them for not yet."""
    return Op("poll", "", f)
