# Licensed under a 3-clause BSD style license - see LICENSE
"""
Write your own prior
====================

Give a model a prior of your own: here one with heavy tails, for a sample in which a
few objects are not like the others.

Prerequisites
-------------

An installed astrovae, and some knowledge of Keras layers. :doc:`/user_guide/priors`
describes the priors that there are.

Context
-------

The prior says which latents a galaxy may have before its image is seen. Under a normal
prior a galaxy at the distance :math:`r` from the origin costs :math:`r^2 / 2` nats. A
catalogue also holds what is *not* a usual galaxy: mergers, blends, artefacts. To paint
these the model needs latents far out, where the normal prior makes them expensive.

Student's t distribution has been the remedy for outliers for long (Lange, Little &
Taylor 1989, Journal of the American Statistical Association 84, 881), and serves as a
prior of latents, too (Kim et al. 2023, arXiv:2312.01133). With :math:`\\nu` degrees of
freedom, in :math:`D` dimensions,

.. math::

   p(z) = \\frac{\\Gamma\\left(\\frac{\\nu + D}{2}\\right)}
   {\\Gamma\\left(\\frac{\\nu}{2}\\right) (\\nu\\pi)^{D/2}}
   \\left(1 + \\frac{r^2}{\\nu}\\right)^{-(\\nu + D)/2},
   \\qquad r^2 = \\sum_j z_j^2 ,

so that far out the price grows as :math:`(\\nu + D) \\log r` only.

Objective
---------

Write this prior, check it, train a model with it on galaxies of which a few are
mergers, save and load it, and compare it with a model whose prior is normal.

Approach
--------

A prior is a subclass of `~astrovae.layers.Prior` with two methods. All else (the KL
divergence, sampling, saving) is there already.
"""

import math
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from scipy import stats

import astrovae as av

keras.utils.set_random_seed(1)

# %%
# Write it
# --------
#
# ``log_prob`` gives the log-density, with all constants, since the evidence needs them.
# ``sample`` draws latents. Both use `keras.ops` and `keras.random` alone, so that the
# prior runs on every backend. There is no tensor in the configuration, and the class
# is registered, so that a saved model finds it.
#
# Three details: ``as_float`` brings latents to float32 in models of mixed precision;
# ``random_state`` gives the layer's own random numbers, or those of a seed; and a seed
# is used only once, since the two draws must be independent.
#
# ``moments`` is optional: a galaxy without a valid pixel gets the mean and the variance
# of the prior. They have a closed form, which we give; else they would be estimated
# from samples.


@keras.saving.register_keras_serializable("tutorial")
class StudentPrior(av.layers.Prior):
    """Student's t distribution, the same in all directions."""

    def __init__(self, latent_dim, degrees_of_freedom=5.0, **kwargs):
        super().__init__(latent_dim, **kwargs)
        if degrees_of_freedom <= 2:
            msg = f"degrees_of_freedom must exceed 2, got {degrees_of_freedom}."
            raise ValueError(msg)
        self.degrees_of_freedom = float(degrees_of_freedom)

    def log_prob(self, z):
        nu, dim = self.degrees_of_freedom, self.latent_dim
        squares = ops.sum(ops.square(self.as_float(z)), axis=-1)
        constant = (
            math.lgamma((nu + dim) / 2)
            - math.lgamma(nu / 2)
            - dim / 2 * math.log(nu * math.pi)
        )
        return constant - (nu + dim) / 2 * ops.log1p(squares / nu)

    def sample(self, n, seed=None):
        nu = self.degrees_of_freedom
        normal = keras.random.normal((n, self.latent_dim), seed=self.random_state(seed))
        other = None if seed is None else seed + 2**20
        half = keras.random.gamma((n, 1), nu / 2, seed=self.random_state(other))
        return normal * ops.sqrt(nu / (2 * half))

    def moments(self):
        nu, zero = self.degrees_of_freedom, ops.zeros((self.latent_dim,))
        return zero, zero + math.log(nu / (nu - 2))

    def get_config(self):
        return {
            **super().get_config(),
            "degrees_of_freedom": self.degrees_of_freedom,
        }


# %%
# Check it
# --------
#
# A density that is wrong still trains. So we check it in the way in which the tests of
# astrovae check its own priors: against an independent source, not against itself.
#
# The density is that of SciPy:

