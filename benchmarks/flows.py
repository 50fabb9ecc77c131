# Licensed under a 3-clause BSD style license - see LICENSE
"""
Samples and densities of a conditional masked autoregressive flow.

32 latents given 5 conditions, 5 blocks of 2 x 256 hidden units, in batches of
1,024: this flow, compiled, against zuko (PyTorch), flowjax (JAX, compiled)
and against itself when inverted by 32 passes of each network.

Usage: KERAS_BACKEND=jax python benchmarks/flows.py [--json FILE]
"""

import argparse
import functools

import keras
import numpy as np
from _timing import interleaved, ratio, report
from keras import ops

from astrovae._batches import RowFunction
from astrovae.layers import MaskedAutoregressiveFlow

LATENT_DIM, CONDITION_DIM, NUM_BLOCKS, HIDDEN = 32, 5, 5, (256, 256)


class Density(keras.Model):
    """A flow that learns the density of latents given conditions."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def call(self, inputs):
        return self.flow.log_prob(inputs["x"], inputs["conditions"])

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return -ops.mean(y_pred)


def make_data(num_rows, rng):
    """Curved and correlated latents, whose centre and width depend on conditions."""
    conditions = rng.normal(size=(num_rows, CONDITION_DIM))
    x = rng.normal(size=(num_rows, LATENT_DIM)) * np.exp(0.3 * conditions[:, :1])
    mixing = rng.normal(size=(LATENT_DIM, LATENT_DIM)) / np.sqrt(LATENT_DIM)
    x = x @ mixing + np.tile(conditions, 7)[:, :LATENT_DIM]
    x[:, 1:] += 0.3 * np.sin(2 * x[:, :-1])
    return x.astype("float32"), conditions.astype("float32")


def make_flow(x, conditions, *, epochs):
    """Make a flow; train it for some epochs."""
    flow = MaskedAutoregressiveFlow(
        LATENT_DIM, CONDITION_DIM, num_blocks=NUM_BLOCKS, hidden_units=HIDDEN
    )
    flow.adapt(x, conditions)
    model = Density(flow)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile="auto")
    inputs = {"x": x, "conditions": conditions}
    model.fit(inputs, batch_size=256, epochs=epochs, verbose=0)
    return flow


def invert_by_passes(flow, u, conditions):
    """Invert each block by as many passes of its network as there are latents."""
    conditions = (conditions - flow.condition_location) / flow.condition_scale
    for made in reversed(flow.bijectors):

        def one_pass(i, x, made=made, u=u):
            params = made.parameters(x, conditions)
            return made._transform(u, params, inverse=True)[0]

        u = ops.fori_loop(0, flow.latent_dim, one_pass, ops.zeros_like(u))
    return u * flow.scale + flow.location


def our_functions(flow, x, conditions):
    """What is timed of this flow."""
    inverse = RowFunction(
        lambda batch: {"z": flow(batch["u"], batch["conditions"], inverse=True)[0]},
        flow,
    )
    passes = RowFunction(
        lambda batch: {"z": invert_by_passes(flow, batch["u"], batch["conditions"])},
        flow,
    )
    density = RowFunction(
        lambda batch: {"log_prob": flow.log_prob(batch["x"], batch["conditions"])},
        flow,
    )

    def sample(model, noise=None):
        if noise is None:
            # drawn outside: the normal deviates of TensorFlow's compiler are slow
            noise = keras.random.normal(x.shape, seed=flow.seed_generator)
        batch = {"u": noise, "conditions": conditions}
        return model.predict_on_batch(batch)["z"]

    return {
        "sample": functools.partial(sample, inverse),
        "sample by passes": functools.partial(sample, passes),
        "density": lambda: density.predict_on_batch({"x": x, "conditions": conditions}),
    }


def zuko_functions(x, conditions):
    """What is timed of zuko; nothing if it is not installed."""
    try:
        import torch
        import zuko
    except ImportError:
        return {}
    flow = zuko.flows.MAF(
        LATENT_DIM, CONDITION_DIM, transforms=NUM_BLOCKS, hidden_features=HIDDEN
    )
    x, conditions = torch.as_tensor(x), torch.as_tensor(conditions)

    def sample():
        with torch.no_grad():
            return flow(conditions).sample()

    def density():
        with torch.no_grad():
            return flow(conditions).log_prob(x)

    return {"sample, zuko": sample, "density, zuko": density}


def flowjax_functions(x, conditions):
    """What is timed of flowjax; nothing if it is not installed."""
    try:
        import equinox
        import jax
        from flowjax.distributions import Normal
        from flowjax.flows import masked_autoregressive_flow
    except ImportError:
        return {}
    flow = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jax.numpy.zeros(LATENT_DIM)),
        cond_dim=CONDITION_DIM,
        flow_layers=NUM_BLOCKS,
        nn_width=HIDDEN[0],
        nn_depth=len(HIDDEN),
    )
    x, conditions = jax.numpy.asarray(x), jax.numpy.asarray(conditions)
    sample = equinox.filter_jit(lambda flow, key, c: flow.sample(key, (), c))
    density = equinox.filter_jit(lambda flow, x, c: flow.log_prob(x, c))
    key = jax.random.key(1)
    return {
        "sample, flowjax": lambda: np.asarray(sample(flow, key, conditions)),
        "density, flowjax": lambda: np.asarray(density(flow, x, conditions)),
    }


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()

    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    x, conditions = make_data(20_000, rng)
    flow = make_flow(x, conditions, epochs=5)
    x, conditions = x[: arguments.batch], conditions[: arguments.batch]

    ours = our_functions(flow, x, conditions)
    functions = {
        **ours,
        **zuko_functions(x, conditions),
        **flowjax_functions(x, conditions),
    }
    noise = rng.normal(size=x.shape).astype("float32")
    error = np.abs(ours["sample"](noise) - ours["sample by passes"](noise)).max()
    times = interleaved(functions, repeats=arguments.repeats)
    report(
        [(name, seconds, arguments.batch) for name, seconds in times.items()],
        {
            "backend": keras.config.backend(),
            "sample_vs_zuko": ratio(times, "sample, zuko", "sample"),
            "sample_vs_flowjax": ratio(times, "sample, flowjax", "sample"),
            "sample_vs_passes": ratio(times, "sample by passes", "sample"),
            "density_vs_zuko": ratio(times, "density, zuko", "density"),
            "density_vs_flowjax": ratio(times, "density, flowjax", "density"),
            "inverse_max_error": float(error),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
