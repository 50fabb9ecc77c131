# Licensed under a 3-clause BSD style license - see LICENSE
"""Posteriors that do not depend on how a galaxy is turned."""

import numpy as np

__all__ = ["encode_rotations"]


class _Turned:
    """A source whose galaxies are to be turned by an angle before they are seen."""

    def __init__(self, source, angle):
        self.source, self.angle = source, angle

    def __len__(self):
        return len(self.source)

    def batch(self, indices):
        """Read the rows ``indices``."""
        batch = self.source.batch(indices)
        turn = np.full((len(batch["image"]), 1), self.angle, np.float32)
        return {**batch, "turn": turn}


def encode_rotations(model, inputs, n_rotations, refine, batch_size, show_progress):
    """Average posteriors over rotations; see `VAE.encode`."""
    if model.pose:
        msg = (
            "n_rotations is for models without a pose: this one has pose=True, and "
            "sees every galaxy in its aligned frame already. Use n_rotations=1."
        )
        raise ValueError(msg)
    if refine:
        msg = (
            "refine makes the posterior of a galaxy as it is turned: it does not go "
            f"with n_rotations, got refine={refine} and n_rotations={n_rotations}."
        )
        raise ValueError(msg)
    source = model._source(inputs)
    angles = 2.0 * np.pi * np.arange(n_rotations) / n_rotations
    results = [
        model._map(
            "encode_turned",
            model._encode_batch,
            _Turned(source, angle),
            batch_size=batch_size,
            description=f"Encoding, turned by {np.degrees(angle):.0f} degrees",
            show_progress=show_progress,
        )
        for angle in angles
    ]
    means = np.stack([result["mean"] for result in results]).astype(float)
    log_vars = np.stack([result["log_var"] for result in results]).astype(float)
    variance = np.exp(log_vars).mean(axis=0) + means.var(axis=0)
    return {
        "mean": means.mean(axis=0).astype(np.float32),
        "log_var": np.log(variance).astype(np.float32),
        "measured": results[0]["measured"],
    }
