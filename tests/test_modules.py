"""What other modules of the user are to a kernel: what they are in the caller, at this moment.

Each story is a program of its own, with modules beside it. Where it says ``check()``, every
kernel it has must do in the workers what it does in the caller, twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import dsmfor as dsm
from dsmfor.skeleton import retired

PACKAGE = str(Path(dsm.__file__).parent.parent)

PRELUDE = """
import contextlib, functools, importlib, os, pathlib, sys
import numpy as np
import dsmfor as dsm

sys.dont_write_bytecode = True  # an edit in the same second has the same date
kernels = []

def kernel(function):
    made = dsm.parallel(workers=2)(function)
    kernels.append((made, function))
    return made

def outcome(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return type(error).__name__, str(error)

def check(*args):
    for made, function in kernels:
        here = outcome(function, *args)
        for _ in range(2):
            there = outcome(made, *args)
            there = there[0] if isinstance(there, list) and there[0] == there[1] else there
            assert there == here, (function.__name__, "workers", there, "caller", here)

def write(name, source):
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)

def pids():
    return set(dsm.parallel(workers=2)(os.getpid_)())

os.getpid_ = lambda: __import__("os").getpid()
"""

HELPERS = """
import threading
SCALE = 3
TABLE = [1, 2]
LIMITS = {"low": 0}
lock = threading.Lock()
class Model:
    factor = 2
    names = ["a"]
    def __init__(self, n=1): self.n = n
    def area(self): return self.n * self.factor * SCALE
    @property
    def doubled(self): return 2 * self.n
    @staticmethod
    def fixed(): return SCALE, "fixed"
    @classmethod
    def made(cls): return cls(4).area(), cls.names
def inner(x): return x * SCALE
def scale(x, offset=1):
    with lock:
        return inner(x) + offset, len(TABLE), LIMITS["low"]
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join([PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("DSM_", "PYTHONUNB"))}
    return variables | {"PYTHONPATH": path}


def tell(
    folder: Path, program: str, files: dict[str, str] | None = None, *flags: str, name: str = ""
) -> str:
    """Run a program beside its files; what it prints."""
    for file, source in (files or {}).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    script = folder / (name or "program.py")
    script.write_text(PRELUDE + textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, *(flags or [str(script)])],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=folder,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


RESTORE = "importlib.reload(helpers)"

# -- The caller changes something, and the next call sees it --------------------------------------

USES = {
    "by attribute": "import helpers\n@kernel\ndef k(): return helpers.scale(2)",
    "by name": "import helpers\nfrom helpers import scale\n@kernel\ndef k(): return scale(2)",
    "by an import in the body": "import helpers\n@kernel\ndef k():\n    import helpers as h\n"
    "    return h.scale(2)",
    "by a name imported in the body": "import helpers\n@kernel\ndef k():\n"
    "    from helpers import scale as s\n    return s(2)",
    "through a helper": "import helpers\ndef help(): return helpers.scale(2)\n"
    "@kernel\ndef k(): return help()",
    "through a closure": "import helpers\ndef make(f):\n    def k(): return f(2)\n    return k\n"
    "k = kernel(make(helpers.scale))",
    "through a class of one's own": "import helpers\nclass Mine:\n"
    "    def run(self): return helpers.scale(2)\n@kernel\ndef k(): return Mine().run()",
    "through a list": "import helpers\nlist_ = [helpers.scale, lambda: helpers.SCALE]\n"
    "@kernel\ndef k(): return list_[0](2), list_[1]()",
    "through a partial": "import helpers\np = functools.partial(helpers.scale, 2)\n"
    "@kernel\ndef k(): return p()",
    "by getattr": "import helpers\n@kernel\ndef k(): return getattr(helpers, 'scale')(2)",
    "through a module in a list": "import helpers\nlist_ = [helpers]\n@kernel\n"
    "def k(): return list_[0].scale(2)",
}
CHANGES = {
    "a number": ["helpers.SCALE = 5", "helpers.SCALE = 5.0", "helpers.SCALE = True",
                 "helpers.SCALE = 3"],
    "a list": ["helpers.TABLE.append(3)", "helpers.TABLE = []"],
    "a dict in place": ["helpers.LIMITS['low'] = 7"],
    "a name that is deleted": ["del helpers.SCALE", "helpers.SCALE = 4"],
    "an inner function": ["helpers.inner = lambda x: -x", "inner = helpers.inner",
                          "helpers.inner = abs", "del helpers.inner"],
    "code": ["helpers.inner.__code__ = (lambda x: x + 100).__code__"],
    "defaults": ["helpers.scale.__defaults__ = (50,)", "helpers.scale.__defaults__ = ([1],)"],
    "a number becomes a function": ["helpers.SCALE = len\nhelpers.inner = lambda x: x"],
    "a function by a mock": [
        ("from unittest import mock\n"
        "m = mock.patch('helpers.inner', lambda x: 77)\nm.start()"), "m.stop()"],
}  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda name: name.replace(" ", "_"))
def test_a_change_in_another_module_is_seen(use: str, tmp_path: Path) -> None:
    steps = [step for changes in CHANGES.values() for step in [*changes, RESTORE]]
    program = USES[use] + "\ncheck()\n" + "".join(f"{step}\ncheck()\n" for step in steps)
    tell(tmp_path, program, {"helpers.py": HELPERS})