prior = StudentPrior(latent_dim=2, degrees_of_freedom=5, seed=1)
z = np.random.default_rng(1).normal(scale=3, size=(1000, 2)).astype("float32")
expected = stats.multivariate_t(shape=np.eye(2), df=5).logpdf(z)
np.testing.assert_allclose(prior.log_prob(z), expected, rtol=1e-5)

# %%
# It integrates to one, but for what lies beyond the grid, which is
# :math:`(1 + r^2/\nu)^{-\nu/2}` in two dimensions:

axis = np.linspace(-30, 30, 601)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype("float32")
mass = np.exp(ops.convert_to_numpy(prior.log_prob(grid)).astype(float)) * 0.1**2
print(f"integral {mass.sum():.4f}, beyond the grid {(1 + 900 / 5) ** -2.5:.0e}")

# %%
# Samples follow it: their squared radii have the F distribution. And the same seed
# gives the same samples.

draws = ops.convert_to_numpy(prior.sample(20_000, seed=3)).astype(float)
test = stats.kstest((draws**2).sum(axis=1) / 2, stats.f(2, 5).cdf)
print(f"Kolmogorov-Smirnov p = {test.pvalue:.2f}")
np.testing.assert_array_equal(prior.sample(20_000, seed=3), draws)

# %%
# The base class estimates the KL divergence from one sample per galaxy. The mean of
# many is the integral :math:`\int q \log (q / p)`:

mean, log_var = np.array([[1.0, -0.5]]), np.log([[0.3, 0.6]])
many = [np.repeat(value, 50_000, axis=0) for value in (mean, log_var)]
estimates = ops.convert_to_numpy(prior.kl_divergence(*many))
q = stats.multivariate_normal(mean[0], np.exp(log_var[0])).pdf(grid) * 0.1**2
log_q = stats.multivariate_normal(mean[0], np.exp(log_var[0])).logpdf(grid)
integral = np.sum(q * (log_q - ops.convert_to_numpy(prior.log_prob(grid))))
error = estimates.std() / np.sqrt(len(estimates))
print(f"{estimates.mean():.4f} +- {error:.4f}, integral {integral:.4f}")
assert abs(estimates.mean() - integral) < 4 * error

# %%
# Train with it
# -------------
#
# Galaxies are isolated, or merged with another one: its image, shifted, is added, and
# so is its noise. Mergers are rare in the sample for training, 2 percent. To see well
# what becomes of them, we test on as many as on single galaxies.


def make_sample(num_singles, num_mergers, seed):
    n = num_singles + num_mergers
    _, galaxies = av.datasets.make_galaxies(n, shape=24, snr=(40, 120), seed=seed)
    _, partners = av.datasets.make_galaxies(
        num_mergers, shape=24, snr=(40, 120), seed=seed + 1
    )
    data, error = galaxies.data.copy(), galaxies.error.copy()
    data[num_singles:] += np.roll(partners.data, (5, 4), axis=(1, 2))
    error[num_singles:] = np.hypot(error[num_singles:], partners.error)
    return av.images.CutoutStack(data, error=error)


train, test = make_sample(980, 20, seed=1), make_sample(200, 200, seed=3)
is_merger = np.arange(len(test)) >= 200

# %%
# Two models that differ in their prior alone:

models = {
    "normal": av.layers.GaussianPrior(8),
    "Student's t": StudentPrior(8, degrees_of_freedom=3),
}
for name, prior in models.items():
    keras.utils.set_random_seed(1)
    vae = av.models.VAE.from_preset(
        "galaxy_small", image_shape=train.image_shape, prior=prior, seed=1
    )
    vae.compile(optimizer=keras.optimizers.Adam(1e-3))
    vae.fit(train, batch_size=64, epochs=40, augment="flips", verbose=0)
    models[name] = vae

# %%
# Save and load it
# ----------------
#
# The prior goes with the model. Whoever loads it must have imported the module that
# registers the class before; else there is an error that says so.

folder = Path(tempfile.mkdtemp()) / "model"
vae.save_preset(folder)
loaded = av.models.VAE.from_preset(folder)
print(type(loaded.prior).__name__, loaded.prior.degrees_of_freedom)
np.testing.assert_array_equal(loaded.encode(test)[0], vae.encode(test)[0])

