"""What other modules of the user are to a kernel: what they are in the caller, at this moment.

Each story is a program of its own, with modules beside it. Where it says ``check()``, every
kernel it has must do in the workers what it does in the caller, twice.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import dsmfor as dsm

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
    "a function by a mock": ["from unittest import mock\nm = mock.patch('helpers.inner', "
                             "lambda x: 77)\nm.start()", "m.stop()"],
    "a lock": ["import threading\nhelpers.lock = threading.RLock()",
               "helpers.lock = contextlib.nullcontext()"],
}  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda name: name.replace(" ", "_"))
def test_a_change_in_another_module_is_seen(use: str, tmp_path: Path) -> None:
    steps = [step for name in CHANGES if name != "a lock" for step in [*CHANGES[name], RESTORE]]
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
              .replace("import threading", "").replace("threading.Lock()", "__import__('contextlib').nullcontext()"))
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
            "        def wrapper(*a): return n * FACTOR * f(*a) + len(calls)\n        return wrapper\n"
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
        k = kernel(lambda: (helpers.Record("x"), helpers.Colour.RED, helpers.Pair(1, 2).total(),
                            helpers.Record("x") == helpers.Record("x"), helpers.start() is helpers.UNSET,
                            helpers.Record("y").grown(), helpers.Colour.RED.shown()))
        j = kernel(lambda: (helpers.start(), helpers.UNSET)[0] is helpers.UNSET)
        kernels.clear()
        k = dsm.parallel(workers=2)(lambda: (
            helpers.Record("x").grown(), helpers.Colour.RED is helpers.colour, helpers.Pair(1, 2).total(),
            helpers.Record("x") == helpers.Record("x"), helpers.start() is helpers.UNSET,
            helpers.Colour.RED.shown(), helpers.Record("z").rest))
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
            "    rest: list = dataclasses.field(default_factory=list)\n    limit: typing.ClassVar = 3\n"
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
        exec("X = 1\\ndef f(): return X, g()\\ndef g(): return 'g'\\nclass C:\\n    def m(self): return X",
             vars(made))
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
