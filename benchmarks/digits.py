# Licensed under a 3-clause BSD style license - see LICENSE
"""
A check of mixture training on digits that ship with scikit-learn.

1,797 handwritten digits of 8 x 8 pixels are grouped into ten clusters without their
labels: by a model with a mixture prior, trained as s3VDC does; by a Gaussian mixture
of their principal components; and by k-means of pixels. How many digits lie in the
cluster that stands for them, if each cluster stands for another digit, as is best
("hungarian accuracy")? Each seed changes weights, order of batches and starts::

    python benchmarks/digits.py --seeds 20 --json digits.json
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from astrovae.diagnostics import cluster_scores, cluster_stability
from astrovae.images import CutoutStack
from astrovae.layers import MixturePrior
from astrovae.models import (
    VAE,
    DenseDecoder,
    DenseEncoder,
    GaussianLikelihood,
    mixture_training,
)

NUM_CLASSES = 10
LATENT_DIM = 10
# of the pixels, which run from 0 to 1: as in a sum of squares
NOISE = 0.15


def train(stack, seed, epochs):
    """Train a small model, and give the cluster of each digit."""
    keras.utils.set_random_seed(seed)
    prior = MixturePrior(
        NUM_CLASSES, LATENT_DIM, covariance="full", concentration=5.0, seed=seed
    )
    vae = VAE(
        stack.image_shape,
        latent_dim=LATENT_DIM,
        encoder=DenseEncoder((256, 256)),
        decoder=DenseDecoder(stack.image_shape, (256, 256)),
        prior=prior,
        likelihood=GaussianLikelihood(learn_variance=False, sigma_floor=NOISE),
        scale=[1.0],
        noise=[1.0],
        seed=seed,
    )
    steps = epochs * -(-len(stack) // 128)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    vae.compile(keras.optimizers.Adam(rate))
    recipe = mixture_training(stack, epochs, weak_beta=0.3, seed=seed)
    vae.fit(stack, batch_size=128, epochs=epochs, verbose=0, callbacks=recipe)
    return vae.responsibilities(stack).argmax(axis=1)


def baselines(pixels, seed):
    """A mixture of principal components, and k-means."""
    components = PCA(LATENT_DIM, random_state=seed).fit_transform(pixels)
    mixture = GaussianMixture(
        NUM_CLASSES, n_init=5, init_params="k-means++", random_state=seed
    )
    kmeans = KMeans(NUM_CLASSES, n_init=10, random_state=seed)
    return {
        "gmm_pca": mixture.fit_predict(components),
        "kmeans": kmeans.fit_predict(pixels),
    }


def main():
    """Run all seeds, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    options = parser.parse_args()
    digits = load_digits()
    pixels, classes = digits.data / 16, digits.target
    stack = CutoutStack(digits.images.astype(np.float32) / 16)
    found = {"ours": [], "gmm_pca": [], "kmeans": []}
    start = time.perf_counter()
    for seed in range(options.seeds):
        labels = {"ours": train(stack, seed, options.epochs), **baselines(pixels, seed)}
        for name, values in labels.items():
            found[name].append(values)
    result = {
        "backend": keras.config.backend(),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "seconds": time.perf_counter() - start,
    }
    print(f"{'':10}{'hungarian':>18}{'nmi':>18}{'ari of seeds':>16}")
    for name, runs in found.items():
        scores = [cluster_scores(run, classes, n_bootstrap=0) for run in runs]
        cells = []
        for key in ("hungarian", "nmi"):
            values = [score[key] for score in scores]
            result[f"{name}_{key}"] = float(np.mean(values))
            result[f"{name}_{key}_sd"] = float(
                np.std(values, ddof=min(1, len(runs) - 1))
            )
            cells.append(f"{np.mean(values):.3f} ± {result[f'{name}_{key}_sd']:.3f}")
        stability = cluster_stability(runs)["ari"] if len(runs) > 1 else np.nan
        result[f"{name}_seed_ari"] = float(stability)
        print(f"{name:10}{cells[0]:>18}{cells[1]:>18}{stability:16.3f}")
    if options.json is not None:
        text = json.dumps(result, indent=2) + "\n"
        Path(options.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