STORIES = {
    "a class": (
        """
        import helpers
        from helpers import Model
        m = Model(3)
        @kernel
        def by_instance(): return m.area(), m.doubled, m.fixed(), m.made(), type(m) is Model
        @kernel
        def by_class(): return Model(2).area(), Model.names, isinstance(m, Model)
        @kernel
        def by_module(): return helpers.Model(5).area(), helpers.Model.__name__
        check()
        helpers.SCALE = 5; check()
        Model.factor = 7; check()
        Model.names.append("b"); check()
        Model.names = "new"; check()
        Model.area = lambda self: ("patched", self.n, helpers.SCALE); check()
        del Model.factor; check()
        Model.factor = 1; check()
        Model.doubled = property(lambda self: -self.n); check()
        Model.fixed = staticmethod(lambda: "other"); check()
        Model.made = classmethod(lambda cls: (cls.__name__, cls.factor)); check()
        Model.__len__ = lambda self: 9
        @kernel
        def length(): return len(m), bool(m)
        check()
        del Model.__len__; check()
        importlib.reload(helpers); check()
        m = helpers.Model(8); Model = helpers.Model; check()
        """,
        {"helpers.py": HELPERS},
    ),
    "arguments of another module's class": (
        """
        import helpers
        k = kernel(lambda x: (x.area(), x.made(), type(x) is helpers.Model))
        r = kernel(lambda x: type(x).__name__)
        check(helpers.Model(2))
        helpers.SCALE = 4; check(helpers.Model(2))
        helpers.Model.factor = 3; check(helpers.Model(2))
        old = helpers.Model(2)
        importlib.reload(helpers); check(helpers.Model(2)); check(old)
        assert isinstance(dsm.parallel(workers=2)(lambda: helpers.Model())()[0], helpers.Model)
        """,
        {"helpers.py": HELPERS},
    ),
    "an edited file that is reloaded": (
        """
        import helpers
        from helpers import scale
        @kernel
        def k(): return helpers.scale(2), scale(2), helpers.Model(3).area()
        check()
        source = pathlib.Path("helpers.py").read_text()
        write("helpers.py", source.replace("SCALE = 3", "SCALE = 4").replace("+ offset", "- offset")
              .replace("return self.n * ", "return -self.n * ") + "\\nextra = 1\\n")
        check()
        importlib.reload(helpers); check()
        assert helpers.scale(2)[0] == 7 and helpers.Model(3).area() == -24
        scale = helpers.scale; check()
        """,
        {"helpers.py": HELPERS},
    ),
    "an edited file that is not reloaded": (
        """
        import helpers
        @kernel
        def k(): return helpers.scale(2), helpers.Model(3).area(), helpers.Model.fixed()
        check()
        source = pathlib.Path("helpers.py").read_text()
        write("helpers.py", source.replace("SCALE = 3", "SCALE = 4").replace("+ offset", "- offset")
              .replace("return self.n * ", "return -self.n * ").replace('"fixed"', '"FIXED"')
              .replace("n=1", "n=2, m=3") + "\\ndel LIMITS\\n")
        check()
        from dsmfor.engines import process
        process.shutdown()              # fresh workers import the new file
        check(); check()
        helpers.SCALE = 8; check()
        """,
        {"helpers.py": HELPERS},
    ),
    "a module that is removed and imported again": (
        """
        import helpers
        from helpers import scale
        @kernel
        def k(): return helpers.scale(2), helpers.Model(2).area()
        @kernel
        def named(): return scale(3)
        check()
        write("helpers.py", pathlib.Path("helpers.py").read_text().replace("SCALE = 3", "SCALE = 4")
              )
        del sys.modules["helpers"]
        import helpers as again
        assert again.SCALE == 4
        check()
        helpers = again; check()
        scale = again.scale; check()
        """,
        {
            "helpers.py": HELPERS.replace(
                "threading.Lock()", "__import__('contextlib').nullcontext()"
            )
        },
    ),
    "a package with relative imports": (
        """
        import pkg
        import pkg.sub.deep
        from pkg import tools
        @kernel
        def k(): return pkg.sub.deep.go(1), tools.run(2), pkg.VERSION
        @kernel
        def inside():
            from pkg.sub import deep as d
            import pkg.tools
            return d.go(1), pkg.tools.run(3)
        check()
        pkg.tools.FACTOR = 10; check()
        pkg.VERSION = 2; check()
        pkg.sub.deep.base = lambda: 99; check()
        importlib.reload(pkg.sub.deep); check()
        """,
        {
            "pkg/__init__.py": "VERSION = 1\nfrom . import tools\n",
            "pkg/tools.py": "FACTOR = 2\ndef run(x):\n    from .sub import deep\n"
            "    return FACTOR * x, deep.go(x)\n",
            "pkg/sub/__init__.py": "from ..tools import FACTOR\n",
            "pkg/sub/deep.py": "from .. import tools\nfrom . import FACTOR as F\n"
            "def base(): return F\ndef go(x): return x * tools.FACTOR + base()\n",
        },
    ),
    "circular imports": (
        """
        import a
        import b
        @kernel
        def k(): return b.f(1), a.f(2)
        @kernel
        def only_b(): return b.g()
        check()
        a.X = 5; b.Y = 6; check()
        """,
        {
            "a.py": "X = 1\nimport b\nZ = b.Y\ndef f(n): return b.g() + n + X + Z\n",
            "b.py": "import a\nfrom a import X\nY = 2\ndef g(): return a.X + Y + X\n"
            "def f(n): return a.f(n) * 2\n",
        },
    ),
    "caches": (
        """
        import helpers
        @kernel
        def k(): return helpers.cached(2), helpers.memo(3), sorted(helpers.memory)
        check()
        helpers.SCALE = 10; helpers.cached.cache_clear(); helpers.memory.clear(); check()
        helpers.cached.__wrapped__.__code__ = (lambda n: -n).__code__
        helpers.cached.cache_clear(); check()
        helpers.memory.clear(); check()
        """,
        {
            "helpers.py": "import functools\nSCALE = 2\nmemory = {}\n"
            "@functools.lru_cache\ndef cached(n): return n * SCALE\n"
            "def memo(n):\n    if n not in memory: memory[n] = n * SCALE\n    return memory[n]\n"
        },
    ),
    "decorated functions": (
        """
        import helpers
        @kernel
        def k(): return helpers.f(2), helpers.g(3), [*helpers.h()][0]
        check()
        helpers.SCALE = 5; check()
        helpers.FACTOR = 7; check()
        helpers.f.__closure__[0].cell_contents.__code__ = (lambda x: "new").__code__; check()
        helpers.g = helpers.times(50)(lambda x: x); check()
        importlib.reload(helpers); check()
        helpers.calls.append(5); check()
        """,
        {
            "helpers.py": "import functools, contextlib, deco\nSCALE = 2\nFACTOR = 1\ncalls = []\n"
            "def times(n):\n    def decorate(f):\n        @functools.wraps(f)\n"
            "        def wrapper(*a): return n * FACTOR * f(*a) + len(calls)\n"
            "        return wrapper\n"
            "    return decorate\n"
            "@times(3)\ndef f(x): return x * SCALE\n"
            "@deco.plus\ndef g(x): return x + SCALE\n"
            "@deco.plus\n@contextlib.contextmanager\ndef m(): yield SCALE\n"
            "def h():\n    with contextlib.contextmanager(lambda: iter([SCALE]))() as x: pass\n"
            "    yield x\n",
            "deco.py": "PLUS = 1\ndef plus(f):\n    def wrapper(*a):\n        r = f(*a)\n"
            "        return r + PLUS if isinstance(r, int) else r\n    return wrapper\n",
        },
    ),
    "a kernel of another module": (
        """
        import helpers
        @kernel
        def k(): return helpers.team.serial(2), helpers.part(3)
        check()
        helpers.SCALE = 5; check()
        helpers.part = lambda x: -x; check()
        importlib.reload(helpers); check()
        made = helpers.team
        assert dsm.parallel(workers=2)(lambda: made(1))() == [[2], [2]]
        assert made(1) == [2, 2]
        helpers.SCALE = 7
        assert made(1) == [7, 7]
        """,
        {
            "helpers.py": "import dsmfor as dsm\nSCALE = 2\ndef part(x): return SCALE * x\n"
            "@dsm.parallel(workers=2)\ndef team(x): return part(x)\n"
        },
    ),
    "dataclasses, enumerations and named tuples": (
        """
        import helpers
        k = dsm.parallel(workers=2)(lambda: (
            helpers.Record("x").grown(), helpers.Colour.RED is helpers.colour,
            helpers.Pair(1, 2).total(), helpers.Record("x") == helpers.Record("x"),
            helpers.start() is helpers.UNSET, helpers.Colour.RED.shown(), helpers.Record("z").rest))
        for _ in range(2):
            assert k() == k.serial() * 2, (k(), k.serial())
        helpers.LOUD = "?"
        helpers.Record.limit = 9
        assert k() == k.serial() * 2, (k(), k.serial())
        """,
        {
            "helpers.py": "import dataclasses, enum, typing\nUNSET = object()\nLOUD = '!'\n"
            "def start(x=UNSET): return x\n"
            "@dataclasses.dataclass\nclass Record:\n    name: str\n"
            "    rest: list = dataclasses.field(default_factory=list)\n"
            "    limit: typing.ClassVar = 3\n"
            "    def grown(self): return self.name + LOUD, self.limit, self.rest\n"
            "class Colour(enum.Enum):\n    RED = 1\n    def shown(self): return self.name + LOUD\n"
            "class Pair(typing.NamedTuple):\n    a: int\n    b: int\n"
            "    def total(self): return self.a + self.b, LOUD\ncolour = Colour.RED\n"
        },
    ),
    "inheritance across modules": (
        """
        import base, heir
        class Mine(heir.Heir):
            def run(self): return "mine", super().run()
        h = heir.Heir()
        k = kernel(lambda: (h.run(), heir.Heir().run(), Mine().run(), isinstance(h, base.Base)))
        check()
        base.X = 2; check()
        base.Base.y = 3; check()
        base.Base.part = lambda self: "patched"; check()
        heir.Heir.run = lambda self: "replaced"; check()
        """,
        {
            "base.py": "X = 1\nclass Base:\n    y = 1\n    def part(self): return X, self.y\n",
            "heir.py": "import base\nclass Heir(base.Base):\n"
            "    def run(self): return 'heir', self.part()\n",
        },
    ),
    "a module that computes its names": (
        """
        import helpers
        k = kernel(lambda: (helpers.anything, helpers.other))
        check()
        helpers.N = 5; check()
        helpers.anything = "set"; check()
        del helpers.anything; check()
        """,
        {
            "helpers.py": "N = 1\ndef __getattr__(name):\n    if name.startswith('__'):\n"
            "        raise AttributeError(name)\n    return name, N\n"
        },
    ),
    "a module made by code": (
        """
        import types
        made = types.ModuleType("made")
        exec("X = 1\\ndef f(): return X, g()\\ndef g(): return 'g'\\n"
             "class C:\\n    def m(self): return X", vars(made))
        sys.modules["made"] = made
        k = kernel(lambda: (made.f(), made.X, made.C().m()))
        @kernel
        def inside():
            import made as m
            from made import f
            return m.X, f()
        check()
        made.X = 2; check()
        made.g = lambda: 'new'; check()
        c = made.C()
        j = kernel(lambda: c.m())
        check()
        """,
        {},
    ),
    "what the body imports before the caller does": (
        """
        @kernel
        def k():
            import late
            return late.X, late.f()
        check()
        import late
        late.X = 9; check()
        """,
        {"late.py": "X = 1\ndef f(): return X\n"},
    ),
    "a module beside which one is of the same name": (
        """
        sys.path.insert(0, "other")
        import twin
        sys.path.pop(0)
        k = kernel(lambda: (twin.where(), twin.C().m()))
        check()
        assert twin.where() == "other"
        """,
        {
            "twin.py": "def where(): return 'here'\nclass C:\n    def m(self): return 'here'\n",
            "other/twin.py": "def where(): return 'other'\nclass C:\n"
            "    def m(self): return 'other'\n",
        },
    ),
    "a module that is loaded from a file no path leads to": (
        """
        import importlib.util
        spec = importlib.util.spec_from_file_location("far", "deep/far.py")
        far = importlib.util.module_from_spec(spec)
        sys.modules["far"] = far
        spec.loader.exec_module(far)
        k = kernel(lambda: (far.f(), far.C().m()))
        check()
        far.X = 4; check()
        """,
        {"deep/far.py": "X = 1\ndef f(): return X\nclass C:\n    def m(self): return X\n"},
    ),
    "a namespace package": (
        """
        import space.part
        k = kernel(lambda: space.part.f())
        check()
        space.part.X = 2; check()
        space.extra = 5
        j = kernel(lambda: space.extra)
        check()
        """,
        {"space/part.py": "X = 1\ndef f(): return X\n"},
    ),
    "a zip file": (
        """
        import zipfile
        with zipfile.ZipFile("code.zip", "w") as file:
            file.writestr("zipped.py", "X = 1\\ndef f(): return X\\nclass C:\\n    y = 1\\n")
        sys.path.insert(0, os.path.abspath("code.zip"))
        import zipped
        k = kernel(lambda: (zipped.f(), zipped.C.y))
        check()
        zipped.X = 2; zipped.C.y = 3; check()
        sys.path.pop(0)
        from dsmfor.engines import process
        process.shutdown()
        k = kernel(lambda: (zipped.f(), zipped.C.y, 1))
        """,
        {},
    ),
    "compiled files alone": (
        """
        import py_compile
        py_compile.compile("source.py", "bare.pyc")
        import bare
        k = kernel(lambda: (bare.f(), bare.C.y))
        check()
        bare.X = 2; bare.C.y = 3; check()
        """,
        {"source.py": "X = 1\ndef f(): return X\nclass C:\n    y = 1\n"},
    ),
    "a file that is named as one of the standard library": (
        """
        import statistics
        k = kernel(lambda: statistics.mean(3))
        check()
        statistics.X = 2; check()
        """,
        {"statistics.py": "X = 1\ndef mean(n): return n, X\n"},
    ),
    "a registry": (
        """
        import registry, plugins
        k = kernel(lambda: (registry.run("double", 2), sorted(registry.known)))
        check()
        plugins.FACTOR = 20; check()
        registry.known["half"] = lambda x: x / 2; check()
        registry.register(lambda x: 0, "double"); check()
        """,
        {
            "registry.py": "known = {}\ndef register(f, name=None):\n"
            "    known[name or f.__name__] = f\n    return f\n"
            "def run(name, x): return known[name](x)\n",
            "plugins.py": "import registry\nFACTOR = 2\n@registry.register\n"
            "def double(x): return FACTOR * x\n",
        },
    ),
    "functions that go by their arguments' types": (
        """
        import helpers
        k = kernel(lambda: (helpers.show(1), helpers.show("x"), helpers.show(None)))
        check()
        helpers.MARK = "?"; check()
        helpers.show.register(int, lambda n: "an int"); check()
        helpers.show.register(type(None), lambda n: "nothing"); check()
        """,
        {
            "helpers.py": "import functools\nMARK = '!'\n@functools.singledispatch\n"
            "def show(x): return repr(x) + MARK\n"
            "@show.register\ndef _(x: str): return x + MARK\n"
        },
    ),
}


