"""Loops that a kernel's source uses as if they were ranges: which lines are warned about, and how.

The kernels below are read, seldom run. A line that must be warned about ends in ``# BAD``; what the
warnings point to is compared with these marks, so each kernel also says what is right.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import itertools
import linecache
import re
import subprocess
import sys
import textwrap
import types
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsmfor
import dsmfor as dsm
from dsmfor import misuse, pslices, ptiles
from dsmfor import prange as pr

Call = Callable[..., Any]
X = np.arange(40.0)


def warned(function: Any, **options: Any) -> list[warnings.WarningMessage]:
    """What decorating a function warns about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dsm.parallel(**options)(function)
    return caught


def lines(function: Any) -> list[int]:
    """The lines that decorating a function warns about, each once."""
    found = warned(function)
    assert {w.category for w in found} <= {dsm.MisuseWarning}
    assert {w.filename for w in found} <= {__file__}
    return sorted({w.lineno for w in found})


def marked(function: Any) -> list[int]:
    source, first = inspect.getsourcelines(function)
    return [first + k for k, line in enumerate(source) if "# BAD" in line]


# -- What is warned about -----------------------------------------------------------------------


def pairs(n):
    for _i, _x in zip(dsm.prange(n), X, strict=False):  # BAD
        pass
    for _i, _x in zip(X, dsm.prange(n), strict=True):  # BAD
        pass
    list(zip(range(n), X, dsm.pslices(n), strict=False))  # BAD
    list(itertools.zip_longest(dsm.ptiles((3, 3), 2), X))  # BAD
    dict(zip(dsm.prange(n), dsm.prange(n), strict=False))  # BAD
    list(map(lambda i, x: i * x, dsm.prange(n), X))  # BAD
    list(zip((i * i for i in dsm.prange(n)), X, strict=False))  # BAD
    list(zip(map(abs, dsm.prange(n)), X, strict=False))  # BAD
    list(itertools.pairwise(dsm.prange(n)))  # BAD
    for _k, _i in enumerate(dsm.prange(n)):  # BAD
        pass
    return {k: s for k, s in enumerate(dsm.pslices(n), 1)}  # BAD # noqa: C416


def collections(n):
    list(dsm.prange(n))  # BAD
    tuple(dsm.prange(2, n))  # BAD
    set(dsm.prange(n, schedule="dynamic"))  # BAD
    frozenset(dsm.prange((n, n)))  # BAD
    sorted(dsm.pslices(n))  # BAD
    deque(dsm.prange(n))  # BAD
    np.fromiter(dsm.prange(n), int)  # BAD
    np.array(dsm.prange(n))  # BAD
    np.asarray(dsm.prange(n))  # BAD
    [*dsm.prange(n)]  # BAD
    (0, *dsm.prange(n))  # BAD
    {*dsm.prange(n)}  # BAD
    max(*dsm.prange(n))  # BAD
    _a, _b = dsm.prange(n)  # BAD
    _a, *_b = dsm.prange(n)  # BAD
    return list(iter(dsm.prange(n)))  # BAD


def early(n):
    any(X[i] > 3 for i in dsm.prange(n))  # BAD
    all(dsm.prange(n))  # BAD
    any(map(bool, dsm.prange(n)))  # BAD
    any(filter(None, (X[i] for i in dsm.prange(n))))  # BAD
    next(dsm.prange(n))  # BAD
    next(iter(dsm.prange(n)), None)  # BAD
    next(i for i in dsm.prange(n) if X[i] > 3)  # BAD
    list(itertools.islice(dsm.prange(n), 3))  # BAD
    list(itertools.takewhile(lambda i: i < 3, dsm.prange(n)))  # BAD
    _found = 3 in dsm.prange(n)  # BAD
    return 3 not in dsm.prange(n)  # BAD


def no_range(n):
    len(dsm.prange(n))  # BAD
    len(dsm.ptiles((n, n), 2))  # BAD
    dsm.prange(n)[3]  # BAD
    dsm.prange(n)[1:3]  # BAD
    return reversed(dsm.prange(n))  # BAD


