"""Anything that encodes galaxies gives columns."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from astrovae.baselines import EigenGalaxies
from astrovae.catalog import add_latents, annotate
from astrovae.datasets import make_galaxies
from astrovae.exceptions import PreprocessingError


@pytest.fixture(scope="module")
def galaxies():
    """More galaxies than encoders are given at a time."""
    return make_galaxies(1100, shape=(8, 8), seed=2)


def both(images):
    """Mean and spread of the pixels."""
    mean = images.mean(axis=(1, 2))
    return mean, np.log(images.var(axis=(1, 2)) + 1e-6)


def check(table, stack, *, sigma=True):
    """Compare columns with what is known of them."""
    mean, log_var = both(stack.batch(np.arange(len(stack)))["image"])
    assert_allclose(table["latent_mean"], mean, rtol=1e-5)
    if sigma:
        assert_allclose(table["latent_sigma"], np.exp(log_var / 2), rtol=1e-5)
    else:
        assert table["latent_sigma"].mask.all()


class Predictor:
    """As of scikit-learn."""

    def predict(self, images):
        return both(images)[0][:, 0]


@pytest.mark.parametrize(
    ("model", "sigma"),
    [
        (both, True),
        (lambda images: (*both(images), "a sample"), True),
        (lambda images: list(both(images)), True),
        (lambda images: dict(zip(("mean", "log_var"), both(images))), True),
        (lambda images: {"mean": both(images)[0]}, False),
        (lambda images: both(images)[0], False),
        (lambda images: (both(images)[0], None), False),
        (Predictor(), False),
    ],
)
def test_functions_of_images(model, sigma, galaxies):
    """Pairs, triples, dicts, lone arrays; many galaxies and none."""
    table, stack = galaxies
    check(add_latents(table, model, stack), stack, sigma=sigma)
    nothing = add_latents(table[:0], model, stack[:0])
    assert nothing["latent_mean"].shape == (0, 1)


def test_keras_encoders(galaxies, capsys):
    """A model of one's own, without a word of it in this package."""
    import keras

    table, stack = galaxies
    inputs = keras.Input(stack.image_shape)
    mean = keras.ops.mean(inputs, axis=(1, 2))
    log_var = keras.ops.log(keras.ops.var(inputs, axis=(1, 2)) + 1e-6)
    pair = keras.Model(inputs, [mean, log_var], name="my_encoder")
    result = add_latents(table, pair, stack)
    check(result, stack)
    record = result.meta["astrovae"]["default"]["latents"]
    assert record["name"] == "my_encoder"
    check(add_latents(table, keras.Model(inputs, mean), stack), stack, sigma=False)
    assert add_latents(table[:0], pair, stack[:0])["latent_mean"].shape == (0, 1)
    assert capsys.readouterr().out == ""


def test_eigengalaxies_and_prefixes(galaxies):
    """Models of other kinds stand side by side."""
    table, stack = galaxies
    table, stack = table[:50], stack[:50]
    eigen = EigenGalaxies(3).fit(stack)
    result = annotate(table, eigen, stack, what="latents", prefix="pca_")
    result = add_latents(result, both, stack, prefix="mine_")
    mean, log_var = eigen.encode(stack)
    assert_allclose(result["pca_latent_mean"], mean, rtol=1e-5)
    assert_allclose(result["pca_latent_sigma"], np.exp(log_var / 2), rtol=1e-5)
    assert result["mine_latent_mean"].shape == (50, 1)
    meta = result.meta["astrovae"]
    assert meta["pca_"]["latents"]["class"] == "EigenGalaxies"
    assert meta["mine_"]["latents"]["function"] == "both"


def test_what_is_no_encoder(galaxies):
    """Errors say what came and what was expected."""
    table, stack = galaxies
    with pytest.raises(TypeError, match=r"encode\(stack\) or predict\(images\).*dict"):
        add_latents(table, {}, stack)
    with pytest.raises(ValueError, match="encoded 3 galaxies of 1024"):
        add_latents(table, lambda images: np.zeros((3, 2)), stack)
    with pytest.raises(ValueError, match=r"the shape \(1024, 8, 8, 1\)"):
        add_latents(table, lambda images: images, stack)
    with pytest.raises(ValueError, match="one variance for each latent"):
        add_latents(
            table, lambda images: (both(images)[0], np.zeros((len(images), 2))), stack
        )
    with pytest.raises(ValueError, match="a dict without 'mean'"):
        add_latents(table, lambda images: {"z": 1}, stack)

    class Short:
        def encode(self, stack):
            return np.zeros((3, 2)), None

    with pytest.raises(ValueError, match="encoded 3 galaxies of 1100"):
        add_latents(table, Short(), stack)


def test_another_preparation_is_refused(galaxies):
    """By every function, also for models that do not look."""

    class Model:
        preprocessing = None

        def encode(self, stack):
            return np.zeros((len(stack), 2)), None

    table, stack = galaxies
    model = Model()
    model.preprocessing = {**stack.preprocessing, "bands": ["z"]}
    with pytest.raises(PreprocessingError, match="bands"):
        add_latents(table, model, stack)
    # an attribute of this name need not be a record
    model.preprocessing = "a layer"
    result = annotate(table, model, stack, what=["latents"])
    assert "preprocessing" not in result.meta["astrovae"]["default"]["latents"]


def test_ids_in_any_type(galaxies):
    """A catalogue that was read as text is the same one; another order is not."""
    table, stack = galaxies
    big = 1237648720693755918 + np.arange(len(stack))
    stack = stack.replace(ids=big, meta={"id_column": "objid"})
    table = table.copy()
    for ids in (big, big.astype(np.uint64), big.astype(str), big.astype(object)):
        table["objid"] = ids
        add_latents(table, both, stack)
        table["objid"] = ids[::-1]
        with pytest.raises(ValueError, match=f"row 0 .* {big[-1]}, the stack {big[0]}"):
            add_latents(table, both, stack)
    table["objid"] = np.ma.array(big, mask=False)
    table["objid"][4] = 0
    table["objid"].mask[4] = True
    with_masked = add_latents(table, both, stack)
    assert_array_equal(with_masked["objid"].mask, table["objid"].mask)
