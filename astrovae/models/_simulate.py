# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies drawn from a model, as they would have been observed."""

import numpy as np
from keras import ops

__all__ = ["simulate_galaxies"]


class _WithDraws:
    """A source whose galaxies bring latents and standard normal deviates."""

    def __init__(self, source, z, seed):
        self.source, self.z, self.seed = source, z, seed

    def __len__(self):
        return len(self.source)

    def batch(self, indices):
        """Read the rows ``indices``; the noise of each depends on it alone."""
        batch = self.source.batch(indices)
        noise = np.empty_like(batch["image"])
        for plane, row in zip(noise, indices):
            rng = np.random.default_rng([self.seed, int(row)])
            rng.standard_normal(dtype=np.float32, out=plane)
        return {**batch, "z": self.z[indices], "noise": noise}


def simulate_galaxies(model, inputs, z, noise, seed, batch_size, show_progress):
    """Draw galaxies; see `VAE.simulate`."""
    source = model._source(inputs)
    shape = len(source), model.latent_dim
    if z is None and len(source):
        z = ops.convert_to_numpy(model.prior.sample(len(source), seed=seed))
    z = np.zeros(shape, np.float32) if z is None else np.asarray(z, dtype=np.float32)
    if z.shape != shape:
        msg = f"z must have the shape {shape}, a row for each galaxy, got {z.shape}."
        raise ValueError(msg)

    def simulate(batch):
        params = model._decode_batch(batch["z"], batch)
        image = params["mean"]
        if noise:
            _, error = model._pixels(batch)
            image = model.likelihood.draw(params, batch["noise"], error)
        return {"image": image * model._scale}

    result = model._map(
        "simulate" if noise else "simulate_clean",
        simulate,
        _WithDraws(source, z, seed),
        batch_size=batch_size,
        description="Simulating",
        show_progress=show_progress,
    )
    return {"image": result["image"], "z": z}