def named(n):
    loop = dsm.prange(n)
    list(loop)  # BAD
    len(loop)  # BAD
    for _i, _x in zip(loop, X, strict=False):  # BAD
        pass
    if other := pslices(n):
        return tuple(other)  # BAD
    return None


def nested_functions(n):
    def inner():
        return list(dsm.prange(n))  # BAD

    outer = lambda: len(pr(n))  # BAD # noqa: E731
    return [inner, outer, [tuple(pr(k)) for k in range(n)]]  # BAD


def several_lines(
    n,
    text="""
zip(prange(n), X), which is text
""",
):
    r"""Of text, \d, with a lower indentation than the code.

    zip(prange(n), X)
    """
    return (
        zip(  # BAD
            dsm.prange(
                n,
            ),
            X,
            strict=False,
        ),
    )


def after_umlauts(n):
    print("äöü€😀", list(dsm.prange(n)))  # BAD


WRONG = [pairs, collections, early, no_range, named, nested_functions, several_lines,
         after_umlauts]  # fmt: skip


@pytest.mark.parametrize("function", WRONG, ids=lambda f: f.__name__)
def test_each_misuse_is_warned_about_on_its_line(function: Call) -> None:
    assert marked(function)
    assert lines(function) == marked(function)


def right(n, out):
    for i in dsm.prange(n):
        out[i] = X[i]
    for _k, i in enumerate(range(n)):
        out[i] += len(X)
    total = sum(i for i in dsm.prange(n)) + sum(dsm.prange(n))
    total += functools.reduce(max, dsm.prange(n), 0) + max((X[i] for i in dsm.prange(n)), default=0)
    squares = [i * i for i in dsm.prange(n)]
    squares += list(map(abs, dsm.prange(n)))
    squares += list(f * f for f in dsm.prange(n))  # noqa: C400
    any([X[i] > 3 for i in dsm.prange(n)])  # noqa: C419
    for _s in dsm.pslices(n):
        pass
    loop = dsm.prange(n)
    while next(loop, None) is not None:
        pass
    for i in dsm.split(n)[::2]:
        out[i] = next(iter(X))
    return total, squares, list(zip(dsm.split(n), X, strict=False)), sorted(X)[3]


def plain_inside_another(n, out):
    for i in dsm.prange(n):
        for j, x in enumerate(dsm.prange(n)):
            out[i, j] = x
        if any(out[i, j] for j in dsm.prange(n)) and 3 in dsm.prange(n):
            out[i] = list(dsm.prange(n))
    return [list(pr(3)) for i in dsm.prange(n)] + [j for i in pr(n) for _, j in enumerate(pr(n))]


def other_things_of_these_names(n, dsm, list, zip):  # noqa: A002
    prange = range
    return list(dsm.prange(n)), zip(prange(n), X), len(prange(n))


def names_bound_twice(n):
    loop = dsm.prange(n)
    if n > 3:
        loop = range(n)
    for other in [range(n)]:
        other = dsm.prange(n) if n > 3 else other
        len(other)
    return list(loop), [list(k) for k in [loop]]


def dead_code(n):
    if False:
        list(dsm.prange(n))
    return n


@pytest.mark.parametrize(
    "function",
    [right, plain_inside_another, other_things_of_these_names, names_bound_twice, dead_code],
    ids=lambda f: f.__name__,
)
def test_what_is_right_or_cannot_be_told_is_not_warned_about(function: Call) -> None:
    assert lines(function) == []


# -- By whatever name ---------------------------------------------------------------------------

holder = types.ModuleType("holder")
holder.inside = dsmfor  # type: ignore[attr-defined]


def by_module(n):
    return list(dsmfor.prange(n))  # BAD


def by_alias(n):
    return list(pr(n)), list(ptiles((n, n), 2))  # BAD


def by_attribute(n):
    return list(holder.inside.loops.prange(n))  # BAD


def by_local_import(n):
    import dsmfor as parallel
    from dsmfor import prange as mine

    return list(mine(n)), list(parallel.prange(n))  # BAD


