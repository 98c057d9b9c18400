"""How the modules of a run are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collects no garbage during imports, and never searches what exists at their end.

    Modules live as long as the process; searching them took a tenth of the import of TensorFlow,
    and was repeated while steps were traced.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