@pytest.mark.parametrize("name", STORIES, ids=lambda name: name.replace(" ", "_").replace("'", ""))
def test_the_workers_do_what_the_caller_does(name: str, tmp_path: Path) -> None:
    program, files = STORIES[name]
    tell(tmp_path, program, files)


# -- Workers that have imported what the caller has reloaded -------------------------------------

TEAMS = """
    from dsmfor.engines import process
    import helpers
    @kernel
    def k(): return helpers.scale(2)
    k()
    before = process.team_pids()
"""


@pytest.mark.parametrize(
    ("step", "same"),
    [
        ("pass", True),
        ("helpers.SCALE = 5", True),
        ("helpers.inner = lambda x: 7", True),
        ("importlib.reload(importlib.import_module('helpers'))", False),
        ("del sys.modules['helpers']; helpers = importlib.import_module('helpers')", False),
        ("import other; importlib.reload(other)", True),
        ("import json; importlib.reload(json)", True),
    ],
)
def test_workers_are_replaced_when_a_module_that_they_have_was_reloaded(
    step: str, same: bool, tmp_path: Path
) -> None:
    program = TEAMS + f"    {step}\n    check()\n    check()\n" + (
        f"    assert (process.team_pids() == before) is {same}\n"
        "    before = process.team_pids()\n    check()\n"
        "    assert process.team_pids() == before\n"
    )  # fmt: skip
    tell(tmp_path, program, {"helpers.py": HELPERS, "other.py": "X = 1\n"})