# %%
# Compare
# -------
#
# What do the two models say of galaxies that they have not seen? The evidence lower
# bound counts both how well a galaxy is painted and how unusual its latents are; the
# mean squared residual, in units of the variance that is expected, should be 1.

columns = {name: vae.measure(test) for name, vae in models.items()}
for group, rows in (("single", ~is_merger), ("merger", is_merger)):
    for name, column in columns.items():
        elbo, kl, chi2 = (
            column[f"vae_{key}"][rows].mean() for key in ("elbo", "kl", "chi2")
        )
        print(f"{group} {name:12} ELBO {elbo:8.1f}  KL {kl:5.1f}  chi2 {chi2:.3f}")

# %%
# The difference, galaxy by galaxy, with the standard error of its mean:

gain = columns["Student's t"]["vae_elbo"] - columns["normal"]["vae_elbo"]
for group, rows in (("single", ~is_merger), ("merger", is_merger)):
    error = gain[rows].std() / np.sqrt(rows.sum())
    print(
        f"{group}: {gain[rows].mean():+.1f} +- {error:.1f} nats, "
        f"median {np.median(gain[rows]):+.1f}, {(gain[rows] > 0).mean():.0%} gain"
    )

# %%
# Where they lie, and what it costs: far from the origin the normal prior charges more
# and more, Student's t hardly more. Distances are those of the posterior means, in
# units of the median over single galaxies, since each model chooses its own scale.

distance, price = {}, {}
for name, vae in models.items():
    mean, _ = vae.encode(test)
    distance[name] = np.linalg.norm(mean, axis=1)
    unit = np.median(distance[name][~is_merger])
    radii = np.zeros((100, 8), "float32")
    radii[:, 0] = unit * np.linspace(0, 4, 100)
    log_prob = ops.convert_to_numpy(vae.prior.log_prob(radii))
    price[name] = log_prob[0] - log_prob
    distance[name] = distance[name] / unit

figure = Figure(figsize=(9, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
for name, color, level in (("normal", "#0072B2", -2), ("Student's t", "#D55E00", -4)):
    left.plot(np.linspace(0, 4, 100), price[name], color=color, label=name)
    marks = np.full(is_merger.sum(), level)
    left.plot(distance[name][is_merger], marks, "|", color=color)
left.set(xlabel="distance / median", ylabel="price / nats", ylim=(-6, 40))
left.set_title("Price of a latent, and where mergers are")
left.legend(loc="upper left", frameon=False)
for rows, label, color in (
    (~is_merger, "single", "#9AA5B1"),
    (is_merger, "merger", "#D55E00"),
):
    right.plot(
        distance["Student's t"][rows], gain[rows], "o", ms=3, color=color, label=label
    )
right.axhline(0, color="black", linewidth=0.8)
right.set_yscale("symlog", linthresh=20)
right.set(xlabel="distance / median (Student's t)", ylabel="gain in ELBO / nats")
right.set_title("Student's t against normal")
legend = right.legend(loc="best", frameon=False)

# %%
# Some of the mergers, and the residuals of both models in units of the noise:

some = test[is_merger][:8]
residuals = [
    (some.data - vae.reconstruct(some)["mean"]) / some.error for vae in models.values()
]
gallery = Figure(figsize=(9, 3.6), layout="constrained")
panels = [(some.data, "image", {"cmap": "gray_r"})] + [
    (residual, name, {"cmap": "RdBu_r", "vmin": -5, "vmax": 5})
    for residual, name in zip(residuals, models)
]
for axes, (images, label, style) in zip(gallery.subplots(3, len(some)), panels):
    for ax, image in zip(axes, images[..., 0]):
        ax.imshow(image, origin="lower", **style)
        ax.set(xticks=[], yticks=[])
    axes[0].set_ylabel(label)

# %%
# Both paint mergers about equally badly, having seen twenty of them. The gain is in the
# price: heavy tails give rare objects room, and the others pay a little for it, since a
# prior has only one unit of probability to give away. Which prior is better depends on
# the sample, and the ELBO of held-out galaxies tells. With fewer degrees of freedom the
# tails are heavier; with many, the prior becomes the normal one.
#
# The same two methods make any other prior. One that knows a closed form of its KL
# divergence overrides ``kl_divergence``, which spares training a random number.
