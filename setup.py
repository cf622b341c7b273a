"""Build the native core: every ``dsmfor/_native/*.pyx`` is an extension module of its own.

Everything else about the project is said in ``pyproject.toml``.
"""

from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

NATIVE = Path("dsmfor/_native")

# A header or a .pxd may be used by any module beside it: when one changes, all are rebuilt.
shared_sources = sorted(str(path) for suffix in ("h", "pxd") for path in NATIVE.glob(f"*.{suffix}"))

extensions = [
    Extension(
        f"dsmfor._native.{source.stem}",
        [str(source)],
        depends=shared_sources,
        include_dirs=[np.get_include(), str(NATIVE)],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O2", "-std=c11"],
    )
    for source in sorted(NATIVE.glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={
            "language_level": 3,
            "freethreading_compatible": True,
            # Indices are computed and checked where they are made, not at each use.
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
        },
    )
)
