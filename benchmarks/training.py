# Licensed under a 3-clause BSD style license - see LICENSE
"""
Training: ``fit`` beside hand-written loops, and our network beside AstroVaDEr's.

Three comparisons, each in turns in one process; the medians count:

* The network of Regier et al. 2015 (69 x 69 pixels, batches of 100), trained
  by ``VAE.fit`` and by a loop written for the backend alone: in JAX, also
  where Keras runs on TensorFlow, or in PyTorch. The loop computes the loss and
  nothing else: no masks, no metrics.
* ``galaxy_base`` and ``astrovader`` on 128 x 128 pixels: training and encoding.
* The KL divergence from a mixture of 128 components in 32 dimensions, beside
  the usual tiled form, and beside a step of the Regier network.

By default it takes a few minutes::

    KERAS_BACKEND=jax python benchmarks/training.py --json training.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

from astrovae.layers import MixturePrior
from astrovae.models import VAE
from astrovae.ops import gaussian_log_prob

BACKEND = keras.config.backend()
REGIER_SHAPE = (69, 69, 1)
REGIER_BATCH = 100
LARGE_SHAPE = (128, 128, 1)
LEARNING_RATE = 1e-3


def make_images(n, shape, seed=1):
    """Round galaxies with noise, from 0 to 1."""
    rng = np.random.default_rng(seed)
    ny, nx, _ = shape
    y, x = np.mgrid[:ny, :nx].astype("float32")
    radius = np.hypot(x - nx / 2, y - ny / 2)
    images = np.empty((n, *shape), "float32")
    for image, size in zip(images, rng.uniform(3, nx / 6, n)):
        image[..., 0] = np.exp(-radius / size)
        image += 0.02 * rng.standard_normal(shape, dtype="float32")
    return np.clip(images, 0, 1)


class EpochTimer(keras.callbacks.Callback):
    """Seconds of every epoch."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def fit_seconds(vae, images, batch_size):
    """Train for an epoch, and return its seconds."""
    timer = EpochTimer()
    vae.fit(images, batch_size=batch_size, verbose=0, callbacks=[timer])
    return timer.seconds[0]


# ---------------------------------------------------------------------------
# Loops by hand
# ---------------------------------------------------------------------------


def initial_weights():
    """Kernels and biases of the Regier network, encoder first."""
    pixels = int(np.prod(REGIER_SHAPE))
    sizes = [(pixels, 128), (128, 128), (128, 16)]
    sizes += [(8, 128), (128, 128), (128, 2 * pixels)]
    rng = np.random.default_rng(2)
    kernels = [rng.uniform(-1, 1, s) * np.sqrt(6 / sum(s)) for s in sizes]
    return [
        (kernel.astype("float32"), np.zeros(kernel.shape[1], "float32"))
        for kernel in kernels
    ]


def batches(images, batch_size, epoch):
    """Shuffled rows of an array, as the loops read them."""
    order = np.random.default_rng(epoch).permutation(len(images))
    for start in range(0, len(images), batch_size):
        yield images[order[start : start + batch_size]]


