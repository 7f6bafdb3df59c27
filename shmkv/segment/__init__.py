"""The shared-memory segment: the C core and its binding.

Importing it hands the core the exception classes of `shmkv.errors`, so that every user of `_core`, however it came
there, gets these and not the plain built-ins.
"""

from __future__ import annotations

from shmkv import errors
from shmkv.segment import _core

_core.set_errors({
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.ShmkvError)
})
