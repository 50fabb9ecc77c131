# Licensed under a 3-clause BSD style license - see LICENSE
"""AstroVaDEr's network trained for some minutes, and what 20 latents can paint."""

import time

import keras
import numpy as np
import regier

from astrovae.images import align, measure_pose, unalign
from astrovae.layers import MixturePrior
from astrovae.models import VAE, GaussianLikelihood, TerminateOnDivergence
from astrovae.models.networks_eigen import principal_components

__all__ = ["Deadline", "compare_painting", "forward_flops", "train_astrovader"]

# small batches: minutes give this network few steps
BATCH_SIZE = 32
LEARNING_RATE = 3e-4  # as published
# share of the time after which the components are placed, by so many galaxies
PRETRAINING = 0.6
NUM_PLACED = 600
LATENT_DIM = 20
PASSES = 60
# of the cubic interpolation of a pixel
TAPS = 16


class Deadline(keras.callbacks.Callback):
    """
    Stop a training after some time, not counting its first step.

    Keras stops after the step, in the middle of the epoch.

    Parameters
    ----------
    seconds : float
        The time.
    """

    def __init__(self, seconds):
        super().__init__()
        self.limit, self.seconds, self.steps = seconds, 0.0, 0
        self.start = None

    def on_train_batch_end(self, batch, logs=None):
        if self.start is None:  # it was compiled
            self.start = time.perf_counter()
        self.steps += 1
        self.seconds = time.perf_counter() - self.start
        if self.seconds > self.limit:
            self.model.stop_training = True


def train_astrovader(stack, num_components, seconds, seed):
    """
    Train the preset on prepared pictures.

    As published: a weak KL divergence at first, then a mixture from k-means and
    scikit-learn, then both together, mirrored and turned at random.
    """
    keras.utils.set_random_seed(seed)
    prior = MixturePrior(num_components, LATENT_DIM, seed=seed)
    model = VAE.from_preset(
        "astrovader", image_shape=stack.image_shape, prior=prior, seed=seed
    )
    model.compile(keras.optimizers.Adam(LEARNING_RATE))
    beta, taken = model.beta, 0.0
    for share, weight in ((PRETRAINING, 0.1 * beta), (1 - PRETRAINING, beta)):
        model.beta = weight
        deadline = Deadline(share * seconds)
        if taken == 0.0:
            k, dim = num_components, LATENT_DIM
            prior.set_components(np.ones(k), np.zeros((k, dim)), np.ones((k, dim)))
        model.fit(
            stack,
            batch_size=BATCH_SIZE,
            epochs=1000,
            augment="flips",
            verbose=0,
            callbacks=[deadline, TerminateOnDivergence()],
        )
        if taken == 0.0:
            start = time.perf_counter()
            mean, log_var = model.encode(stack[:NUM_PLACED])
            prior.fit(mean, log_var, seed=seed)
            taken += time.perf_counter() - start
        taken += deadline.seconds
        print(f"    {deadline.steps} steps of {BATCH_SIZE} galaxies", flush=True)
    model.beta = beta
    return model, taken


