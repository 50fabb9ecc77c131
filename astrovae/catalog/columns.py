# Licensed under a 3-clause BSD style license - see LICENSE
"""
The one registry of the columns that astrovae writes.

Each column gets its type, unit, UCD and description here, and nowhere
else; the table of columns in the documentation is made from it.
"""

from dataclasses import dataclass

__all__ = ["BASELINES", "COLUMNS", "PREDICTIONS", "ColumnSpec"]

#: What the columns of baselines begin with.
BASELINES = ("gauss", "sersic", "pca")


@dataclass(frozen=True)
class ColumnSpec:
    """
    What a column holds.

    Parameters
    ----------
    dtype : str
        NumPy type of an element.
    shape : str
        Shape of a row: empty for a number, otherwise the names of its axes.
        ``n_bands`` is dropped for a single band.
    unit : str
        Unit; ``image`` stands for the unit of the pixels, and powers of it.
    ucd : str
        Unified Content Descriptor (IVOA UCD1+).
    description : str
        A sentence for readers of the catalogue.
    """

    dtype: str
    shape: str
    unit: str
    ucd: str
    description: str


def _gauss_columns():
    """Columns of the Gaussian fit."""
    shape = "six-parameter Gaussian"
    parameters = {
        "sigma_major": (
            "pix",
            "phys.angSize.smajAxis",
            f"Standard deviation of the {shape} along its major axis.",
        ),
        "sigma_minor": (
            "pix",
            "phys.angSize.sminAxis",
            f"Standard deviation of the {shape} along its minor axis.",
        ),
    }
    names = shape, "seven-parameter Gaussian fit", "Gaussian fit"
    return _fit_columns("gauss", parameters, *names)


def _sersic_columns():
    """Columns of the Sersic fit."""
    shape = "Sersic profile"
    parameters = {
        "r_eff": (
            "pix",
            "phys.angSize.smajAxis",
            f"Half-light radius of the {shape} along its major axis, before blurring.",
        ),
        "n": ("", "src.morph.param", f"Index of the {shape}."),
        "axis_ratio": (
            "",
            "phys.size.axisRatio",
            f"Minor over major axis of the {shape}, before blurring.",
        ),
    }
    names = shape, "Sersic fit with one", "Sersic fit"
    return _fit_columns("sersic", parameters, *names)


def _fit_columns(prefix, parameters, shape, with_constant, fit):
    """Columns of a fitted profile; each parameter comes with its error."""
    where = "in pixels of the cutout, 0 at the centre of the first"
    flux = ("image", "phot.flux", f"Flux under the {shape}.")
    parameters = {
        "flux": flux,
        "x": ("pix", "pos.cartesian.x", f"Centre of the {shape} along x, {where}."),
        "y": ("pix", "pos.cartesian.y", f"Centre of the {shape} along y, {where}."),
        **parameters,
        "theta": (
            "deg",
            "pos.posAng",
            f"Angle of the major axis of the {shape}, from +x towards +y.",
        ),
    }
    columns = {}
    for key, (unit, ucd, text) in parameters.items():
        name, axes = f"{prefix}_{key}", "n_bands" if key == "flux" else ""
        columns[name] = ColumnSpec("float64", axes, unit, ucd, text)
        columns[f"{name}_err"] = ColumnSpec(
            "float64", axes, unit, f"stat.error;{ucd}", f"1-sigma error of {name}."
        )
    columns[f"{prefix}_background"] = ColumnSpec(
        "float64",
        "n_bands",
        "image",
        "instr.background",
        f"Constant background of the {with_constant}, per pixel.",
    )
    for suffix, model in (("", shape), ("_background", f"{shape} plus constant")):
        columns |= _residual_columns(prefix, suffix, model, "its")
    columns[f"{prefix}_flags"] = ColumnSpec(
        "int32", "", "", "meta.code", f"Flag bits of the {fit}."
    )
    return columns


def _residual_columns(prefix, suffix, model, whose):
    """Squared error and likelihood of a model."""
    return {
        f"{prefix}_mse{suffix}": ColumnSpec(
            "float64",
            "n_bands",
            "image2",
            "stat.fit.residual",
            f"Mean squared residual of the {model} over valid pixels.",
        ),
        f"{prefix}_log_like{suffix}": ColumnSpec(
            "float64",
            "n_bands",
            "",
            "stat.likelihood",
            f"Log-likelihood of the {model} at {whose} best sigma: an upper bound "
            "for every constant sigma.",
        ),
    }


def _pose_columns():
    """Columns of the pose; each measurement comes with its error."""
    where = "in pixels of the cutout, 0 at the centre of the first"
    parameters = {
        "pose_x": ("pix", "pos.cartesian.x", f"Centre of the galaxy along x, {where}."),
        "pose_y": ("pix", "pos.cartesian.y", f"Centre of the galaxy along y, {where}."),
        "pose_angle": (
            "deg",
            "pos.posAng",
            "Angle of the major axis towards its brighter side, from +x towards +y.",
        ),
        "pose_axis_ratio": (
            "",
            "phys.size.axisRatio",
            "Minor over major axis of the matched Gaussian; the PSF is not taken off.",
        ),
        "pose_size": (
            "pix",
            "phys.angSize",
            "Geometric mean of the standard deviations of the matched Gaussian.",
        ),
    }
    columns = {}
    for name, (unit, ucd, text) in parameters.items():
        columns[name] = ColumnSpec("float64", "", unit, ucd, text)
        columns[f"{name}_err"] = ColumnSpec(
            "float64", "", unit, f"stat.error;{ucd}", f"1-sigma error of {name}."
        )
    columns["pose_flip"] = ColumnSpec(
        "float64",
        "",
        "",
        "src.morph.param",
        "-1 if the brighter side is clockwise of the major axis, else +1.",
    )
    columns["pose_flags"] = ColumnSpec(
        "int32", "", "", "meta.code", "Flag bits of the cutout and its pose."
    )
    return columns


