# Licensed under a 3-clause BSD style license - see LICENSE
"""
The KL divergence from a mixture: matrix products against the tiled form.

128 components, 32 latents, batches of 1,000 galaxies; also with gradients, as
in a step of training.

Usage: KERAS_BACKEND=jax python benchmarks/priors.py [--json FILE]
"""

import argparse

import keras
import numpy as np
from _timing import interleaved, ratio, report
from keras import ops

from astrovae._batches import RowFunction
from astrovae.layers import MixturePrior
from astrovae.ops import gaussian_entropy

NUM_COMPONENTS, LATENT_DIM, BATCH = 128, 32, 1000


def broadcast_kl(prior, mean, log_var):
    """Compute the same bound by way of a (batch, components, latents) tensor."""
    mean, log_var = mean[:, None, :], log_var[:, None, :]
    log_vars = prior._log_vars
    terms = (
        np.log(2 * np.pi)
        + log_vars
        + (ops.exp(log_var) + ops.square(mean - prior.means)) / ops.exp(log_vars)
    )
    joint = prior.log_weights - 0.5 * ops.sum(terms, axis=-1)
    return -ops.logsumexp(joint, axis=-1) - gaussian_entropy(log_var[:, 0])


def tiled_kl(prior, mean, log_var):
    """
    Compute the KL term of VaDE the way its code and AstroVaDEr's do.

    Every array is repeated to (batch, latents, components), and the
    responsibilities of a sample weigh the terms.
    """

    def tile(array):
        return ops.repeat(array[:, :, None], NUM_COMPONENTS, axis=2)

    def tile_component(array):
        return ops.tile(ops.transpose(array)[None], (BATCH, 1, 1))

    z = mean + ops.exp(0.5 * log_var)
    means, variances = (
        tile_component(prior.means),
        tile_component(ops.exp(prior._log_vars)),
    )
    weights = ops.tile(
        ops.exp(prior.log_weights)[None, None, :], (BATCH, LATENT_DIM, 1)
    )
    joint = (
        ops.exp(
            ops.sum(
                ops.log(weights)
                - 0.5 * ops.log(2 * np.pi * variances)
                - ops.square(tile(z) - means) / (2 * variances),
                axis=1,
            )
        )
        + 1e-10
    )
    gamma = joint / ops.sum(joint, axis=-1, keepdims=True)
    gamma_tiled = ops.repeat(gamma[:, None, :], LATENT_DIM, axis=1)
    terms = (
        np.log(2 * np.pi)
        + ops.log(variances)
        + ops.exp(tile(log_var)) / variances
        + ops.square(tile(mean) - means) / variances
    )
    return (
        ops.sum(0.5 * gamma_tiled * terms, axis=(1, 2))
        - gaussian_entropy(log_var)
        - ops.sum(ops.log(weights[:, 0]) * gamma, axis=-1)
        + ops.sum(ops.log(gamma) * gamma, axis=-1)
    )


class Train(keras.Model):
    """Move posteriors and prior towards each other: a step of training."""

    def __init__(self, kl_divergence, prior):
        super().__init__()
        self.kl_divergence = kl_divergence
        self.prior = prior

    def call(self, inputs):
        return self.kl_divergence(inputs["mean"], inputs["log_var"])

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.mean(y_pred)


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()

    jit_compile = keras.config.backend() != "torch"
    rng = np.random.default_rng(1)
    batch = {
        name: rng.normal(size=(BATCH, LATENT_DIM)).astype("float32")
        for name in ("mean", "log_var")
    }
    prior = MixturePrior(NUM_COMPONENTS, LATENT_DIM, seed=1)
    forms = {
        "products": prior.kl_divergence,
        "broadcast": lambda mean, log_var: broadcast_kl(prior, mean, log_var),
        "tiled": lambda mean, log_var: tiled_kl(prior, mean, log_var),
    }
    functions, values = {}, {}
    for name, form in forms.items():
        model = RowFunction(
            lambda inputs, form=form: {"kl": form(inputs["mean"], inputs["log_var"])},
            prior,
        )
        values[name] = model.predict_on_batch(batch)["kl"]
        functions[name] = lambda model=model: model.predict_on_batch(batch)
        train = Train(form, prior)
        train.compile(optimizer="sgd", jit_compile=jit_compile)
        train.optimizer.learning_rate = 0.0
        functions[f"{name}, training"] = lambda train=train: train.train_on_batch(batch)
    times = interleaved(functions, repeats=arguments.repeats)
    report(
        [(name, seconds, BATCH) for name, seconds in times.items()],
        {
            "backend": keras.config.backend(),
            "tiled_vs_products": ratio(times, "tiled", "products"),
            "tiled_vs_products_training": ratio(
                times, "tiled, training", "products, training"
            ),
            "max_difference": float(
                np.abs(values["broadcast"] - values["products"]).max()
            ),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