def by_builtins(n):
    return builtins.list(dsm.prange(n))  # BAD


def by_closure() -> Call:
    deal, make = dsm.prange, tuple

    def kernel(n):
        return make(deal(n))  # BAD

    return kernel


class Model:
    def method(self, n):
        return [len(dsm.prange(n))]  # BAD


@pytest.mark.parametrize(
    "function",
    [by_module, by_alias, by_attribute, by_local_import, by_builtins, by_closure(), Model.method],
    ids=lambda f: f.__name__,
)
def test_a_loop_is_known_by_any_name(function: Call) -> None:
    assert lines(function) == marked(function) != []


def test_lambdas_are_told_apart_on_one_line() -> None:
    several = [lambda n: sum(pr(n)), lambda n: list(pr(n)), (lambda n:
        len(pr(n)))]  # fmt: skip
    here = inspect.getsourcelines(several[0])[1]
    assert [lines(function) for function in several] == [[], [here], [here + 1]]
    (found,) = warned(several[1])
    assert "you wrote list(pr(n))" in str(found.message)


def test_a_decorator_of_several_lines_moves_no_line() -> None:
    with pytest.warns(dsm.MisuseWarning) as caught:

        @dsm.parallel(
            workers=2,
            shared=[
                "a",
            ],
        )
        def kernel(a):
            # a comment
            return list(dsm.prange(len(a)))  # BAD

    assert [w.lineno for w in caught] == marked(inspect.unwrap(kernel))


# -- What it says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "wrote", "want"),
    [
        ("zip(dsm.prange(n), X)", "with item k of X", "`for i in dsm.prange(n):` with X[i]"),
        ("zip(X, Y, pr(n))", "with item k of X and Y", "X[i] and Y[i]"),
        ("enumerate(pr(n))", "from 0 on every worker", "`for i in pr(n):` and i itself"),
        ("list(pr(n))", "this worker", "dsm.split(n) for this worker's share"),
        ("list(pr(2, n))", "this worker", "dsm.split(len(range(2, n))) for this"),
        ("list(pr(X.shape))", "this worker", "[... for i in pr(X.shape)]"),
        ("any(i for i in pr(n))", "may leave the loop before its end", "dsm.cancel(i)"),
        ("next(pr(n))", "every worker must finish every loop", "dsm.cancelled()"),
        ("2 in pr(n)", "(RegionError)", "... in range(n)"),
        ("len(pr(n))", "pr has no len", "n for all"),
        ("pr(n)[5]", "pr cannot be indexed", "range(n)[5]"),
        ("reversed(pr(n))", "pr cannot be reversed", "a negative step"),
        ("np.array(pr(n))", "an array of one object", "dsm.split(n)"),
        ("list(pr(len(X) + len(X) + len(X) + len(X) + len(X) + len(X)))", "...", "dsm.split("),
    ],
)
def test_a_warning_says_what_was_written_what_it_does_and_what_is_wanted(
    tmp_path: Path, expression: str, wrote: str, want: str
) -> None:
    path = tmp_path / "kernels.py"
    path.write_text(f"def kernel(n, X, Y):\n    return {expression}\n")
    space = {"dsm": dsm, "pr": dsm.prange, "np": np, "__name__": "kernels"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    (found,) = warned(space["kernel"])
    text = str(found.message)
    assert re.fullmatch(r"you wrote (.{1,60}), (and|which) .*; you want .*", text)
    assert text.partition(" you want ")[0].startswith(f"you wrote {expression[:50]}")
    assert wrote in text.partition(" you want ")[0]
    assert want in text.partition(" you want ")[2]
    assert (found.filename, found.lineno) == (str(path), 2)


def test_a_warning_is_shown_once_for_a_line_and_can_be_an_error() -> None:
    assert issubclass(dsm.MisuseWarning, SyntaxWarning)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            dsm.parallel(by_alias)
    assert len(caught) == 2  # two loops are on the line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(dsm.MisuseWarning, match="you wrote list"):
            dsm.parallel(by_alias)


def test_a_script_shows_the_warning_and_its_line_once_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        textwrap.dedent("""
            import dsmfor as dsm

            @dsm.parallel(workers=2)
            def kernel(n):
                return list(dsm.prange(n))

            @dsm.parallel(workers=2)
            def again():
                return len(kernel(2))  # the kernel travels to the workers and is made anew there

            print(kernel(4), again())
        """)
    )
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[[0, 1], [2, 3]] [1, 1]\n"
    assert done.stderr.count("MisuseWarning") == 1
    assert f"{path}:6: MisuseWarning: you wrote list(dsm.prange(n))" in done.stderr
    assert "  return list(dsm.prange(n))\n" in done.stderr


