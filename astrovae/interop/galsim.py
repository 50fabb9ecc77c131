# Licensed under a 3-clause BSD style license - see LICENSE
"""
Galaxies of a model as GalSim objects, from Python and from configuration files.

Importing this module registers the input type ``astrovae_catalog`` and the object
type ``AstroVAEGalaxy`` with GalSim.
"""

import collections
import os
import sys
import threading
import warnings

import astropy.units as u
import numpy as np
from astropy.table import Table

from astrovae._optional import require
from astrovae._validation import check_option, check_positive_int
from astrovae.exceptions import FlaggedRowsWarning

galsim = require("galsim", extra="sim")

__all__ = ["GalaxyCatalog", "GalaxyGenerator", "to_galsim"]

_INPUT_TYPE, _OBJECT_TYPE = "astrovae_catalog", "AstroVAEGalaxy"
# The kernel that GalSim itself interpolates images with.
_INTERPOLANT = "quintic"
_SCALE_TOLERANCE = 1e-3
# Images that a catalogue keeps, in bytes; the last batch in any case.
_MAX_KEPT = 256 * 2**20
# GalSim asks for galaxies of several processes by as many threads of one
_painting = threading.Lock()


def to_galsim(
    stack, *, band=None, pixel_scale=None, x_interpolant=_INTERPOLANT, **kwargs
):
    """
    Make a GalSim object of each galaxy of a stack.

    The stack should hold galaxies before the PSF and without noise, such as models
    paint them. To draw an object, convolve it with a PSF without the response
    of the pixels: GalSim adds that.

    Parameters
    ----------
    stack : `~astrovae.images.CutoutStack`
        Galaxies, flux per pixel. The middle of a cutout, for sizes even and odd, is
        the origin of the object.
    band : str, optional
        Which band; may be left out if there is only one.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of a pixel, if the stack does not know it; a plain number is in
        arcsec.
    x_interpolant : str or galsim.Interpolant, optional
        How GalSim interpolates between pixels.
    **kwargs
        Further arguments of ``galsim.InterpolatedImage``, e.g. ``gsparams``.

    Returns
    -------
    galaxies : list of galsim.InterpolatedImage
        Lengths are in arcsec; the flux is the sum of the pixels, in the unit of the
        stack. The axes are those of the array: positive ``g1`` is along +x, angles
        run from +x to +y. Where a valid flux above zero is missing, `None`.

    Raises
    ------
    ValueError
        If there is no such band, no pixel scale, or another one than that of the
        stack.

    Warns
    -----
    ~astrovae.exceptions.FlaggedRowsWarning
        If there are galaxies without flux.

    Examples
    --------
    >>> import numpy as np
    >>> from astrovae.images import CutoutStack
    >>> from astrovae.interop.galsim import to_galsim
    >>> stack = CutoutStack(np.ones((2, 16, 16)), pixel_scale=0.2)
    >>> galaxies = to_galsim(stack)
    >>> round(galaxies[0].flux)
    256
    """
    plane = _plane(stack, band)
    scale = _pixel_scale(stack, pixel_scale)
    images = np.asarray(stack.data[..., plane], dtype=float)
    valid = ~np.asarray(stack.mask[..., plane])
    return _as_objects(images, valid, scale, x_interpolant, kwargs)


def _as_objects(images, valid, scale, x_interpolant, kwargs):
    """Objects of images, None where one cannot be made."""
    flux = np.where(valid, images, 0.0).sum(axis=(1, 2))
    usable = valid.all(axis=(1, 2)) & (flux > 0)
    options = {"scale": scale, "x_interpolant": x_interpolant, **kwargs}
    galaxies = [
        galsim.InterpolatedImage(galsim.Image(image), **options) if good else None
        for image, good in zip(images, usable)
    ]
    if not usable.all():
        msg = (
            f"{np.count_nonzero(~usable)} of {len(usable)} galaxies have masked pixels "
            "or no flux; they are None. Look at the flags of the stack."
        )
        warnings.warn(msg, FlaggedRowsWarning, stacklevel=3)
    return galaxies


def _plane(stack, band):
    """Number of a band."""
    if band is None and len(stack.bands) == 1:
        return 0
    if band is None:
        msg = f"the galaxies have the bands {stack.bands}: choose one with band=..."
        raise ValueError(msg)
    return stack.bands.index(check_option("band", band, tuple(stack.bands)))


def _pixel_scale(stack, pixel_scale):
    """Angular size of a pixel in arcsec."""
    scale = stack.pixel_scale if pixel_scale is None else pixel_scale
    if scale is None:
        msg = (
            "the size of the pixels is not known: give pixel_scale=... in arcsec, or "
            "train the model on cutouts that have one."
        )
        raise ValueError(msg)
    scale = u.Quantity(scale, u.arcsec).value
    if not (np.isfinite(scale) and scale > 0):
        msg = f"pixel_scale must be positive, got {pixel_scale!r}."
        raise ValueError(msg)
    known = stack.pixel_scale
    if known is not None and not np.isclose(
        scale, known.to_value(u.arcsec), rtol=_SCALE_TOLERANCE, atol=0
    ):
        msg = (
            f"pixel_scale={pixel_scale!r}, but the pixels of these galaxies are of "
            f"{known}, painted ones being smaller than those of the images. Leave "
            "pixel_scale out."
        )
        raise ValueError(msg)
    return float(scale)