def test_an_import_that_leaves_its_mark_elsewhere_is_made_again_after_a_reload(
    tmp_path: Path,
) -> None:
    """What no name leads to, in an extension or in the interpreter, is as a new process has it."""
    program = """
        import helpers
        k = dsm.parallel(workers=2)(lambda: (getattr(sys, "mark" + "ed"), helpers.f()))
        assert k() == [(1, 1)] * 2
        write("helpers.py", "import sys\\nsys.marked = 2\\ndef f(): return 2\\n")
        importlib.reload(helpers)
        assert k() == [(2, 2)] * 2
    """
    source = "import sys\nsys.marked = 1\ndef f(): return 1\n"
    tell(tmp_path, program, {"helpers.py": source})


def test_a_class_that_was_edited_beyond_what_can_be_set_is_an_error_that_says_so(
    tmp_path: Path,
) -> None:
    program = """
        import helpers
        k = dsm.parallel(workers=2)(lambda: helpers.Model().run())
        assert k() == [1, 1]
        write("helpers.py",
              "class Base: pass\\nclass Model(Base):\\n    def run(self): return 2\\n")
        assert k() == [1, 1]
        from dsmfor.engines import process
        process.shutdown()
        try:
            k()
        except dsm.RegionError as error:
            assert "helpers.Model is not in the workers what it is in the caller" in str(error)
            assert "importlib.reload of helpers" in str(error), error
        else:
            raise AssertionError("no error")
        importlib.reload(helpers)
        assert k() == [2, 2]
    """
    tell(tmp_path, program, {"helpers.py": "class Model:\n    def run(self): return 1\n"})


