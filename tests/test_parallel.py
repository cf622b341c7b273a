"""The decorator, and a call from its arguments to its value."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import re
import threading
import time
import typing
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest
import threadpoolctl

import dsmfor as dsm

TWO = {"serial": [0], "process": [0, 1]}
"""The ranks of a team of two on each engine."""


@dsm.parallel(workers=2)
def ranks() -> int:
    return dsm.rank()


@dsm.parallel(workers=2)
def add(a: np.ndarray, b: np.ndarray, out: np.ndarray, *, scale: float = 1.0) -> None:
    """Add two vectors."""
    for s in dsm.pslices(len(a)):
        out[s] = scale * (a[s] + b[s])


# -- The decorator ------------------------------------------------------------------------------


def test_a_bare_decorator_makes_a_kernel(engine: str) -> None:
    @dsm.parallel
    def kernel(x: int) -> int:
        return dsm.rank() + x

    assert kernel.using(workers=2, engine=engine)(10) == [10 + r for r in TWO[engine]]


def test_a_called_decorator_makes_a_kernel(engine: str) -> None:
    kernel = dsm.parallel(workers=2, engine=engine)(lambda x: dsm.rank() + x)
    assert kernel(10) == [10 + r for r in TWO[engine]]


def test_a_called_decorator_without_options_makes_a_kernel() -> None:
    @dsm.parallel()
    def kernel() -> int:
        return dsm.rank()

    assert kernel.using(workers=2)() == [0, 1]


def test_a_lambda_is_a_kernel(engine: str) -> None:
    out = np.zeros(5)
    dsm.parallel(lambda a: [a.__setitem__(i, i) for i in dsm.prange(5)] and None).using(
        workers=2, engine=engine
    )(out)
    assert out.tolist() == [0, 1, 2, 3, 4]


def test_name_docstring_module_and_signature_are_kept() -> None:
    assert add.__name__ == "add"
    assert add.__qualname__ == "add"
    assert add.__module__ == __name__
    assert add.__doc__ == "Add two vectors."
    assert list(inspect.signature(add).parameters) == ["a", "b", "out", "scale"]
    assert inspect.signature(add) == inspect.signature(add.__wrapped__)
    assert typing.get_type_hints(add)["scale"] is float
    assert inspect.getsource(add).startswith("@dsm.parallel(workers=2)\ndef add(")
    assert "add" in repr(add)
    assert callable(add)


def test_attributes_of_the_function_are_kept() -> None:
    def function() -> None:
        pass

    function.unit = "m"  # type: ignore[attr-defined]
    assert dsm.parallel(function).unit == "m"


def test_variants_keep_the_name_and_signature() -> None:
    for variant in (add.serial, add.using(workers=3)):
        assert variant.__name__ == "add"
        assert inspect.signature(variant) == inspect.signature(add)


def generator() -> typing.Iterator[int]:
    yield 1


async def coroutine() -> None:
    pass


async def async_generator() -> typing.AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (generator, "generator is a generator"),
        (coroutine, "coroutine is a coroutine"),
        (async_generator, "async_generator is an asynchronous generator"),
        (len, "Python function.*len"),
        (np.add, "Python function.*add"),
        (int, "Python function.*int"),
        (functools.partial(divmod, 1), "Python function.*partial"),
        (4, r"workers=4"),
        (ranks, "kernel already"),
        (staticmethod(coroutine), "@staticmethod above @dsm.parallel"),
        (classmethod(coroutine), "@classmethod above @dsm.parallel"),
    ],
    ids=repr,
)
def test_what_cannot_be_a_kernel_is_refused_with_what_to_do(thing: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dsm.parallel(thing)


def test_options_are_keywords_alone() -> None:
    with pytest.raises(TypeError):
        dsm.parallel(None, 2)  # type: ignore[call-overload]


# -- Methods ------------------------------------------------------------------------------------


class Field:
    def __init__(self, n: int) -> None:
        self.cells = dsm.zeros(n)
        self.step = 2.0

    @dsm.parallel(workers=2)
    def fill(self, value: float) -> tuple[int, float]:
        for i in dsm.prange(len(self.cells)):
            self.cells[i] = value * self.step
        return dsm.rank(), self.step

    @staticmethod
    @dsm.parallel(workers=2)
    def static(x: int) -> int:
        return x + dsm.rank()

    @classmethod
    @dsm.parallel(workers=2)
    def named(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x + dsm.rank()

    @dsm.parallel(workers=2)
    def who(self) -> str:
        return f"field {self.step}"


class Grid(Field):
    @dsm.parallel(workers=2)
    def who(self) -> str:
        return "grid of " + super().who.serial()[0]


def test_a_method_is_bound_to_its_object(engine: str) -> None:
    field = Field(6)
    assert field.fill.using(engine=engine)(1.5) == [(r, 2.0) for r in TWO[engine]]
    assert field.cells.tolist() == [3.0] * 6


def test_a_method_sees_the_state_of_its_object_at_each_call() -> None:
    field = Field(4)
    field.fill(1.0)
    field.step = 5.0
    field.fill(1.0)
    assert field.cells.tolist() == [5.0] * 4


def test_a_method_can_be_called_on_the_class() -> None:
    field = Field(4)
    Field.fill(field, 1.0)
    assert field.cells.tolist() == [2.0] * 4


def test_an_inherited_method_is_bound_to_the_heir() -> None:
    grid = Grid(4)
    grid.fill(2.0)
    assert grid.cells.tolist() == [4.0] * 4
    assert Grid.named(1) == [("Grid", 1), ("Grid", 2)]


def test_a_method_may_call_its_super(engine: str) -> None:
    assert Grid(1).who.using(engine=engine)() == ["grid of field 2.0"] * len(TWO[engine])


def test_static_and_class_methods_stand_above_the_decorator(engine: str) -> None:
    with dsm.options(engine=engine):
        assert Field.static(5) == [5 + r for r in TWO[engine]]
        assert Field(1).static(5) == [5 + r for r in TWO[engine]]
        assert Field.named(5) == [("Field", 5 + r) for r in TWO[engine]]


def test_variants_of_a_method_stay_bound() -> None:
    field = Field(3)
    assert field.fill.serial(1.0) == [(0, 2.0)]
    assert field.fill.using(workers=3)(1.0) == [(0, 2.0), (1, 2.0), (2, 2.0)]
    assert list(inspect.signature(field.fill).parameters) == ["value"]
    assert Field.fill.last_report.workers == 3  # type: ignore[union-attr]


# -- What a call returns ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_call_returns_none_if_every_worker_did(workers: int, engine: str) -> None:
    kernel = dsm.parallel(workers=workers, engine=engine)(lambda: None)
    assert kernel() is None
    assert kernel.serial() is None


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_call_returns_the_list_by_rank(workers: int, engine: str) -> None:
    kernel = dsm.parallel(workers=workers, engine=engine)(lambda: dsm.rank() * 10)
    size = workers if engine == "process" else 1
    assert kernel() == [r * 10 for r in range(size)]
    assert kernel.serial() == [0]


def test_a_list_may_hold_none_for_some_ranks() -> None:
    kernel = dsm.parallel(workers=3)(lambda: 7 if dsm.rank() == 1 else None)
    assert kernel() == [None, 7, None]


@pytest.mark.parametrize("value", [0, False, "", (), [], {}, 0.0])
def test_a_false_value_is_a_value(value: Any, engine: str) -> None:
    kernel = dsm.parallel(workers=2, engine=engine)(lambda: value)
    assert kernel() == [value] * len(TWO[engine])


REDUCTIONS: list[tuple[Any, list[Any], Any]] = [
    ("+", [1, 2, 3], 6),
    ("+", ["a", "b", "c"], "abc"),
    ("*", [2, 3, 4], 24),
    ("min", [3, 1, 2], 1),
    ("max", [3, 1, 2], 3),
    ("min", ["b", "a", "c"], "a"),
    ("&", [7, 6, 12], 4),
    ("|", [1, 2, 4], 7),
    ("^", [1, 3, 7], 5),
    ("&", [{1, 2}, {2, 3}, {2}], {2}),
    ("and", [True, 0, True], 0),
    ("and", [1, 2, 3], 3),
    ("or", [0, 2, 3], 2),
    ("or", [0, "", False], False),
    (lambda a, b: f"({a}{b})", ["x", "y", "z"], "((xy)z)"),
    ("same", [4, 4, 4], 4),
    ("same", [float("nan")] * 3, None),
]


@pytest.mark.parametrize(("reduce", "values", "expected"), REDUCTIONS)
def test_a_reduction_is_the_fold_in_rank_order(
    reduce: Any, values: list[Any], expected: Any
) -> None:
    kernel = dsm.parallel(workers=3, reduce=reduce)(lambda: values[dsm.rank()])
    if expected is None:
        assert np.isnan(kernel())
    else:
        assert kernel() == expected
        assert type(kernel()) is type(expected)


@pytest.mark.parametrize(
    ("reduce", "expected"), [("+", [3, 5]), ("*", [2, 6]), ("min", [1, 2]), ("max", [2, 3])]
)
def test_arrays_are_reduced_element_by_element(reduce: str, expected: list[int]) -> None:
    values = [np.array([1, 3]), np.array([2, 2])]
    kernel = dsm.parallel(workers=2, reduce=reduce)(lambda: values[dsm.rank()])
    np.testing.assert_array_equal(kernel(), expected)


@pytest.mark.parametrize("reduce", ["+", "*", "min", "max", "&", "|", "^", "and", "or", "same"])
def test_a_team_of_one_reduces_to_its_value(reduce: str, engine: str) -> None:
    kernel = dsm.parallel(workers=1, engine=engine, reduce=reduce)(lambda: 5)
    assert kernel() == 5
    assert kernel.serial() == 5


@pytest.mark.parametrize("reduce", ["+", "min", max])
def test_reducing_a_none_is_an_error_that_names_the_rank(reduce: Any) -> None:
    kernel = dsm.parallel(workers=3, reduce=reduce)(lambda: None if dsm.rank() == 1 else 1)
    with pytest.raises(ValueError, match=r"rank 1 of 3 returned None"):
        kernel()


@pytest.mark.parametrize("workers", [1, 2])
def test_reducing_nothing_but_none_is_an_error_with_the_true_size(workers: int) -> None:
    kernel = dsm.parallel(workers=workers, reduce="+")(lambda: None)
    with pytest.raises(ValueError, match=f"rank 0 of {workers} returned None"):
        kernel()


def test_same_agrees_on_none_and_tells_who_has_a_value() -> None:
    assert dsm.parallel(workers=2, reduce="same")(lambda: None)() is None
    kernel = dsm.parallel(workers=2, reduce="same")(lambda: dsm.rank() or None)
    with pytest.raises(ValueError, match="rank 0 returned None, rank 1 returned 1"):
        kernel()


def test_same_tells_which_ranks_differ() -> None:
    kernel = dsm.parallel(workers=3, reduce="same")(lambda: dsm.rank() // 2)
    with pytest.raises(ValueError, match="rank 0 returned 0, rank 2 returned 1"):
        kernel()


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(3),
        lambda: (1, np.ones(2)),
        lambda: [np.ones(2), {"a": np.zeros(2)}],
        lambda: np.array([1.0, np.nan]),
        lambda: np.array(["a", "b"]),
        lambda: "text",
    ],
)
def test_same_compares_arrays_wherever_they_are(make: Callable[[], Any]) -> None:
    value = dsm.parallel(workers=2, reduce="same")(make)()
    np.testing.assert_equal(value, make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(3) + dsm.rank(),
        lambda: (1, np.full(2, dsm.rank())),
        lambda: np.zeros(2 + dsm.rank()),
    ],
)
def test_same_finds_arrays_that_differ(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="reduce='same'"):
        dsm.parallel(workers=2, reduce="same")(make)()


def test_what_a_reduction_raises_reaches_the_caller() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        dsm.parallel(workers=2, reduce="+")(lambda: object() if dsm.rank() else 1)()

    def refuse(a: int, b: int) -> int:
        raise KeyError((a, b))

    with pytest.raises(KeyError, match=r"\(0, 1\)"):
        ranks.using(reduce=refuse)()


# -- Serial, reports ----------------------------------------------------------------------------


def test_serial_runs_in_this_process_and_thread() -> None:
    kernel = dsm.parallel(workers=2)(lambda: (os.getpid(), threading.get_ident()))
    assert kernel.serial() == [(os.getpid(), threading.get_ident())]
    assert kernel.using(engine="serial")() == kernel.serial()


def test_processes_are_others() -> None:
    pids = dsm.parallel(workers=2)(lambda: os.getpid())()
    assert len({os.getpid(), *pids}) == 3


def test_serial_and_workers_give_the_same_arrays() -> None:
    a, b = np.arange(100.0), np.arange(100.0)[::-1].copy()
    there, here = np.zeros(100), np.zeros(100)
    add(a, b, there, scale=0.5)
    add.serial(a, b, here, scale=0.5)
    np.testing.assert_array_equal(there, here)


def test_serial_raises_the_kernels_own_exception_with_its_frames() -> None:
    @dsm.parallel(workers=2)
    def kernel() -> None:
        for i in dsm.prange(10):
            if i == 3:
                raise KeyError(i)

    with pytest.raises(KeyError) as caught:
        kernel.serial()
    assert caught.traceback[-1].name == "kernel"
    assert re.search(
        r"in worker 0 of 1, prange index 3 at .*test_parallel.py:\d+", caught.value.__notes__[0]
    )


def test_a_kernel_that_was_never_called_has_no_report() -> None:
    assert dsm.parallel(lambda: None).last_report is None


def test_the_report_tells_what_was_copied(engine: str) -> None:
    a, b, out = np.zeros(1000), dsm.zeros(1000), np.zeros(1000)
    add.using(engine=engine)(a, b, out)
    report = add.last_report
    assert report is not None
    assert report.engine == engine
    assert report.workers == len(TWO[engine])
    assert report.seconds > 0
    plain = 2 * 8000 if engine == "process" else 0
    assert (report.bytes_in, report.bytes_out) == (plain, plain)
    assert engine in str(report)


def test_shared_arrays_cost_nothing() -> None:
    a, b, out = dsm.zeros(1000), dsm.zeros(1000), dsm.zeros(1000)
    add(a, b, out)
    assert add.last_report is not None
    assert (add.last_report.bytes_in, add.last_report.bytes_out) == (0, 0)


def test_intents_say_what_is_copied() -> None:
    @dsm.parallel(workers=2, shared={"a": "in", "b": "out", "c": "inout"})
    def kernel(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        pass

    kernel(np.zeros(10), np.zeros(100), np.zeros(1000))
    assert kernel.last_report is not None
    assert kernel.last_report.bytes_in == 8 * (10 + 1000)
    assert kernel.last_report.bytes_out == 8 * (100 + 1000)


# -- The call itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", [(), (1, 2, 3, 4), (1,)])
def test_arguments_that_do_not_fit_are_refused_in_the_caller(
    call: tuple[int, ...], engine: str
) -> None:
    with pytest.raises(TypeError, match=r"argument|positional"):
        add.using(engine=engine)(*call)


def test_an_unknown_keyword_is_refused_in_the_caller(engine: str) -> None:
    with pytest.raises(TypeError, match="size"):
        add.using(engine=engine)(1, 2, 3, size=4)


def test_a_kernel_of_a_module_is_pickled_by_its_name_as_its_function_would_be() -> None:
    """``Pool.map(kernel, ...)`` must not fail for the decorator."""
    assert pickle.loads(pickle.dumps(ranks)) is ranks


def test_a_variant_of_a_kernel_is_carried_by_cloudpickle(engine: str) -> None:
    copy = cloudpickle.loads(cloudpickle.dumps(ranks.using(engine=engine)))
    assert copy() == TWO[engine]


def test_a_kernel_inside_a_kernel_runs_serially_on_that_worker(engine: str) -> None:
    @dsm.parallel(workers=2)
    def inner(x: int) -> tuple[int, int, int, int]:
        total = 0
        for i in dsm.prange(4):
            total += i
        return x, dsm.rank(), dsm.size(), total

    @dsm.parallel(workers=2, engine=engine)
    def outer() -> Any:
        mine = dsm.rank()
        value = inner(mine), inner.using(workers=3)(mine), inner.using(reduce="same")(mine)
        assert (dsm.rank(), dsm.size()) == (mine, len(TWO[engine]))
        dsm.barrier()
        return value

    assert outer() == [([(r, 0, 1, 6)], [(r, 0, 1, 6)], (r, 0, 1, 6)) for r in TWO[engine]]


def test_a_kernel_inside_a_loop_of_a_kernel_runs_serially(engine: str) -> None:
    @dsm.parallel
    def inner(row: np.ndarray) -> None:
        for j in dsm.prange(len(row), schedule="dynamic"):
            row[j] += j

    @dsm.parallel(workers=2, engine=engine)
    def outer(a: np.ndarray) -> None:
        for i in dsm.prange(len(a), schedule="dynamic"):
            inner(a[i])

    a = np.zeros((5, 7))
    outer(a)
    np.testing.assert_array_equal(a, np.tile(np.arange(7), (5, 1)))


def test_an_error_of_an_inner_kernel_is_the_outer_ones() -> None:
    @dsm.parallel
    def inner() -> None:
        raise LookupError("inner")

    @dsm.parallel(workers=2)
    def outer() -> None:
        inner()

    with pytest.raises(LookupError, match="inner"):
        outer()
    assert ranks() == [0, 1]


def test_a_kernel_may_call_itself(engine: str) -> None:
    assert factorial.using(engine=engine)(5) == [120] * len(TWO[engine])


@dsm.parallel(workers=2)
def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial(n - 1)[0]


def test_two_callers_at_once_have_a_team_each() -> None:
    """Each kernel waits for the other one: with one team they could not both run."""
    gate = dsm.zeros(2, dtype=int)

    @dsm.parallel(workers=2, timeout=30)
    def meet(gate: np.ndarray, me: int) -> int:
        gate[me] = 1
        while not gate.all():
            pass
        return os.getpid()

    pids: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: pids.__setitem__(n, meet(gate, n))) for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*pids[0], *pids[1]}) == 4


def test_many_callers_at_once_get_their_own_results() -> None:
    errors: list[BaseException] = []

    def call(n: int) -> None:
        try:
            for k in range(20):
                a = np.full(50, float(n))
                out = np.zeros(50)
                add(a, a, out, scale=k)
                np.testing.assert_array_equal(out, 2.0 * n * k)
                assert kernel(n, k) == [(n, k, 0), (n, k, 1)]
                with pytest.raises(ValueError, match=f"^{n}"):
                    fail(n)
        except BaseException as error:
            errors.append(error)

    kernel = dsm.parallel(workers=2)(lambda n, k: (n, k, dsm.rank()))

    @dsm.parallel(workers=2)
    def fail(n: int) -> None:
        raise ValueError(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_one_kernel_redefined_while_threads_call_it_never_mixes() -> None:
    """Two threads share the kernel and its cache: each call sees one value of the global."""
    space: dict[str, Any] = {"dsm": dsm, "__name__": "__main__"}
    exec("def helper(): return LOW, LOW\nLOW = 0\n", space)
    exec("@dsm.parallel(workers=2)\ndef kernel(): return helper()\n", space)
    odd: list[Any] = []
    over = threading.Event()

    def call() -> None:
        try:
            while not over.is_set():
                for a, b in space["kernel"]():
                    if a != b:
                        odd.append((a, b))
        except BaseException as error:
            odd.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(100):
        space["LOW"] = n
        exec("def helper():\n    low = LOW\n    return low, low\n", space)
        assert space["kernel"]() == [(n, n)] * 2
    over.set()
    for thread in threads:
        thread.join()
    assert odd == []


def test_teams_grow_and_shrink() -> None:
    for workers in (1, 4, 2, 7, 1, 3):
        assert ranks.using(workers=workers)() == list(range(workers))


# -- BLAS ---------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {
        library["num_threads"]
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    }


@pytest.mark.skipif(not blas_threads(), reason="NumPy's BLAS here is none that threadpoolctl knows")
def test_blas_has_as_many_threads_in_a_worker_as_the_call_says() -> None:
    mine = blas_threads()
    kernel = dsm.parallel(workers=2)(blas_threads)
    assert kernel() == [{1}, {1}]
    assert kernel.using(blas_threads=2)() == [{2}, {2}]
    assert kernel() == [{1}, {1}]
    assert blas_threads() == mine


@pytest.mark.parametrize("threads", [1, 2])
def test_libraries_loaded_later_find_the_number_of_threads(threads: int) -> None:
    kernel = dsm.parallel(workers=2, blas_threads=threads)(
        lambda: os.environ["OPENBLAS_NUM_THREADS"]
    )
    assert kernel() == [str(threads)] * 2


# -- Timeouts -----------------------------------------------------------------------------------


def test_a_timeout_names_the_slow_rank_and_where_the_others_wait() -> None:
    @dsm.parallel(workers=2, timeout=0.2)
    def slow(a: np.ndarray) -> None:
        a += 1
        if dsm.rank() == 1:
            while True:
                pass
        dsm.barrier()

    a = np.zeros(3)
    with pytest.raises(
        dsm.RegionTimeout, match=r"0.2 s.*rank 0 .*barrier.*rank 1 .*computing"
    ) as e:
        slow(a)
    assert isinstance(e.value, TimeoutError)
    assert a.tolist() == [0, 0, 0], "after a timeout plain arrays are untouched"
    assert ranks() == [0, 1]


@pytest.mark.parametrize("stubborn", [False, True])
def test_after_a_timeout_the_team_is_usable(stubborn: bool) -> None:
    @dsm.parallel(workers=2, timeout=0.2)
    def endless() -> None:
        while True:
            try:
                time.sleep(1000)  # not to synchronise: it is what must be stopped
            except BaseException:
                if not stubborn:
                    raise

    for _ in range(2):
        with pytest.raises(dsm.RegionTimeout):
            endless()
        assert ranks() == [0, 1]


def test_a_region_that_ends_in_time_is_not_stopped() -> None:
    assert ranks.using(timeout=60)() == [0, 1]


def test_a_timeout_wakes_ranks_that_wait_for_a_lock() -> None:
    @dsm.parallel(workers=2, timeout=0.2)
    def kernel() -> None:
        if dsm.rank() == 0:
            with dsm.critical("x"):
                while True:
                    pass
        with dsm.critical("x"):
            while True:
                pass

    with pytest.raises(dsm.RegionTimeout):
        kernel()
    assert ranks() == [0, 1]