def _cluster_columns():
    """Columns of the components of a mixture prior."""
    return {
        "cluster_label": ColumnSpec(
            "int32",
            "",
            "",
            "meta.code.class",
            "Number of the most probable cluster; 0 is the heaviest component.",
        ),
        "cluster_prob": ColumnSpec(
            "float32",
            "n_clusters",
            "",
            "stat.probability",
            "Probability of each cluster.",
        ),
        "cluster_entropy": ColumnSpec(
            "float64",
            "",
            "",
            "stat.value",
            "Entropy of the probabilities of the clusters, in nats.",
        ),
        "cluster_distance": ColumnSpec(
            "float64",
            "",
            "",
            "stat.value",
            "Mahalanobis distance of the latent mean from the component of the label.",
        ),
        "cluster_flags": ColumnSpec(
            "int32", "", "", "meta.code", "Flag bits of the cutout that was assigned."
        ),
    }


def _match_columns():
    """Columns of a cross-match."""
    return {
        "separation": ColumnSpec(
            "float64",
            "",
            "arcsec",
            "pos.angDistance",
            "Angle to the row of the other catalogue that matches.",
        ),
        "match_index": ColumnSpec(
            "int64",
            "",
            "",
            "meta.record",
            "Number of the row of the other catalogue that matches, from 0.",
        ),
        "match_count": ColumnSpec(
            "int32",
            "",
            "",
            "meta.number",
            "How many rows of the other catalogue match, or lie within the radius.",
        ),
        "match_flags": ColumnSpec(
            "int32", "", "", "meta.code", "Flag bits of the cross-match."
        ),
    }


def _win_columns():
    """Columns of which galaxies a model describes better than a baseline."""
    columns = {}
    for prefix, models in (
        ("gauss", (("", "Gaussian"), ("_background", "Gaussian plus constant"))),
        ("sersic", (("", "Sersic fit"), ("_background", "Sersic fit plus constant"))),
        ("pca", (("", "projection onto principal components"),)),
    ):
        for suffix, model in models:
            columns[f"vae_beats_{prefix}_mse{suffix}"] = ColumnSpec(
                "bool",
                "n_bands",
                "",
                "meta.code",
                f"Whether vae_mse is below that of the least-squares {model}.",
            )
            columns[f"vae_beats_{prefix}_like{suffix}"] = ColumnSpec(
                "bool",
                "n_bands",
                "",
                "meta.code",
                f"Whether vae_log_like exceeds the likelihood of the {model} at its "
                "best sigma, and so at every sigma.",
            )
    return columns


#: Every column that astrovae writes, by name (without the optional prefix).
COLUMNS = {
    "latent_mean": ColumnSpec(
        "float32",
        "latent_dim",
        "",
        "stat.value;stat.mean",
        "Posterior means of the latent variables.",
    ),
    "latent_sigma": ColumnSpec(
        "float32",
        "latent_dim",
        "",
        "stat.error",
        "Posterior standard deviations of the latent variables.",
    ),
    "latent_flags": ColumnSpec(
        "int32", "", "", "meta.code", "Flag bits of the cutout that was encoded."
    ),
    "vae_elbo": ColumnSpec(
        "float64",
        "",
        "",
        "stat.likelihood",
        "Evidence lower bound of the galaxy, in nats, with beta = 1.",
    ),
    "vae_kl": ColumnSpec(
        "float64",
        "",
        "",
        "stat.value",
        "Divergence of the posterior from the prior, in nats.",
    ),
    "vae_mse": ColumnSpec(
        "float64",
        "n_bands",
        "image2",
        "stat.fit.residual",
        "Mean squared residual of the reconstruction over valid pixels.",
    ),
    "vae_chi2": ColumnSpec(
        "float64",
        "n_bands",
        "",
        "stat.fit.chi2",
        "Mean over valid pixels of squared residual over predicted variance.",
    ),
    "vae_log_like": ColumnSpec(
        "float64",
        "n_bands",
        "",
        "stat.likelihood",
        "Log-likelihood of the pixels at the posterior mean.",
    ),
    "vae_log_evidence": ColumnSpec(
        "float64",
        "",
        "",
        "stat.likelihood",
        "Logarithm of the evidence of the galaxy, in nats, by importance sampling.",
    ),
    "vae_outlier_percentile": ColumnSpec(
        "float64",
        "",
        "",
        "stat.rank",
        "How unusual the galaxy is at its signal-to-noise, in percent of the galaxies "
        "compared with; 100 is most unusual.",
    ),
    **_cluster_columns(),
    **_match_columns(),
    **_pose_columns(),
    **_gauss_columns(),
    **_sersic_columns(),
    **_residual_columns("pca", "", "principal components", "their"),
    **_win_columns(),
}

#: Columns named after a property, ``<property>_pred`` and ``<property>_pred_sigma``,
#: by what follows the name. Their unit is that of the property.
PREDICTIONS = {
    "pred": ColumnSpec(
        "float64", "", "", "stat.fit", "{property} as predicted from the latents."
    ),
    "pred_sigma": ColumnSpec(
        "float64",
        "",
        "",
        "stat.error;stat.fit",
        "1-sigma error of the predicted {property}: 68 % of galaxies lie within.",
    ),
}