class GalaxyGenerator:
    """
    GalSim objects of galaxies with given properties.

    Galaxies are painted by the model in batches; what GalSim gets are interpolated
    images before the PSF, with their flux in the unit of the training images and
    their size on the sky.

    Parameters
    ----------
    flow : object
        With ``sample(table, seed=...)`` that gives a
        `~astrovae.images.CutoutStack` of galaxies before the PSF, one per row of
        the table, e.g. a trained ``LatentFlow``.
    band : str, optional
        The band to draw; may be left out if there is only one.
    pixel_scale : float or `~astropy.units.Quantity`, optional
        Angular size of the pixels of the model, if it does not know it.
    x_interpolant : str or galsim.Interpolant, optional
        How GalSim interpolates between pixels.
    **kwargs
        Further arguments of ``galsim.InterpolatedImage``.

    Raises
    ------
    TypeError
        If ``flow`` cannot sample.

    Notes
    -----
    An object must be convolved with a PSF before it is drawn, as everything in
    GalSim. That of the survey that the model was trained on has been taken out only
    as far as the noise allowed; draw with a PSF that is at least as broad.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from astrovae.datasets import make_galaxies
    >>> from astrovae.interop.galsim import GalaxyGenerator
    >>> class Flow:  # stands for a trained one
    ...     def sample(self, table, *, seed=0):
    ...         return make_galaxies(len(table), noise=1e-3, seed=seed)[1]
    >>> generator = GalaxyGenerator(Flow())
    >>> galaxies = generator.sample(Table({"mag": [20.0, 21.0]}), seed=1)
    >>> len(galaxies), galaxies[0].xValue(0, 0) > 0
    (2, True)
    """

    def __init__(
        self,
        flow,
        *,
        band=None,
        pixel_scale=None,
        x_interpolant=_INTERPOLANT,
        **kwargs,
    ):
        if not hasattr(flow, "sample"):
            msg = (
                "flow must have sample(table, seed=...), as LatentFlow has, got "
                f"{type(flow).__name__}."
            )
            raise TypeError(msg)
        self.flow = flow
        self.band = band
        self.pixel_scale = pixel_scale
        self.x_interpolant = x_interpolant
        self.options = kwargs

    def sample(self, table, *, band=None, seed=0):
        """
        Paint galaxies and make GalSim objects of them.

        Parameters
        ----------
        table : `~astropy.table.Table`
            Properties of the galaxies, as the flow was trained with.
        band : str, optional
            Another band than that of the generator.
        seed : int, optional
            Seed of what the properties leave open.

        Returns
        -------
        galaxies : list of galsim.InterpolatedImage
            As given by `to_galsim`.
        """
        band = self.band if band is None else band
        return self._convert(self.flow.sample(table, seed=seed), band)

    def sample_bands(self, table, *, seed=0):
        """
        Paint galaxies once and make GalSim objects of each band.

        Parameters
        ----------
        table : `~astropy.table.Table`
            Properties of the galaxies.
        seed : int, optional
            Seed of what the properties leave open.

        Returns
        -------
        galaxies : dict of list
            A list like that of `sample` for each band.
        """
        stack = self.flow.sample(table, seed=seed)
        return {band: self._convert(stack, band) for band in stack.bands}

    def _convert(self, stack, band):
        return to_galsim(
            stack,
            band=band,
            pixel_scale=self.pixel_scale,
            x_interpolant=self.x_interpolant,
            **self.options,
        )


