"""What every test shares: Hypothesis profiles and the recorded traces."""

import os
import pathlib

import pytest
from hypothesis import settings

# The same examples on every run unless a search for new ones is asked for; a failure prints what reproduces it.
settings.register_profile("repeatable", derandomize=True, print_blob=True, deadline=None)
settings.register_profile("explore", print_blob=True, deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def traces_dir() -> pathlib.Path:
    """The folder of recorded traces named by HEXAGENT_TRACES; the test is skipped without it."""
    named = os.environ.get("HEXAGENT_TRACES")
    if not named:
        pytest.skip("HEXAGENT_TRACES names no folder of recorded traces")
    folder = pathlib.Path(named)
    if not folder.is_dir():
        pytest.fail(f"HEXAGENT_TRACES is not a folder: {folder}")
    return folder