# -- What cannot be sent --------------------------------------------------------------------------


def test_what_cannot_be_pickled_is_the_workers_own(tmp_path: Path) -> None:
    files = {
        "helpers.py": "import threading, logging, sqlite3, weakref\n"
        "lock = threading.Lock()\nlog = logging.getLogger('x')\nlocal = threading.local()\n"
        "db = sqlite3.connect(':memory:')\nfile = open(__file__)\nN = 1\n"
        "def f():\n    with lock: log.debug('x')\n    local.x = 1\n"
        "    return db.execute('select 1').fetchone(), file.name == __file__, N\n"
    }
    program = """
        import warnings; warnings.simplefilter("ignore")
        import helpers
        @kernel
        def k(): return helpers.f()
        check()
        helpers.N = 2; check()
    """
    tell(tmp_path, program, files)


def test_of_what_cannot_be_pickled_whole_the_rest_follows(tmp_path: Path) -> None:
    files = {
        "helpers.py": "import threading\n"
        "class Service:\n    def __init__(self):\n        self.lock = threading.Lock()\n"
        "        self.n = 1\n        self.items = []\n"
        "    def run(self):\n        with self.lock: return self.__dict__.get('n'), self.items\n"
        "service = Service()\nstate = {'lock': threading.Lock(), 'n': 1}\n"
        "def f():\n    with state['lock']: return service.run(), sorted(state), state['n']\n"
    }
    program = """
        import helpers
        @kernel
        def k(): return helpers.f()
        check()
        helpers.service.n = 2; check()
        helpers.service.items.append(3); check()
        helpers.state["n"] = 4; helpers.state["more"] = [5]; check()
        del helpers.state["more"], helpers.service.n; check()
        helpers.service = helpers.Service(); check()
        helpers.service.lock = helpers.threading.Lock(); check()
    """
    tell(tmp_path, program, files)


