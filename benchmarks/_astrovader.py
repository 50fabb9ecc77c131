# Licensed under a 3-clause BSD style license - see LICENSE
"""AstroVaDEr's network trained for some minutes, and what 20 latents can paint."""

import time

import keras
import numpy as np
import regier
from sklearn.decomposition import PCA

from astrovae.images import align, unalign
from astrovae.layers import MixturePrior
from astrovae.models import VAE, GaussianLikelihood, TerminateOnDivergence

__all__ = [
    "CLOCKS",
    "Deadline",
    "elbo_at_best_sigma",
    "forward_flops",
    "mean_square",
    "paint",
    "plain",
    "train_astrovader",
]

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}

# small batches: minutes give this network few steps
BATCH_SIZE = 32
LEARNING_RATE = 3e-4  # as published
# share of the time after which the components are placed, by so many galaxies
PRETRAINING = 0.6
NUM_PLACED = 600
LATENT_DIM = 20
PASSES = 60
# galaxies whose components the networks begin with: more take gigabytes
NUM_ADAPTED = 1500
# galaxies that tell the bound
NUM_BOUND = 300
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
    clock : callable
        What tells it.
    learning_rate : float, optional
        To begin with; it falls to zero, along a cosine, when the training ends.
    last_step : float, optional
        When it ends at the latest.
    """

    def __init__(self, seconds, clock, learning_rate=None, last_step=np.inf):
        super().__init__()
        self.limit, self.seconds, self.steps = seconds, 0.0, 0
        self.clock, self.learning_rate = clock, learning_rate
        self.last_step = last_step
        self.start = None

    def on_train_batch_end(self, batch, logs=None):
        if self.start is None:  # it was compiled
            self.start = self.clock()
        self.steps += 1
        self.seconds = self.clock() - self.start
        share = max(self.seconds / self.limit, self.steps / self.last_step)
        if share >= 1:
            self.model.stop_training = True
        elif self.learning_rate is not None:
            rate = self.learning_rate * (1 + np.cos(np.pi * share)) / 2
            self.model.optimizer.learning_rate = rate


def plain(stack):
    """Galaxies as before their pose was measured, the last step."""
    return stack.replace(pose=None, steps=stack.steps[:-1])


def train_astrovader(stack, options, seed):
    """
    Train the preset on prepared pictures.

    As published: a weak KL divergence at first, then a mixture from k-means and
    scikit-learn, then both together, mirrored and turned at random.
    """
    keras.utils.set_random_seed(seed)
    clock, k, dim = CLOCKS[options.clock], options.clusters, LATENT_DIM
    prior = MixturePrior(k, dim, seed=seed)
    model = VAE.from_preset(
        "astrovader", image_shape=stack.image_shape, prior=prior, seed=seed
    )
    model.compile(keras.optimizers.Adam(LEARNING_RATE))
    beta, taken, steps = model.beta, 0.0, []
    for share, weight in ((PRETRAINING, 0.1 * beta), (1 - PRETRAINING, beta)):
        model.beta = weight
        deadline = Deadline(60 * share * options.minutes, clock)
        if not steps:
            prior.set_components(np.ones(k), np.zeros((k, dim)), np.ones((k, dim)))
        model.fit(
            stack,
            batch_size=BATCH_SIZE,
            epochs=1000,
            augment="flips",
            verbose=0,
            callbacks=[deadline, TerminateOnDivergence()],
        )
        if not steps:
            start = clock()
            mean, log_var = model.encode(stack[:NUM_PLACED], batch_size=64)
            prior.fit(mean, log_var, seed=seed)
            taken += clock() - start
        taken += deadline.seconds
        steps.append(deadline.steps)
    model.beta = beta
    return model, taken, steps


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
    model = VAE.from_preset(
        "galaxy_eigen",
        image_shape=aligned.image_shape,
        latent_dim=LATENT_DIM,
        beta=1.0,
        seed=seed,
        # bright pixels count as in the squared error
        likelihood=GaussianLikelihood(beta_nll=1.0, sigma_floor=1 / 255 / np.sqrt(12)),
    )
    model.adapt(aligned[:NUM_ADAPTED])
    model.compile(keras.optimizers.Adam(1e-3))
    steps = PASSES * -(-len(aligned) // regier.BATCH_SIZE)
    deadline = Deadline(60 * options.minutes, CLOCKS[options.clock], 1e-3, steps)
    model.fit(
        aligned,
        batch_size=regier.BATCH_SIZE,
        epochs=PASSES,
        augment="mirrors",
        verbose=0,
        callbacks=[deadline, TerminateOnDivergence()],
    )
    passes = deadline.steps * regier.BATCH_SIZE / len(aligned)
    return model.with_pose(stack), deadline.seconds, passes


def paint(train, test, options):
    """Squared errors on the prepared pixels, for 20 numbers per galaxy."""
    aligned = align(train, shape=regier.canvas_shape(train))
    result = {
        "mse_pca": error_of_components(train, test, test),
        "mse_pca_posed": error_of_components(
            aligned, align(test, shape=aligned.image_shape[:2]), test
        ),
    }
    model, seconds, passes = train_painter(train, aligned, options)
    flops = forward_flops(model)
    network = VAE.from_preset("astrovader", image_shape=plain(test).image_shape)
    return result | {
        "seconds_painting": seconds,
        "passes_painting": passes,
        "mse": mean_square(test, model.reconstruct(test)["mean"]),
        "elbo_painting": float(model.elbo(test[:NUM_BOUND]).mean()),
        "flops_painting": flops,
        "flops_ratio_painting": forward_flops(network) / flops,
    }


def error_of_components(frame, shown, test):
    """Squared error of principal components, in the frame of the images or another."""
    solver = {"svd_solver": "randomized", "random_state": 0}
    components = PCA(LATENT_DIM, copy=False, **solver).fit(regier.flat(frame)[0])
    painted = components.inverse_transform(
        components.transform(regier.flat(shown)[0])
    ).reshape(-1, *shown.image_shape)
    if shown is not test:
        painted = unalign(painted, test.pose, shape=test.image_shape[:2])
    return mean_square(test, painted)


def mean_square(stack, painted):
    """Mean squared error over galaxies and valid pixels."""
    return float(regier.masked_mse(stack, painted).mean())


def elbo_at_best_sigma(model, stack):
    """The bound if the noise of all pixels is the one that suits the model best."""
    terms = model.predict(stack[:NUM_BOUND], batch_size=64, verbose=0)
    count = np.prod(model.image_shape)
    variance = terms["mse"].mean(dtype=float)
    log_like = -0.5 * count * (np.log(2 * np.pi * variance) + 1)
    return float(log_like - terms["kl"].mean(dtype=float))