class GalaxyCatalog:
    """
    Galaxies of a catalogue for GalSim's configuration, painted batches ahead.

    This is what the input type ``astrovae_catalog`` makes; objects of the type
    ``AstroVAEGalaxy`` ask it for one galaxy after the other. The model is loaded once,
    and every galaxy is painted with the others of its batch.

    Parameters
    ----------
    model : str or object
        Folder of a trained ``LatentFlow``; or, in a configuration that is made in
        Python, anything that has ``sample(table, seed=...)``.
    catalog : str or `~astropy.table.Table`
        Properties of the galaxies: a file that Astropy can read, or a table.
    band : str, optional
        The band to draw; may be left out if there is only one. Objects can ask for
        another one.
    seed : int, optional
        Seed of what the properties leave open. A galaxy is the same whatever others
        are drawn, in which order and by how many processes.
    batch_size : int, optional
        Galaxies that are painted at a time.
    pixel_scale : float, optional
        Size of the pixels of the model in arcsec, if it does not know it.

    Raises
    ------
    RuntimeError
        If GalSim forked this process from one that had loaded Keras already, since
        backends then wait for ever.

    Examples
    --------
    In a configuration file:

    .. code-block:: yaml

        modules: [astrovae.interop.galsim]
        input:
          astrovae_catalog: {model: flow_folder, catalog: galaxies.fits, band: r}
        gal: {type: AstroVAEGalaxy}
    """

    _req_params = {"model": None, "catalog": None}  # noqa: RUF012
    _opt_params = {  # noqa: RUF012
        "band": str,
        "seed": int,
        "batch_size": int,
        "pixel_scale": float,
    }

    def __init__(
        self, model, catalog, band=None, seed=0, batch_size=256, pixel_scale=None
    ):
        self._batch_size = check_positive_int("batch_size", batch_size)
        self._table = catalog if isinstance(catalog, Table) else Table.read(catalog)
        self._flow = _load(model)
        self._band, self._seed, self._scale = band, seed, pixel_scale
        self._batches = collections.OrderedDict()

    def getNObjects(self):  # noqa: N802
        """
        Give the number of galaxies, as GalSim asks for it.

        Returns
        -------
        n : int
            The number of rows of the catalogue.
        """
        return len(self._table)

    def get_galaxy(self, index, band=None, **options):
        """
        Give one galaxy.

        Parameters
        ----------
        index : int
            Row of the catalogue.
        band : str, optional
            Another band than that of the catalogue.
        **options
            Arguments of ``galsim.InterpolatedImage``.

        Returns
        -------
        galaxy : galsim.InterpolatedImage or None
            As given by `to_galsim`; `None` if there is none.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        if not 0 <= index < len(self._table):
            msg = f"index={index} is not within 0 ... {len(self._table) - 1}."
            raise IndexError(msg)
        number, row = divmod(index, self._batch_size)
        with _painting:
            stack = self._batch(number)
        plane = _plane(stack, self._band if band is None else band)
        images = np.asarray(stack.data[row : row + 1, ..., plane], dtype=float)
        valid = ~np.asarray(stack.mask[row : row + 1, ..., plane])
        options = {"x_interpolant": _INTERPOLANT} | options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FlaggedRowsWarning)  # the caller skips it
            return _as_objects(
                images,
                valid,
                _pixel_scale(stack, self._scale),
                options.pop("x_interpolant"),
                options,
            )[0]

    def _batch(self, number):
        """Galaxies of a batch; some are kept."""
        if number not in self._batches:
            start = number * self._batch_size
            rows = self._table[start : start + self._batch_size]
            # a seed of its own, whatever was painted before
            state = np.random.SeedSequence([self._seed, number]).generate_state(1)
            seed = int(state[0] >> 1)
            stack = self._flow.sample(rows, seed=seed)
            self._batches[number] = stack
            room = max(_MAX_KEPT // max(stack.data.nbytes, 1), 1)
            while len(self._batches) > room:
                self._batches.popitem(last=False)
        self._batches.move_to_end(number)
        return self._batches[number]


def _load(model):
    """A trained flow, from its folder or as it is."""
    keras = _forked_with.get("keras")
    trained = hasattr(model, "sample")
    if keras and (not trained or isinstance(model, keras.Model)):
        msg = (
            "GalSim forked this process from one in which Keras was loaded, where its "
            "backend may wait for ever. Use nproc 1, or start GalSim in a process of "
            "its own: galsim config.yaml."
        )
        raise RuntimeError(msg)
    if trained:
        return model
    from astrovae.models import LatentFlow

    return LatentFlow.from_preset(model)


def _note_fork():
    """Remember the Keras that this process has from the one it was forked from."""
    if "keras" in sys.modules:
        _forked_with["keras"] = sys.modules["keras"]


_forked_with = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _build_galaxy(config, base, ignore, gsparams, logger):
    """Give the galaxy that a configuration asks for, and that another may come next."""
    source = galsim.config.GetInputObj(_INPUT_TYPE, config, base, _OBJECT_TYPE)
    galsim.config.SetDefaultIndex(config, source.getNObjects())
    kwargs, _ = galsim.config.GetAllParams(
        config,
        base,
        req={"index": int},
        opt={"band": str, "x_interpolant": str, "flux": float},
        ignore=[*ignore, "num"],
    )
    if gsparams:
        kwargs["gsparams"] = galsim.GSParams(**gsparams)
    try:
        galaxy = source.get_galaxy(**kwargs)
    except IndexError as error:
        msg = f"{_OBJECT_TYPE}: {error}"
        raise galsim.GalSimConfigError(msg) from error
    if galaxy is None:
        msg = f"the galaxy of row {kwargs['index']} has no flux"
        raise galsim.config.SkipThisObject(msg)
    return galaxy, False


galsim.config.RegisterInputType(
    _INPUT_TYPE, galsim.config.InputLoader(GalaxyCatalog, has_nobj=True)
)
galsim.config.RegisterObjectType(_OBJECT_TYPE, _build_galaxy, input_type=_INPUT_TYPE)