def test_what_cannot_be_sent_and_is_not_there_is_an_error_where_it_is_used(tmp_path: Path) -> None:
    files = {
        "helpers.py": "conn = None\ndef f(use):\n    if use: return conn.cursor()\n    return 1\n"
    }
    program = """
        import sqlite3, helpers
        k = dsm.parallel(workers=2)(lambda use: helpers.f(use))
        helpers.conn = sqlite3.connect(":memory:")
        assert k(False) == [1, 1]
        try:
            k(True)
        except dsm.RegionError as error:
            assert "helpers.conn is a sqlite3.Connection in the caller" in str(error), error
            assert "make it inside the kernel" in str(error)
        else:
            raise AssertionError("no error")
    """
    tell(tmp_path, program, files)


def test_a_kernel_leaves_no_trace_in_the_workers_modules(tmp_path: Path) -> None:
    files = {
        "helpers.py": "n = 0\nitems = []\nclass C:\n    m = 0\n"
        "def count():\n    global n\n    n += 1\n"
        "    items.append(n)\n    C.m += 1\n    return n, len(items), C.m\n"
        "def f(): return 'f'\n"
    }
    program = """
        import helpers
        k = dsm.parallel(workers=2)(lambda: helpers.count())
        def set_():
            before = helpers.f(), hasattr(helpers, "new")
            helpers.f = lambda: "changed"
            return before
        s = dsm.parallel(workers=2)(set_)
        for _ in range(3):
            assert k() == [(1, 1, 1)] * 2
            assert s() == [("f", False)] * 2
        assert helpers.n == 0
    """
    tell(tmp_path, program, files)