def jax_loop(images, batch_size=REGIER_BATCH):
    """Return a function that trains for an epoch, written in JAX alone."""
    import jax
    import jax.numpy as jnp

    def loss(weights, x, key):
        encoder, decoder = weights[:3], weights[3:]
        features = x
        for kernel, bias in encoder[:2]:
            features = jax.nn.relu(features @ kernel + bias)
        mean, log_var = jnp.split(features @ encoder[2][0] + encoder[2][1], 2, axis=1)
        noise = jax.random.normal(key, mean.shape)
        features = mean + jnp.exp(0.5 * log_var) * noise
        for kernel, bias in decoder[:2]:
            features = jax.nn.relu(features @ kernel + bias)
        maps = features @ decoder[2][0] + decoder[2][1]
        pixels, raw = jnp.split(maps, 2, axis=1)
        variance = jnp.exp(jnp.clip(raw, -20, 20)) + 1e-6
        residual = jnp.square(x - pixels) / variance
        log_like = -0.5 * jnp.sum(
            residual + jnp.log(variance) + np.log(2 * np.pi), axis=1
        )
        terms = jnp.exp(log_var) + jnp.square(mean) - 1 - log_var
        return jnp.mean(0.5 * jnp.sum(terms, axis=1) - log_like)

    @jax.jit
    def step(state, x, key):
        weights, first, second, count, total = state
        value, gradients = jax.value_and_grad(loss)(weights, x, key)
        count = count + 1
        tree = jax.tree.map
        first = tree(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = tree(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        weights = tree(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, first, second
        )
        return weights, first, second, count, total + value

    weights = jax.tree.map(jnp.asarray, initial_weights())
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, jnp.zeros(()), jnp.zeros(()))
    key, epoch = jax.random.key(1), 0
    flat = images.reshape(len(images), -1)

    def train():
        nonlocal state, key, epoch
        for x in batches(flat, batch_size, epoch):
            key, own = jax.random.split(key)
            state = step(state, x, own)
        jax.block_until_ready(state)
        epoch += 1

    return train


def torch_loop(images, batch_size=REGIER_BATCH):
    """Return a function that trains for an epoch, written in PyTorch alone."""
    import torch

    def network(weights):
        layers = []
        for kernel, bias in weights:
            layer = torch.nn.Linear(*kernel.shape)
            layer.weight.data = torch.from_numpy(kernel.T.copy())
            layer.bias.data = torch.from_numpy(bias)
            layers += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1]).to(device)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = initial_weights()
    encoder, decoder = network(weights[:3]), network(weights[3:])
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    flat, epoch, losses = images.reshape(len(images), -1), 0, []

    def train():
        nonlocal epoch
        total = torch.zeros((), device=device)
        for x in batches(flat, batch_size, epoch):
            x = torch.from_numpy(x).to(device)
            mean, log_var = torch.chunk(encoder(x), 2, dim=1)
            z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
            pixels, raw = torch.chunk(decoder(z), 2, dim=1)
            variance = torch.exp(torch.clamp(raw, -20, 20)) + 1e-6
            residual = torch.square(x - pixels) / variance
            log_like = -0.5 * torch.sum(
                residual + torch.log(variance) + np.log(2 * np.pi), dim=1
            )
            terms = torch.exp(log_var) + torch.square(mean) - 1 - log_var
            loss = torch.mean(0.5 * torch.sum(terms, dim=1) - log_like)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        # waits for the device
        losses.append(float(total))
        epoch += 1

    return train


# ---------------------------------------------------------------------------
# Comparisons
# ---------------------------------------------------------------------------


