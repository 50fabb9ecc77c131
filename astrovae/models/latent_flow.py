# Licensed under a 3-clause BSD style license - see LICENSE
"""Galaxies to order: from their properties to latents, and to images."""

import keras
import numpy as np
from keras import ops

from astrovae._batches import BatchDataset, EpochCallback, RowFunction
from astrovae._sources import Arrays
from astrovae._validation import check_positive_int
from astrovae.layers import MaskedAutoregressiveFlow
from astrovae.models._base import PresetModel
from astrovae.models._conditions import Conditions
from astrovae.models._draws import normal_draws
from astrovae.models._latent_samples import posterior_moments, scaled_noise
from astrovae.models._paint import paint_galaxies, warn_of_rows

__all__ = ["LatentFlow"]

_LEARNING_RATE = 1e-3
_LARGEST_GRADIENT = 1.0


@keras.saving.register_keras_serializable("astrovae")
class LatentFlow(PresetModel):
    """
    Galaxies of given properties: a conditional density of the latents of a `VAE`.

    Ask for size, shape and brightness by the columns of a table, and get images:
    a flow draws latents, given the properties, and the decoder paints them. All
    that the properties do not settle varies as it does among real galaxies.

    Parameters
    ----------
    num_blocks : int, optional
        Number of blocks of the flow.
    hidden_units : tuple of int, optional
        Widths of the hidden layers of each.
    activation : str, optional
        Activation of the hidden layers.
    transform : {"affine", "spline"}, optional
        The map of each latent in a block.
    permutations : {"reverse", "random"} or sequence of sequence, optional
        The order of the latents in each block, as for
        `~astrovae.layers.MaskedAutoregressiveFlow`.
    seed : int, optional
        Seed of the order of batches and the draws of training, and of random
        permutations.
    **kwargs
        Arguments of `keras.Model`.

    Attributes
    ----------
    vae : `VAE` or None
        The model of the images; `fit` sets it. It is not trained further.
    conditions : tuple of `Condition`
        What galaxies are asked for.

    Notes
    -----
    The flow is fitted to *samples* of the posteriors of the latents, drawn anew in
    each epoch: their means scatter too little, and the decoder would paint
    galaxies that are too smooth and too round.

    Galaxies unlike all those of the training get the flag ``OUT_OF_SUPPORT``: any
    property out of the range of the training, without the last 0.1 % at each end
    and widened by a tenth, or a combination of them further out, by its
    Mahalanobis distance, than 99.9 % of the training. What is painted there is a
    guess.

    References
    ----------
    Lanusse et al. 2021, MNRAS 504, 5543 (arXiv:2008.03833); Papamakarios et al.
    2017, NeurIPS (arXiv:1705.07057).

    Examples
    --------
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.models import VAE, Condition, LatentFlow
    >>> table, stack = make_galaxies(200, shape=(16, 16), seed=1)
    >>> vae = VAE(stack.image_shape, latent_dim=2)
    >>> vae.compile(optimizer="adam")
    >>> history = vae.fit(stack, epochs=1, verbose=0)
    >>> flow = LatentFlow(num_blocks=2, hidden_units=(16, 16), seed=1)
    >>> conditions = [Condition("flux", transform="log")]
    >>> history = flow.fit(
    ...     table, vae, stack, conditions=conditions, epochs=1, verbose=0
    ... )
    >>> flow.sample(table[:3], seed=1).image_shape
    (16, 16, 1)
    """

    def __init__(
        self,
        num_blocks=5,
        hidden_units=(256, 256),
        activation="relu",
        transform="affine",
        permutations="reverse",
        seed=None,
        **kwargs,
    ):
        super().__init__(seed, **kwargs)
        self.num_blocks = check_positive_int("num_blocks", num_blocks)
        self.hidden_units = tuple(hidden_units)
        self.activation = activation
        self.transform = transform
        self.permutations = permutations
        self.density = None
        # the model of the images is used, not trained: Keras does not see it
        self._plain.vae = None
        self._plain.conditions = None
        self._plain.own_optimizer = False

    @property
    def vae(self):
        """The model of the images, or None."""
        return self._plain.vae

    @property
    def conditions(self):
        """What galaxies are asked for."""
        known = self._plain.conditions
        return () if known is None else known.conditions

    @property
    def latent_dim(self):
        """The number of latents, or None before `fit`."""
        return None if self.vae is None else self.vae.latent_dim

    @property
    def image_shape(self):
        """The shape ``(ny, nx, n_bands)`` of galaxies as they are painted, or None."""
        if self.vae is None:
            return None
        frame = self.vae.to_observed.target_shape
        return (*frame, self.vae.image_shape[2])

    @property
    def preprocessing(self):
        """How the training images were prepared, or None."""
        return None if self.vae is None else self.vae.preprocessing

    def _attach(self, vae, conditions):
        """Make the flow of this model's latents, given these conditions."""
        self._plain.vae, self._plain.conditions = vae, conditions
        self.density = MaskedAutoregressiveFlow(
            vae.latent_dim,
            conditions.dim,
            num_blocks=self.num_blocks,
            hidden_units=self.hidden_units,
            activation=self.activation,
            transform=self.transform,
            permutations=self.permutations,
            seed=self.seed,
        )
        # all weights exist
        self.built = True

    # ------------------------------------------------------------------
    # tensors
    # ------------------------------------------------------------------

    def call(self, inputs, training=False):
        """
        Give the log-density of latents, given conditions.

        Parameters
        ----------
        inputs : dict of tensor
            ``z`` ``(n, latent_dim)`` and ``conditions`` ``(n, condition_dim)``,
            standardised.
        training : bool, optional
            Not used.

        Returns
        -------
        log_prob : dict of tensor
            ``log_prob``, of shape (n,).
        """
        return {"log_prob": self.density.log_prob(inputs["z"], inputs["conditions"])}

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Give minus the mean of the log-density."""
        return -ops.mean(y_pred["log_prob"])

    # ------------------------------------------------------------------
    # training
    # ------------------------------------------------------------------

    def fit(
        self,
        table,
        vae=None,
        stack=None,
        *,
        conditions=None,
        epochs=50,
        batch_size=256,
        validation_data=None,
        drop_rate=0.0,
        callbacks=None,
        verbose="auto",
        **kwargs,
    ):
        """
        Fit the density of the latents of galaxies, given their properties.

        Parameters
        ----------
        table : `~astropy.table.Table`
            The properties, a row for each galaxy of the stack.
        vae : `VAE`, optional
            The trained model of the images. Train it first: the flow knows its
            latents as they are now. May be left out to train further.
        stack : `~astrovae.images.CutoutStack`, array or dict
            The galaxies, as the model takes them; or latents, of shape (n,
            latent_dim), whose properties were measured on what the model paints.
        conditions : sequence of str or `Condition`, optional
            Which columns galaxies can be asked for by, and how the flow sees
            them; a name alone is seen as it is. May be left out to train further.
        epochs : int, optional
            Passes over the galaxies.
        batch_size : int, optional
            Galaxies per step.
        validation_data : tuple, optional
            ``(table, stack)`` of galaxies that are not trained on.
        drop_rate : float, optional
            The share of the values of each condition that are hidden in each
            pass, so that galaxies can later be asked for by some of the
            conditions only. Values that are missing in the table are learned as
            such in any case.
        callbacks, verbose, **kwargs
            As for `keras.Model.fit`. A flow that was not compiled takes Adam with
            a learning rate that falls from 0.001 to zero.

        Returns
        -------
        history : `keras.callbacks.History`
            Minus the mean log-density, by epoch.

        Raises
        ------
        ValueError
            If the table and the stack have not the same rows, there is nothing to
            train on, or a column is missing, constant, or has no or another unit.

        Warns
        -----
        ~astrovae.exceptions.FlaggedRowsWarning
            If galaxies are left out: those without a valid pixel or any property.
        """
        if not 0 <= drop_rate < 1:
            msg = f"drop_rate must be between 0 and 1, got {drop_rate!r}."
            raise ValueError(msg)
        if self.built and (conditions is not None or vae not in (None, self.vae)):
            msg = (
                "this flow is fitted already: leave out vae and conditions to train it "
                "further, or make another LatentFlow."
            )
            raise ValueError(msg)
        if not self.built and (vae is None or conditions is None):
            msg = "a flow that is not fitted yet needs vae=... and conditions=[...]."
            raise ValueError(msg)
        posterior = posterior_moments(vae or self.vae, table, stack)
        measured = posterior.pop("measured")
        if not self.built:
            if not measured.any():
                msg = "no galaxy has a valid pixel: there is nothing to train on."
                raise ValueError(msg)
            adapted = Conditions(conditions).adapt(table, measured)
            if drop_rate:
                adapted.allow_missing()
            self._attach(vae, adapted)
            self._standardise(posterior, measured)
        data = self._dataset(table, posterior, measured, batch_size, drop_rate)
        if validation_data is not None:
            table, stack = validation_data
            posterior = posterior_moments(self.vae, table, stack)
            measured = posterior.pop("measured")
            validation_data = self._dataset(table, posterior, measured, batch_size)
        if self._plain.own_optimizer or not self.compiled:
            steps = epochs * len(data)
            rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
            self.compile(keras.optimizers.Adam(rate, global_clipnorm=_LARGEST_GRADIENT))
            self._plain.own_optimizer = True
        if isinstance(callbacks, keras.callbacks.Callback):
            callbacks = [callbacks]
        return super().fit(
            data,
            epochs=epochs,
            validation_data=validation_data,
            shuffle=False,
            callbacks=[EpochCallback(data), *(callbacks or [])],
            verbose=verbose,
            **kwargs,
        )

    def compile(self, *args, **kwargs):
        """
        Configure training.

        Parameters
        ----------
        *args, **kwargs
            As for `VAE.compile`.
        """
        super().compile(*args, **kwargs)
        self._plain.own_optimizer = False

    def _standardise(self, posterior, measured):
        """Let the flow see latents of mean zero and variance one."""
        mean = posterior["mean"][measured].astype(float)
        squares = np.square(posterior["scale"][measured], dtype=float)
        while squares.ndim > 2:
            squares = squares.sum(axis=-1)
        variance = mean.var(axis=0) + squares.mean(axis=0)
        self.density.location.assign(mean.mean(axis=0))
        self.density.scale.assign(np.sqrt(np.maximum(variance, 1e-12)))

    def _dataset(self, table, posterior, measured, batch_size, drop_rate=0.0):
        """Draw latents anew in each epoch, for rows that can be trained on."""
        known = self._plain.conditions
        encoded, usable, _ = known.encode(table)
        n_conditions = len(known.names)
        something = (encoded[:, -n_conditions:] < 1).any(axis=1)
        rows = measured & usable & something
        if not rows.any():
            msg = "no galaxy has both a valid pixel and a usable property."
            raise ValueError(msg)
        warn_of_rows(
            (~rows).sum(), "have no valid pixel, or lack properties, and are left out"
        )

        def draw(batch, rng):
            mean, scale = batch["mean"], batch["scale"]
            noise = rng.standard_normal(mean.shape, dtype=np.float32)
            z = mean + scaled_noise(scale, noise)
            conditions = batch["conditions"]
            if drop_rate:
                hidden = rng.random((len(mean), n_conditions)) < drop_rate
                conditions = known.hide(conditions, hidden)
            return {"z": z, "conditions": conditions}

        arrays = {name: values[rows] for name, values in posterior.items()}
        source = Arrays({**arrays, "conditions": encoded[rows]}, clean=False)
        seed = 0 if self.seed is None else self.seed
        return BatchDataset(source, batch_size, seed=seed, augment=draw)

    # ------------------------------------------------------------------
    # what a fitted flow gives
    # ------------------------------------------------------------------

    def _encoded(self, table):
        """Conditions of a table, once the flow is fitted."""
        if not self.built:
            msg = "this flow is not fitted yet: call fit(table, vae, stack, ...)."
            raise ValueError(msg)
        return self._plain.conditions.encode(table)

    def _map(self, name, function, source, **kwargs):
        # the weights of both models are used
        functions = self._plain.functions
        if name not in functions:
            functions[name] = RowFunction(function, [self, self.vae])
        return functions[name].map(source, **kwargs)

    def _noise(self, n, seed):
        rng = np.random.default_rng(seed)
        return rng.standard_normal((n, self.latent_dim), dtype=np.float32)

    def _latents(self, batch):
        """Latents of given deviates and conditions."""
        return self.density(batch["deviates"], batch["conditions"], inverse=True)[0]

    def sample_latents(self, table, *, seed=None, batch_size=1024):
        """
        Draw latents of galaxies of given properties.

        Parameters
        ----------
        table : `~astropy.table.Table`
            The properties, with units as in the training or others that convert.
        seed : int, optional
            Seed of the draws.
        batch_size : int, optional
            Galaxies at a time.

        Returns
        -------
        z : `~numpy.ndarray`, shape (n, latent_dim)
            The latents. NaN where a property is missing that was never missing in
            the training.

        Raises
        ------
        ValueError
            If a column is missing, or has no or another unit.
        """
        conditions, usable, _ = self._encoded(table)
        source = Arrays(
            {"conditions": conditions, "deviates": self._noise(len(table), seed)},
            clean=False,
        )
        z = self._map(
            "latents",
            lambda batch: {"z": self._latents(batch)},
            source,
            batch_size=batch_size,
        )["z"]
        return np.where(usable[:, None], z, np.nan).astype(np.float32)

    def sample(
        self,
        table,
        *,
        psf=None,
        noise=None,
        pose=None,
        seed=None,
        batch_size=256,
        id_column=None,
        show_progress=False,
    ):
        """
        Draw galaxies of given properties.

        Parameters
        ----------
        table : `~astropy.table.Table`
            The properties, with units as in the training or others that convert.
        psf : array_like, shape (n or 1, ky, kx, n_bands or 1), optional
            The PSF to see the galaxies through, of the pixel scale of the images
            and of sum 1; also of shape (ky, kx) or (ky, kx, n_bands). By default,
            galaxies are as they were painted: before any PSF, if the model has
            ``psf=True``; else they have that of the training images.
        noise : float, array_like, `~astropy.units.Quantity` or "learned", optional
            Add noise: its sigma, in the unit of the images unless it is a quantity;
            one, or one for each band, each galaxy and band (n, n_bands), or each
            pixel (n, ny, nx, n_bands). "learned" is the noise of models that were
            trained without errors; of others, it is how badly they paint. By
            default, there is none.
        pose : array_like, `~astropy.table.Table` or "aligned", optional
            Where galaxies lie and how they are turned, for models with a pose: as
            taken by `~astrovae.images.CutoutStack`. By default, the ``pose_*``
            columns of the table; if it has none, galaxies are in the middle and
            turned at random. "aligned" leaves them as they are painted, major
            axes along x.
        seed : int, optional
            Seed of all draws.
        batch_size : int, optional
            Galaxies at a time.
        id_column : str, optional
            The column of identifiers. By default ``id``, ``source_id``, ``objid`` or
            ``object_id``, if there is one; else rows are numbered.
        show_progress : bool, optional
            Show a progress bar.

        Returns
        -------
        stack : `~astrovae.images.CutoutStack`
            A galaxy for each row, in the unit of the images; the properties are in
            ``columns``. Rows out of the support of the training have the flag
            ``OUT_OF_SUPPORT``; those that cannot be drawn, since a property is
            missing that never was before, are masked and have ``NO_RESULT``, too.

        Raises
        ------
        ValueError
            If a column is missing, or has no or another unit; if a PSF is larger
            than the images or not of sum 1, or noise not positive; or if the model
            paints before the PSF, and noise but no PSF is given.

        Warns
        -----
        ~astrovae.exceptions.FlaggedRowsWarning
            If there are flagged rows.
        """
        conditions, usable, supported = self._encoded(table)
        return paint_galaxies(
            self,
            table,
            {"conditions": conditions, "deviates": self._noise(len(table), seed)},
            usable,
            supported,
            psf=psf,
            noise=noise,
            pose=pose,
            seed=seed,
            batch_size=batch_size,
            id_column=id_column,
            show_progress=show_progress,
        )

    def log_prob(self, table, galaxies, *, num_samples=16, batch_size=256):
        """
        Give the log-density of latents, given the properties.

        Parameters
        ----------
        table : `~astropy.table.Table`
            The properties.
        galaxies : `~astrovae.images.CutoutStack`, dict, or array
            Galaxies, as the model of the images takes them; or their latents,
            of shape (n, latent_dim).
        num_samples : int, optional
            Of galaxies, the mean over so many draws from their posteriors is
            given. They are quasi-random and the same for all galaxies and calls.
        batch_size : int, optional
            Galaxies at a time.

        Returns
        -------
        log_prob : `~numpy.ndarray`, shape (n,)
            In nats. NaN for galaxies without a valid pixel, and where a property
            is missing that was never missing in the training.

        Raises
        ------
        ValueError
            If there are not as many galaxies as rows, or as for `sample_latents`.
        """
        conditions, usable, _ = self._encoded(table)
        check_positive_int("num_samples", num_samples)
        if getattr(galaxies, "ndim", None) == 2:
            z = np.asarray(galaxies, dtype=np.float32)[None]
            shape = len(table), self.latent_dim
            if z.shape[1:] != shape:
                msg = f"latents must have the shape {shape}, got {z.shape[1:]}."
                raise ValueError(msg)
        else:
            posterior = posterior_moments(self.vae, table, galaxies)
            usable = usable & posterior["measured"]
            draws = normal_draws(num_samples, self.latent_dim, antithetic=True)
            z = [posterior["mean"] + scaled_noise(posterior["scale"], d) for d in draws]
        total = 0.0
        for one in z:
            source = Arrays({"z": one, "conditions": conditions}, clean=False)
            found = self._map("log_prob", self.call, source, batch_size=batch_size)
            total = total + found["log_prob"].astype(float)
        return np.where(usable, total / len(z), np.nan)

    # ------------------------------------------------------------------
    # saving
    # ------------------------------------------------------------------

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.vae is not None:
            for index, weight in enumerate(self.vae.weights):
                store[f"vae_{index}"] = ops.convert_to_numpy(weight)

    def load_own_variables(self, store):
        # its own weights are those of the density alone, which loads them
        if self.vae is not None:
            for index, weight in enumerate(self.vae.weights):
                weight.assign(store[f"vae_{index}"])

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        config = {
            "name": self.name,
            "num_blocks": self.num_blocks,
            "hidden_units": list(self.hidden_units),
            "activation": self.activation,
            "transform": self.transform,
            "permutations": self.permutations,
            "seed": self.seed,
            "preprocessing": self.preprocessing,
        }
        if not self.built:
            return config
        config["permutations"] = [list(p) for p in self.density.permutations]
        vae = serialize(self.vae)
        vae["config"].pop("preprocessing")
        return config | self._plain.conditions.get_config() | {"vae": vae}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        vae, record = config.pop("vae", None), config.pop("preprocessing")
        if vae is None:
            return cls(**config)
        vae = {**vae, "config": {**vae["config"], "preprocessing": record}}
        names = ("conditions", "constants")
        known = Conditions.from_config({name: config.pop(name) for name in names})
        flow = cls(**config)
        flow._attach(keras.saving.deserialize_keras_object(vae), known)
        return flow
