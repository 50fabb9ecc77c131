"""A training that is killed and resumed ends as one that is not."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

# Run as: script.py FOLDER [STEP]. With a step, the training dies there;
# without one, it is resumed, and followed by one that was never stopped.
SCRIPT = """
import os, signal, sys
from pathlib import Path

import keras
import numpy as np

from astrovae import models
from astrovae.datasets import make_galaxies
from astrovae.layers import MixturePrior

folder = Path(sys.argv[1])
_, stack = make_galaxies(24, shape=(8, 8), bands=("g", "r"), seed=1)


class Kill(keras.callbacks.Callback):
    step = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.step += 1
        if self.step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)


def train(callbacks, epochs=5):
    keras.utils.set_random_seed(7)
    vae = models.VAE(
        stack.image_shape,
        latent_dim=2,
        encoder=models.DenseEncoder((6,)),
        decoder=models.DenseDecoder((8, 8, 4), (6,)),
        prior=MixturePrior(2, 2, kl_method="monte_carlo", seed=3),
        side_inputs=("bands",),
        band_dropout=0.3,
        seed=5,
    )
    vae.compile(keras.optimizers.Adam(1e-2))
    callbacks += [
        models.KLWarmup(steps=13),
        models.SigmaWarmup(epochs=3),
        models.FreeBits(0.2, epochs=4),
        models.TerminateOnDivergence(),
        models.MixtureInitialization(
            stack, epochs=2, num_restarts=2, normal_before=True
        ),
        models.MixtureUpkeep(stack, start=3, every=1),
        models.CollapseMonitor(stack),
    ]
    history = vae.fit(
        stack,
        batch_size=8,
        epochs=epochs,
        augment="flips",
        verbose=0,
        callbacks=callbacks,
    )
    return vae, history


backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq="epoch")
callbacks = [backup, Kill()] if len(sys.argv) > 2 else [backup]
resumed, history = train(callbacks)
whole, _ = train([])
names = [weight.path for weight in whole.weights + whole.optimizer.variables]
for name, vae in (("resumed", resumed), ("whole", whole)):
    variables = vae.weights + vae.optimizer.variables
    arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
    for layer in (vae.sampling, vae.hide_bands):
        arrays.append(keras.ops.convert_to_numpy(layer.seed_generator.state))
    np.savez(folder / name, *arrays)
(folder / "epochs").write_text(str(len(history.epoch)))
"""


def run(*arguments):
    """Run the script, and return how it ended."""
    # one thread: the order of sums must not depend on the load of the machine
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        env=environment,
    )
    return result.returncode, result.stderr


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_bits(tmp_path):
    """
    Weights, optimizer and random state are equal after SIGKILL at some step.

    With schedules by steps and epochs, free bits, random flips, hidden bands, a
    prior that draws numbers, and a mixture that is placed and mended on the way.
    """
    # 3 steps an epoch; after the first epoch, before the end of the fifth
    step = int(np.random.default_rng().integers(4, 16))
    code, _ = run(tmp_path, step)
    assert code == -signal.SIGKILL
    assert (tmp_path / "backup").exists()
    code, errors = run(tmp_path)
    assert code == 0, errors
    # it did not begin again
    assert (tmp_path / "epochs").read_text() == str(5 - (step - 1) // 3)
    with (
        np.load(tmp_path / "resumed.npz") as one,
        np.load(tmp_path / "whole.npz") as two,
    ):
        assert len(one.files) == len(two.files)
        for name in one.files:
            assert np.array_equal(one[name], two[name]), (name, step)