def timed(function):
    """Seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(contestants, repeats):
    """Call functions that return seconds in turns; return their medians."""
    for function in contestants.values():
        function()
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            seconds[name].append(function())
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare_loops(steps, repeats, batch_size=REGIER_BATCH, with_loop=True):
    """``fit`` on the Regier network, beside a loop for the backend."""
    images = make_images(steps * batch_size, REGIER_SHAPE)
    vae = VAE.from_preset("regier2015", image_shape=REGIER_SHAPE, seed=1)
    vae.compile(keras.optimizers.Adam(LEARNING_RATE))
    name = "torch" if BACKEND == "torch" else "jax"
    contestants = {"fit": lambda: fit_seconds(vae, images, batch_size)}
    if with_loop:
        loop = (torch_loop if name == "torch" else jax_loop)(images, batch_size)
        contestants["loop"] = lambda: timed(loop)
    seconds = in_turns(contestants, repeats)
    result = {"fit_iterations_per_second": steps / seconds["fit"]}
    if not with_loop:
        return result
    return result | {
        "loop": name,
        "loop_iterations_per_second": steps / seconds["loop"],
        "fit_vs_loop": seconds["loop"] / seconds["fit"],
    }


def compare_networks(repeats, numbers=None, batch_size=32):
    """
    Images per second of ``galaxy_base`` and ``astrovader``.

    Parameters
    ----------
    repeats : int
        Turns.
    numbers : dict, optional
        For each network, on how many images it is trained, and how many it
        encodes, in a turn.
    batch_size : int, optional
        Images in a step of training; half of those that are encoded at a time.

    Returns
    -------
    dict
        Results.
    """
    result = {}
    trains, encodes = {}, {}
    numbers = numbers or {"galaxy_base": (256, 1024), "astrovader": (32, 64)}
    for name, (num_train, num_encode) in numbers.items():
        vae = VAE.from_preset(name, image_shape=LARGE_SHAPE, latent_dim=20)
        vae.compile(keras.optimizers.Adam(LEARNING_RATE))
        images = make_images(max(num_train, num_encode), LARGE_SHAPE)
        some, many = images[:num_train], images[:num_encode]

        def train(vae=vae, some=some):
            return fit_seconds(vae, some, batch_size) / len(some)

        def encode(vae=vae, many=many):
            seconds = timed(lambda: vae.encode(many, batch_size=2 * batch_size))
            return seconds / len(many)

        trains[name], encodes[name] = train, encode
    for work, contestants in (("train", trains), ("encode", encodes)):
        seconds = in_turns(contestants, repeats)
        for name in numbers:
            result[f"{work}_images_per_second_{name}"] = 1 / seconds[name]
        result[f"{work}_vs_astrovader"] = seconds["astrovader"] / seconds["galaxy_base"]
    return result


def compiled(function):
    """Compile a function of tensors for the backend, with its gradient."""
    if BACKEND == "jax":
        import jax

        step = jax.jit(
            jax.grad(lambda *inputs: ops.mean(function(*inputs)), argnums=(0, 1))
        )
        return lambda *inputs: jax.block_until_ready(step(*inputs))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def step(mean, log_var):
            with tf.GradientTape() as tape:
                tape.watch([mean, log_var])
                loss = ops.mean(function(mean, log_var))
            return tape.gradient(loss, [mean, log_var])

        return lambda *inputs: step(*inputs)[0].numpy()

    def step(mean, log_var):
        mean = mean.detach().requires_grad_()
        log_var = log_var.detach().requires_grad_()
        ops.mean(function(mean, log_var)).backward()

    return step


def compare_mixtures(repeats, num_components=128, latent_dim=32):
    """KL divergence and gradient of a batch: matrix products, and tiled."""
    prior = MixturePrior(num_components, latent_dim, seed=1)
    rng = np.random.default_rng(3)
    shape = (REGIER_BATCH, latent_dim)
    inputs = [ops.convert_to_tensor(rng.normal(size=shape), "float32") for _ in "ab"]
    components = prior.components()
    centers = ops.convert_to_tensor(components["means"], "float32")
    log_vars = ops.convert_to_tensor(np.log(components["covariances"]), "float32")
    log_weights = ops.convert_to_tensor(np.log(components["weights"]), "float32")

    def tiled(mean, log_var):
        # as usually written: (n, latent_dim, num_components) copies of everything
        def copy(x):
            return ops.tile(x[:, :, None], (1, 1, num_components))

        mean, log_var_copies = copy(mean), copy(log_var)
        log_prob = gaussian_log_prob(
            mean, ops.transpose(centers)[None], ops.transpose(log_vars)[None]
        ) - 0.5 * ops.exp(log_var_copies - ops.transpose(log_vars)[None])
        joint = log_weights + ops.sum(log_prob, axis=1)
        entropy = 0.5 * ops.sum(1 + np.log(2 * np.pi) + log_var, axis=1)
        return -ops.logsumexp(joint, axis=1) - entropy

    functions = {"products": prior.kl_divergence, "tiled": tiled}
    compiled_functions = {name: compiled(f) for name, f in functions.items()}
    number = 50

    def many(function):
        return timed(lambda: [function(*inputs) for _ in range(number)]) / number

    seconds = in_turns(
        {name: (lambda f=f: many(f)) for name, f in compiled_functions.items()},
        repeats,
    )
    return {
        "mixture_kl_milliseconds": 1e3 * seconds["products"],
        "mixture_kl_vs_tiled": seconds["tiled"] / seconds["products"],
    }


def main():
    """Run all comparisons and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", type=Path, help="write the results to a file")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=100, help="Regier steps a turn")
    arguments = parser.parse_args()
    result = {"backend": BACKEND}
    result |= compare_loops(arguments.steps, arguments.repeats)
    result |= compare_mixtures(arguments.repeats)
    step = 1e3 / result["fit_iterations_per_second"]
    result["mixture_kl_share_of_step"] = result["mixture_kl_milliseconds"] / step
    result |= compare_networks(arguments.repeats)
    for name, value in result.items():
        print(f"{name:40} {value if isinstance(value, str) else format(value, '.4g')}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