def forward_flops(model):
    """Operations to encode and paint one image, a product and a sum each."""
    ny, nx, n_bands = model.image_shape
    canvas = model.canvas_shape
    total = 2 * np.prod(model.posterior_layer.kernel.shape)
    if hasattr(model.encoder, "convolutions"):
        shapes = [layer.kernel.shape for layer in model.encoder.convolutions]
        sizes = [ny * nx / 4 ** (i // 2) for i in range(len(shapes))]
        decoder = model.decoder
        shapes += [layer.kernel.shape for layer in decoder.convolutions]
        sizes += [ny * nx / 4 ** (3 - i // 2) for i in range(len(decoder.convolutions))]
        shapes += [decoder.output_layer.kernel.shape, decoder.project.kernel.shape]
        sizes += [ny * nx, 1]
        counts = [2 * np.prod(s) * size for s, size in zip(shapes, sizes, strict=True)]
        return float(total + sum(counts))
    for network in (model.encoder, model.decoder):
        # matrices alone: vectors are nothing beside them
        matrices = [w.shape for w in network.weights if len(w.shape) == 2]
        total += sum(2 * np.prod(shape) for shape in matrices)
    if model.pose:
        # to the aligned frame, and mean and variance back
        total += 2 * TAPS * 3 * np.prod(canvas) * n_bands
    return float(total)


# ---------------------------------------------------------------------------
# What 20 latents can paint
# ---------------------------------------------------------------------------


def train_painter(stack, aligned, options, seed=0):
    """Train dense networks between components of posed galaxies, 20 latents."""
    keras.utils.set_random_seed(seed)
    arguments = {
        "latent_dim": LATENT_DIM,
        "beta": 1.0,
        "seed": seed,
        # bright pixels count as in the squared error
        "likelihood": GaussianLikelihood(
            beta_nll=1.0, sigma_floor=1 / 255 / np.sqrt(12)
        ),
    }
    model = VAE.from_preset(
        "galaxy_eigen", image_shape=aligned.image_shape, **arguments
    )
    steps = PASSES * -(-len(aligned) // regier.BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(rate))
    deadline = Deadline(60 * options.minutes)
    model.fit(
        aligned,
        batch_size=regier.BATCH_SIZE,
        epochs=PASSES,
        augment="mirrors",
        verbose=0,
        callbacks=[deadline, TerminateOnDivergence()],
    )
    twin = VAE.from_preset(
        "galaxy_eigen",
        image_shape=stack.image_shape,
        encoder=model.encoder,
        decoder=model.decoder,
        pose=True,
        canvas_shape=aligned.image_shape[:2],
        scale=model.scale,
        noise=model.noise,
        preprocessing=stack.preprocessing,
        **arguments,
    )
    twin.posterior_layer.set_weights(model.posterior_layer.get_weights())
    return twin, deadline.seconds


def compare_painting(train, test, other, options):
    """Squared errors on the prepared pixels, for 20 numbers per galaxy."""
    plain = test
    train, test = measure_pose(train), measure_pose(test)
    aligned = align(train, shape=regier.canvas_shape(train))
    model, seconds = train_painter(train, aligned, options)
    result = {
        "seconds_painting": seconds,
        "mse": mean_square(test, model.reconstruct(test)["mean"]),
        "elbo_painting": float(model.elbo(test).mean()),
        "flops_painting": forward_flops(model),
        "mse_astrovader_trained": mean_square(test, other.reconstruct(plain)["mean"]),
        "elbo_astrovader_trained": elbo_at_best_sigma(other, plain),
    }
    result["flops_ratio_painting"] = forward_flops(other) / result["flops_painting"]
    for name, frame in (("mse_pca", train), ("mse_pca_posed", aligned)):
        images = regier.flat(frame)[0]
        center, rows, _ = principal_components(images, LATENT_DIM)
        seen = test if frame is train else align(test, shape=aligned.image_shape[:2])
        offset = regier.flat(seen)[0] - center
        painted = (center + (offset @ rows.T) @ rows).reshape(-1, *seen.image_shape)
        if frame is aligned:
            painted = unalign(painted, test.pose, shape=test.image_shape[:2])
        result[name] = mean_square(test, painted)
    if options.weights:
        from astrovae.interop.astrovader import load_published_weights

        published = load_published_weights(options.weights)
        painted = published.reconstruct(test.data[:])["mean"]
        result["mse_astrovader_published"] = mean_square(test, painted)
    return result


def mean_square(stack, painted):
    """Mean squared error over galaxies and valid pixels."""
    return float(regier.masked_mse(stack, painted).mean())


def elbo_at_best_sigma(model, stack):
    """The bound if the noise of all pixels is the one that suits the model best."""
    terms = model.predict(stack, verbose=0)
    count = np.prod(model.image_shape)
    variance = terms["mse"].mean(dtype=float)
    log_like = -0.5 * count * (np.log(2 * np.pi * variance) + 1)
    return float(log_like - terms["kl"].mean(dtype=float))