def test_arrays_of_other_modules_are_shared_by_their_full_name(tmp_path: Path) -> None:
    files = {
        "helpers.py": "import numpy as np\nout = np.zeros(4)\ntable = np.arange(4.0)\n"
        "def put(i, x): out[i] = x * table[i]\n"
    }
    program = """
        import helpers
        out = np.zeros(2)   # another one of that name
        @dsm.parallel(workers=2, shared=["helpers.out"])
        def k():
            for i in dsm.prange(4):
                helpers.put(i, 2)
            return float(out.sum())
        assert k() == [0.0, 0.0]
        assert helpers.out.tolist() == [0, 2, 4, 6], helpers.out
        helpers.table = helpers.table + 1; k()
        assert helpers.out.tolist() == [2, 4, 6, 8], helpers.out
        p = dsm.parallel(workers=2)(lambda: helpers.put(0, 5))
        try: p()
        except ValueError as error: assert "helpers.out" in str(error.__notes__), error.__notes__
        else: raise AssertionError
        q = dsm.parallel(workers=2, private=["helpers.out"])(lambda: helpers.put(0, 5))
        q()
        assert helpers.out[0] == 2
    """
    tell(tmp_path, program, files)


def test_new_functions_and_classes_at_every_call_cost_no_new_skeleton() -> None:
    """They are met when they are pickled; what they name is nothing that workers import."""
    kernel = dsm.parallel(workers=2)(lambda f, c: (f(), c.n))
    space: dict[str, Any] = {"__name__": "__main__"}
    serials = set()
    for n in range(20):
        exec(f"def f(): return {n}\nclass C: n = {n}", space)
        assert kernel(space["f"], space["C"]) == [(n, n)] * 2
        serials.add(kernel._core.kernel.skeleton.serial)
    assert len(serials) == 1
    assert serials.isdisjoint(retired)


# -- Lazy modules, pytest, IPython -----------------------------------------------------------------


