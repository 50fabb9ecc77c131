# Licensed under a 3-clause BSD style license - see LICENSE
"""Models of observed galaxies from those of aligned ones."""

from astrovae._validation import check_preprocessing

__all__ = ["posed_model"]


def posed_model(model, like, likelihood):
    """Put the networks of a model before observed galaxies; see `VAE.with_pose`."""
    likelihood = likelihood or model.likelihood
    _check_model(model, likelihood)
    _check_galaxies(model, like)
    config = model.get_config() | {
        "image_shape": like.image_shape,
        "likelihood": likelihood,
        "pose": True,
        "canvas_shape": model.image_shape[:2],
        "preprocessing": like.preprocessing,
        "latent_temperature": None,
        "imputation_factor": None,
    }
    posed = type(model).from_config(config)
    posed.set_weights(model.get_weights())
    posed._variance_factor.assign(1.0)
    return posed


def _check_model(model, likelihood):
    """Refuse models that cannot get a pose, and likelihoods that read other maps."""
    if model.pose:
        msg = "this model has pose=True already: it is one of observed galaxies."
        raise ValueError(msg)
    if model.canvas_shape != model.image_shape[:2]:
        msg = (
            f"this model paints {model.canvas_shape} pixels behind a PSF for images of "
            f"{model.image_shape[:2]}; a pose needs one frame for both. Make it with "
            "canvas_shape=None, for aligned galaxies that are larger."
        )
        raise ValueError(msg)
    if not model.adapted:
        msg = "this model has met no galaxies yet: call fit or adapt, then with_pose."
        raise ValueError(msg)
    names = ("num_parameters", "transform")
    ours, theirs = (
        {name: getattr(one, name, None) for name in names}
        for one in (model.likelihood, likelihood)
    )
    if ours != theirs:
        msg = (
            "the likelihood would take the maps of the decoder for something else: in "
            f"training it had {ours}, now {theirs}. Make them equal."
        )
        raise ValueError(msg)


def _check_galaxies(model, like):
    """Refuse galaxies that are not those that were aligned."""
    if not hasattr(like, "pose") or not hasattr(like, "preprocessing"):
        msg = f"with_pose needs a CutoutStack, got {type(like).__name__}."
        raise TypeError(msg)
    if like.pose is None:
        msg = "the galaxies have no pose: call stack = measure_pose(stack) first."
        raise ValueError(msg)
    if like.image_shape[2] != model.image_shape[2]:
        msg = (
            f"the model is of {model.image_shape[2]} bands, and the galaxies have "
            f"{like.image_shape[2]}."
        )
        raise ValueError(msg)
    expected, found = model.preprocessing, dict(like.preprocessing)
    if expected is None:
        return
    found["shape"] = expected["shape"]
    last = expected["steps"][-1:]
    if last and last[0]["name"] == "align":
        found["steps"] = [*found["steps"], *last]
    check_preprocessing(expected, found)
