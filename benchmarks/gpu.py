# Licensed under a 3-clause BSD style license - see LICENSE
"""
Speed on an accelerator, and whether it agrees with the CPU.

On whatever device the backend sees, in less than eight minutes:

* products of matrices, as a yardstick;
* steps of training of the network of Regier et al. 2015, by ``fit`` from images
  in the memory of the host, beside a loop written by hand;
* ``galaxy_base`` and ``astrovader`` on 128 x 128 pixels, in images per second
  and as a share of the yardstick;
* samples of the flow of ``flows.py``, and Gaussian fits of 69 x 69 pixels;
* encoder, decoder, likelihood and flow from the same weights on this device and
  on the CPU, in full float32 and in the precision that the backend prefers.

Usage: KERAS_BACKEND=jax python benchmarks/gpu.py [--json FILE] [--quick]

``--quick`` tries everything on little data; its numbers mean nothing.
"""

import argparse
import contextlib
import time

import keras
import numpy as np
import training
from _timing import interleaved, report
from flows import make_data, make_flow, our_functions
from keras import ops

from astrovae.baselines import GaussianFit
from astrovae.datasets import make_galaxies
from astrovae.models import VAE

BACKEND = training.BACKEND
# matrices, products in a row, Regier steps, images trained and encoded, flow
# samples, fits, turns
FULL = {
    "matrix": 8192,
    "products": 20,
    "steps": 400,
    "networks": {"galaxy_base": (8192, 16384), "astrovader": (2048, 4096)},
    "batch_size": 256,
    "samples": (1024, 32768),
    "fits": 16384,
    "repeats": 5,
}
QUICK = {
    "matrix": 256,
    "products": 2,
    "steps": 4,
    "networks": {"galaxy_base": (16, 16), "astrovader": (4, 4)},
    "batch_size": 4,
    "samples": (64, 128),
    "fits": 64,
    "repeats": 2,
}


# ---------------------------------------------------------------------------
# The device
# ---------------------------------------------------------------------------


def accelerator():
    """Name of the accelerator that the backend computes on; None for a CPU."""
    if BACKEND == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    if BACKEND == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    details = tf.config.experimental.get_device_details(devices[0])
    return details.get("device_name", "GPU")


def set_full_precision(full):
    """Allow, or not, that float32 products are rounded to the 10 bits of TF32."""
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest" if full else None)
    elif BACKEND == "torch":
        import torch

        # what PyTorch does by itself: convolutions may, products may not
        torch.backends.cudnn.allow_tf32 = not full
        torch.backends.cuda.matmul.allow_tf32 = False
    else:
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(not full)