def test_a_module_that_is_to_be_loaded_lazily_is_left_so(tmp_path: Path) -> None:
    program = """
        import importlib.util
        spec = importlib.util.find_spec("lazy")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        lazy = importlib.util.module_from_spec(spec)
        sys.modules["lazy"] = lazy
        spec.loader.exec_module(lazy)
        k = dsm.parallel(workers=2)(lambda use: lazy.X if use else 0)
        assert k(False) == [0, 0]
        assert type(lazy).__name__ == "_LazyModule"
        assert k(True) == [1, 1]
        lazy.X = 5
        assert k(True) == [5, 5]
    """
    tell(tmp_path, program, {"lazy.py": "X = 1\n"})


def test_a_module_that_is_run_and_imported_by_a_helper(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/side.py": "def twin():\n    from pkg import prog\n    return prog.N\n",
    }
    program = """
        N = 1
        from pkg.side import twin
        @kernel
        def k():
            import __main__
            return twin(), N, __main__.N
        if __name__ == "__main__":
            check()
            N = 2; check()
            import pkg.prog
            pkg.prog.N = 3; check()
    """
    tell(tmp_path, program, files, "-m", "pkg.prog", name="pkg/prog.py")


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_modules_of_a_pytest_run(mode: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import pytest\nDATA = 1\n")
    (tmp_path / "aid.py").write_text(
        "N = 1\nclass C:\n    def m(self):\n        assert N\n"
        "        return N\ndef f():\n    assert N\n    return N\n"
    )
    (tmp_path / "test_first.py").write_text(
        "class Shared:\n    def m(self):\n        assert self\n        return 'm'\n"
        "def f():\n    assert True\n    return 'f'\ndef test(): pass\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import sys, dsmfor as dsm, aid\n"
        "def test(monkeypatch):\n"
        "    first = next(m for n, m in sys.modules.items() if n.endswith('test_first'))\n"
        "    Shared, f = first.Shared, first.f\n"
        "    k = dsm.parallel(workers=2)(lambda: (aid.f(), aid.C().m(), Shared().m(), f()))\n"
        "    assert k() == [(1, 1, 'm', 'f')] * 2\n"
        "    monkeypatch.setattr(aid, 'N', 2)\n"
        "    assert k() == [(2, 2, 'm', 'f')] * 2\n"
        "    monkeypatch.setattr(aid, 'f', lambda: 'patched')\n"
        "    assert k() == [('patched', 2, 'm', 'f')] * 2\n"
        "    monkeypatch.undo()\n"
        "    assert k() == [(1, 1, 'm', 'f')] * 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}",
         str(tmp_path)],
        capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path,
        env=environment() | {"PYTHONPATH": os.pathsep.join([PACKAGE, str(tmp_path)])},
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout


CELLS = [
    "%load_ext autoreload",
    "%autoreload 2",
    "import pathlib, os, time, dsmfor as dsm, helpers",
    "from helpers import scale, Model",
    "m = Model(3)",
    (
        "@dsm.parallel(workers=2)\ndef k():\n"
        "    return scale(2), helpers.scale(2), m.area(), Model(2).area()"
    ),
    "assert k() == k.serial() * 2, (k(), k.serial())",
    (
        "source = pathlib.Path('helpers.py').read_text()\n"
        "pathlib.Path('helpers.py').write_text(source.replace('SCALE = 3', 'SCALE = 4')"
        ".replace('+ offset', '- offset').replace('return self.n *', 'return -self.n *'))\n"
        "os.utime('helpers.py', (time.time() + 9,) * 2)"
    ),
    "assert helpers.SCALE == 4 and k() == k.serial() * 2, (k(), k.serial())",
    "assert scale(2)[0] == 7, scale(2)",
    "assert k() == k.serial() * 2, (k(), k.serial())",
    "print('done')",
]


def test_autoreload_in_ipython(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "session.py").write_text(
        "import sys; sys.dont_write_bytecode = True\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"for cell in {CELLS!r}:\n"
        "    shell.run_cell(cell, store_history=True).raise_error()\n"
    )
    done = subprocess.run(
        [sys.executable, "session.py"], capture_output=True, text=True, timeout=90, check=False,
        cwd=tmp_path, env=environment() | {"IPYTHONDIR": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.rstrip().endswith("done"), done.stdout + done.stderr
