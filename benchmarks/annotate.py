# Licensed under a 3-clause BSD style license - see LICENSE
"""
What appending columns costs beside what the model computes.

100,000 galaxies of 32 x 32 pixels and a catalogue of twenty columns, a small
model that was not trained. What the model takes is timed inside the same calls.

Usage: KERAS_BACKEND=jax python benchmarks/annotate.py [--n N] [--json FILE]
"""

import argparse
import time

import keras
import numpy as np
from _timing import report
from astropy.table import Table

from astrovae.catalog import annotate
from astrovae.images import CutoutStack
from astrovae.models import VAE, DenseDecoder, DenseEncoder

SHAPE, UNITS, LATENT_DIM = (32, 32, 1), (64,), 8


class Timed:
    """A model whose computations are timed."""

    def __init__(self, model):
        self.model, self.seconds = model, 0.0

    def encode(self, stack, **kwargs):
        """Encode, and add up the time."""
        return self._time(self.model.encode, stack, kwargs)

    def measure(self, stack, **kwargs):
        """Measure, and add up the time."""
        return self._time(self.model.measure, stack, kwargs)

    def _time(self, function, stack, kwargs):
        start = time.perf_counter()
        try:
            return function(stack, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


def make_input(n):
    """Galaxies of noise, with 64-bit identifiers, and their catalogue."""
    rng = np.random.default_rng(1)
    data = rng.standard_normal((n, *SHAPE), dtype=np.float32)
    data += 5 * np.exp(-np.hypot(*np.indices(SHAPE[:2]) - 15.5) / 3)[..., None]
    ids = 1237648720693755918 + np.arange(n)
    mask = np.zeros(data.shape, dtype=bool)
    mask[::1000] = True
    stack = CutoutStack(
        data,
        mask=mask,
        error=np.ones_like(data),
        ids=ids,
        meta={"id_column": "objid"},
    )
    columns = {f"property_{i}": rng.random(n) for i in range(18)}
    columns |= {"objid": ids, "name": ids.astype(str)}
    return Table(columns), stack


def main():
    """Time annotate, its parts, and a second run that has nothing to do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--n", type=int, default=100_000, help="number of galaxies")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write the results to this file")
    arguments = parser.parse_args()
    table, stack = make_input(arguments.n)
    vae = VAE(
        SHAPE, LATENT_DIM, DenseEncoder(UNITS), DenseDecoder((32, 32, 2), UNITS), seed=1
    )
    vae.adapt(stack)
    steps = {"latents": ("latents",), "both": ("latents", "reconstruction")}
    rows, results = [], {"backend": keras.config.backend(), "n": arguments.n}
    for name, what in steps.items():
        shares, seconds = [], []
        for turn in range(arguments.repeats + 1):
            model = Timed(vae)
            start = time.perf_counter()
            result = annotate(table, model, stack, what=what)
            elapsed = time.perf_counter() - start
            if turn:  # the first one compiles
                shares.append(1 - model.seconds / elapsed)
                seconds.append(elapsed)
        rows.append((name, np.array(seconds), arguments.n))
        results[f"table_share_{name}"] = float(np.median(shares))
        results[f"per_second_{name}"] = float(arguments.n / np.median(seconds))
    model, seconds = Timed(vae), []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        annotate(result, model, stack, what=steps["both"], only_missing=True)
        seconds.append(time.perf_counter() - start)
    assert model.seconds == 0.0, "a complete catalogue was encoded"
    rows.append(("nothing missing", np.array(seconds), arguments.n))
    report(rows, results, arguments.json)


if __name__ == "__main__":
    import warnings

    from astrovae.exceptions import FlaggedRowsWarning

    warnings.simplefilter("ignore", FlaggedRowsWarning)
    main()
