"""How the modules of a run are imported."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collects no garbage during the imports of a run, and never searches what they have made.

    Modules live as long as the process; searching them took a tenth of the import of TensorFlow,
    and was repeated while steps were traced. Where they are imported already, as for the second
    run of a study, nothing changes: models that exist by then are freed.
    """
    if "vae_research.runs.session.training" in sys.modules:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
