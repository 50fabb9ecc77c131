# Licensed under a 3-clause BSD style license - see LICENSE
"""Fixtures and marks of all tests; Keras is loaded only by tests that use it."""

import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Figures are drawn without a screen.
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, however slow the machine.
hypothesis.settings.register_profile("astrovae", deadline=None, derandomize=True)
hypothesis.settings.load_profile("astrovae")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed before any fixture, and skip what is marked not to run on the backend."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(1234)
    skips = [
        (mark.args[0], mark.kwargs["reason"])
        for mark in item.iter_markers("backend_skip")
    ]
    if not skips:
        return
    import keras

    for backend, reason in skips:
        if backend == keras.config.backend():
            pytest.skip(f"{backend}: {reason}")


@pytest.fixture(autouse=True)
def _isolated():
    """Leave no figure open."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def rng():
    """Random numbers, the same in every run."""
    return np.random.default_rng(1234)


@pytest.fixture(scope="session")
def data_path():
    """The folder of real data that ASTROVAE_DATA names; skips without it."""
    folder = os.environ.get("ASTROVAE_DATA")
    if not folder:
        pytest.skip("needs real data; set ASTROVAE_DATA to its folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ASTROVAE_DATA={folder} is not a folder")
    return path
