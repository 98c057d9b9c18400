"""Fixtures that more than one file of tests needs."""

import pytest


@pytest.fixture(scope="session")
def without_tensorflow(tmp_path_factory):
    """A folder to be put before all others: who imports TensorFlow or Keras is ended with 99."""
    folder = tmp_path_factory.mktemp("without_tensorflow")
    for name in ("tensorflow", "keras"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("import os\n\nos._exit(99)\n")
    return folder