def compiled(function):
    """Compile a function of tensors where the backend can."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function


def wait_for(tensor):
    """Wait until a tensor is there: reads one number of it."""
    return float(ops.convert_to_numpy(ops.ravel(tensor)[0]))


# ---------------------------------------------------------------------------
# Speed
# ---------------------------------------------------------------------------


def time_products(size, number, repeats):
    """Operations per second of products of square matrices, by type."""
    rng = np.random.default_rng(1)
    # products of such matrices neither grow nor vanish
    values = rng.standard_normal((2, size, size), "float32") / np.sqrt(size)

    @compiled
    def chain(a, b):
        for _ in range(number):
            a = ops.matmul(a, b)
        return a

    functions = {}
    for dtype in ("float32", "bfloat16"):
        a, b = (ops.convert_to_tensor(value, dtype) for value in values)
        functions[dtype] = lambda a=a, b=b: wait_for(
            ops.cast(chain(a, b)[:1, :1], "float32")
        )
    times = interleaved(functions, repeats=repeats)
    operations = 2 * number * size**3
    rows = [
        (f"products, {name}", seconds, operations) for name, seconds in times.items()
    ]
    rates = {name: operations / np.median(seconds) for name, seconds in times.items()}
    return rows, rates


def count_operations(vae):
    """
    Count additions and multiplications of a galaxy's way through a network.

    Returns those of the encoder, and of encoder and decoder. Only dense layers
    and convolutions count.
    """
    total = 0.0
    layers = keras.layers

    def counting(call, from_inputs):
        def wrapper(self, inputs, *args, **kwargs):
            nonlocal total
            outputs = call(self, inputs, *args, **kwargs)
            shape = inputs.shape if from_inputs else outputs.shape
            positions = np.prod(shape[1:-1]) if len(shape) > 2 else 1
            total += 2.0 * np.prod(self.kernel.shape) * positions
            return outputs

        return wrapper

    kinds = (layers.Dense, layers.Conv2D, layers.Conv2DTranspose)
    calls = {kind: kind.__dict__.get("call") for kind in kinds}
    before = {kind: kind.call for kind in kinds}
    try:
        for kind in kinds:
            from_inputs = kind is layers.Conv2DTranspose
            kind.call = counting(before[kind], from_inputs)
        image = ops.zeros((1, *vae.image_shape))
        z = vae._encode_batch({"image": image})["mean"]
        encoder = total
        vae._decode_batch(z)
    finally:
        for kind, call in calls.items():
            if call is None:
                del kind.call
            else:
                kind.call = call
    return encoder, total


def time_networks(sizes, rate):
    """Images per second of both networks, and their share of the yardstick."""
    results = training.compare_networks(
        sizes["repeats"], sizes["networks"], sizes["batch_size"]
    )
    for name in sizes["networks"]:
        vae = VAE.from_preset(name, image_shape=training.LARGE_SHAPE, latent_dim=20)
        encoder, both = count_operations(vae)
        # the gradients of weights and of inputs cost a pass each
        for work, operations in (("train", 3 * both), ("encode", encoder)):
            speed = results[f"{work}_images_per_second_{name}"]
            results[f"{work}_gigaflop_per_image_{name}"] = operations / 1e9
            results[f"{work}_share_of_products_{name}"] = speed * operations / rate
    return results


def time_flow(flow, data, numbers, repeats):
    """Draw batches of samples of several sizes."""
    x, conditions = data
    functions = {}
    for number in numbers:
        rows = np.arange(number) % len(x)
        sample = our_functions(flow, x[rows], conditions[rows])["sample"]
        functions[f"flow samples, {number}"] = sample
    times = interleaved(functions, repeats=repeats)
    return [(name, times[name], number) for name, number in zip(times, numbers)]


def time_fits(number, repeats):
    """Fit Gaussians to simulated galaxies."""
    _, stack = make_galaxies(min(number, 2048), shape=69, snr=(50.0, 1000.0), seed=1)
    images = np.resize(stack.data, (number, *stack.image_shape))
    fit = GaussianFit(n_starts=1, batch_size=min(number, 4096))
    times = interleaved({"Gaussian fits": lambda: fit.fit(images)}, repeats=repeats)
    return [("Gaussian fits", times["Gaussian fits"], number)]


# ---------------------------------------------------------------------------
# Agreement
# ---------------------------------------------------------------------------


def results_on(device, weights, flow_weights, images, data):
    """Compute with given weights on a device (None is the one of the backend)."""
    shape = images.shape[1:]
    with contextlib.nullcontext() if device is None else keras.device(device):
        vae = VAE.from_preset(
            "galaxy_base", image_shape=shape, scale=[0.2], noise=[0.02]
        )
        vae.set_weights(weights)
        flow = make_flow(*data, epochs=0)
        flow.set_weights(flow_weights)

        @compiled
        def compute(images, x, conditions):
            batch = {"image": images}
            posterior = vae._encode_batch(batch)
            params = vae._decode_batch(posterior["mean"])
            u, log_det = flow(x, conditions)
            return {
                "latents": ops.stack([posterior["mean"], posterior["log_var"]]),
                "maps": ops.stack([params["mean"], params["log_var"]]),
                "log_like": ops.mean(vae._log_like_map(batch, params), axis=(1, 2, 3)),
                "flow": u,
                "log_det": log_det,
                "samples": flow(u, conditions, inverse=True)[0],
            }

        inputs = (images, *(array[:256] for array in data))
        results = compute(*map(ops.convert_to_tensor, inputs))
        return {name: ops.convert_to_numpy(value) for name, value in results.items()}


def compare_devices(flow, data, num_images):
    """Largest difference between the device and the CPU, relative to 1 + |value|."""
    images = training.make_images(num_images, (64, 64, 1))
    vae = VAE.from_preset("galaxy_base", image_shape=(64, 64, 1), seed=1)
    arguments = (vae.get_weights(), flow.get_weights(), images, data)
    # for PyTorch, "cpu:0" is another device than "cpu": its weights would be copies
    cpu = "cpu" if BACKEND == "torch" else "cpu:0"
    results = {}
    for name, full in (("float32", True), ("default", False)):
        set_full_precision(full)
        ours, theirs = results_on(None, *arguments), results_on(cpu, *arguments)
        results[f"difference_{name}"] = max(
            float(np.max(np.abs(ours[key] - theirs[key]) / (1 + np.abs(theirs[key]))))
            for key in theirs
        )
    results["agrees_to_1e-4"] = results["difference_float32"] <= 1e-4
    return results


def main():
    """Measure everything, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    parser.add_argument("--quick", action="store_true", help="try it on little data")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    repeats, name = sizes["repeats"], accelerator()
    if name is None:
        print("There is no accelerator: these are numbers of a CPU.")
        if not options.quick:
            parser.error("on a CPU, this takes hours; give --quick to try it.")
    start = time.perf_counter()

    def done(what):
        print(f"{time.perf_counter() - start:6.0f} s  {what}", flush=True)

    results = {"backend": BACKEND, "device": name or "CPU", "quick": options.quick}
    rows, rates = time_products(sizes["matrix"], sizes["products"], repeats)
    results |= {f"products_teraflops_{key}": r / 1e12 for key, r in rates.items()}
    done("products of matrices")
    for batch_size in (100, 1000):
        steps = max(sizes["steps"] * 100 // batch_size, 2)
        # TensorFlow and JAX, each of which takes all memory, cannot share a device
        with_loop = name is None or BACKEND != "tensorflow"
        loops = training.compare_loops(steps, repeats, batch_size, with_loop)
        results |= {f"regier_{batch_size}_{key}": v for key, v in loops.items()}
        done(f"Regier network, batches of {batch_size}")
    results |= time_networks(sizes, rates["float32"])
    done("galaxy_base and astrovader")
    keras.utils.set_random_seed(1)
    data = make_data(4096, np.random.default_rng(1))
    flow = make_flow(*data, epochs=1)
    rows += time_flow(flow, data, sizes["samples"], repeats)
    done("flow")
    rows += time_fits(sizes["fits"], repeats)
    done("Gaussian fits")
    for row, seconds, items in rows[2:]:
        key = row.lower().replace(", ", "_").replace(" ", "_")
        results[f"{key}_per_second"] = float(items / np.median(seconds))
    if name is not None:
        results |= compare_devices(flow, data, 64)
        done("agreement with the CPU")
    elif options.quick:
        # the same device twice: this tries the code, and shows nothing
        compare_devices(flow, data, 4)
        done("agreement of the CPU with itself, which is no result")
    results["seconds"] = time.perf_counter() - start
    report(rows, results, options.json)
    if name is None:
        print("There is no accelerator: this has only run on a CPU.")


if __name__ == "__main__":
    main()