# -- What it costs and survives -----------------------------------------------------------------


def test_the_source_of_a_kernel_that_names_no_loop_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> Any:
        pytest.fail("the source was read")

    monkeypatch.setattr(linecache, "getlines", refuse)
    monkeypatch.setattr(inspect, "getsource", refuse)

    def kernel(a, b):
        return sorted(list(zip(a, b, strict=True))), len(a), a[0], dsm.rank()  # noqa: C414

    dsm.parallel(kernel)


def made(source: str, filename: str) -> Any:
    space: dict[str, Any] = {"dsm": dsm, "__name__": "made"}
    exec(compile(source, filename, "exec"), space)
    return space["kernel"]


BAD = "def kernel(n):\n    return list(dsm.prange(n))\n"


@pytest.mark.parametrize("filename", ["<string>", "<stdin>", "", "/nowhere/at/all.py"])
def test_without_source_there_is_no_warning(filename: str) -> None:
    assert warned(made(BAD, filename)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def kernel(n):\n",
        "def kernel(n):\n    return [i for i in dsm.prange(n)]\n",
        "def kernel(n):\n    return zip(range(n), dsm.prange(n))\n",
        "# a line more\n" + BAD,
        "def other(n):\n    return list(dsm.prange(n))\n",
        "class kernel:\n    def f(self): return list(dsm.prange(n))\n",
        "'''\n'''''\n)",
        "def kernel(n):\n    return (((" * 2,
        "\0\0",
        "ü" * 400,
    ],
)
def test_a_source_that_is_not_what_was_compiled_is_no_warning(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edited.py"
    path.write_text(text)
    assert warned(made(BAD, str(path))) == []


def test_a_source_that_is_no_text_is_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(bytes(range(256)) * 3)
    assert warned(made(BAD, str(path))) == []


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    for prefix in ("", "# now one line further down\n", "\n\n\n"):
        path.write_text(prefix + BAD)
        (found,) = warned(made(prefix + BAD, str(path)))
        assert found.lineno == prefix.count("\n") + 2


def test_reading_disturbs_no_other_warnings() -> None:
    """The filters' version is untouched: what was shown once is not shown again."""

    def kernel(n):
        return [i for i in dsm.prange(n)]  # noqa: C416

    def doubtful() -> None:
        warnings.warn("once", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            dsm.parallel(kernel)
            doubtful()
    assert len(caught) == 1


def test_a_cell_that_is_empty_yet_is_no_error() -> None:
    def outer() -> Any:
        kernel = dsm.parallel(lambda n: [later(i) for i in pr(n)])
        later = abs
        return kernel, later

    assert outer()[0].serial(3) == [[0, 1, 2]]


def test_outside_a_kernel_nothing_is_warned_about() -> None:
    assert list(dsm.prange(3)) == [0, 1, 2]
    assert list(zip(dsm.prange(2), "ab", strict=True)) == [(0, "a"), (1, "b")]
    assert any(i == 1 for i in dsm.prange(3))
    assert sorted(dsm.prange(3)) == [*dsm.prange(3)]


def test_a_kernel_is_read_in_its_own_order_of_lookup() -> None:
    """A global `list` of the module hides the builtin one."""
    space: dict[str, Any] = {"dsm": dsm, "list": sum, "__name__": "made", "kernel": None}
    assert not misuse._findings(types.FunctionType(right.__code__, space))
