# Licensed under a 3-clause BSD style license - see LICENSE
"""
Blends of generated galaxies, and a deblender, for the Blending ToolKit.

It needs ``blending-toolkit``, whose releases so far need astropy 6: give it an
environment of its own.
"""

import copy

import astropy.units as u
import numpy as np
from astropy.table import Table, vstack

from astrovae._optional import require
from astrovae._validation import check_option, check_positive_int
from astrovae.images import CutoutStack, measure_pose

try:
    import btk
except ImportError as error:
    msg = (
        "The Blending ToolKit is needed for this and is not installed. Install it in "
        "an environment of its own: pip install blending-toolkit 'astropy<7' "
        "'numpy<2.4'"
    )
    raise ImportError(msg) from error

from surveycodex.utilities import mag2counts, mean_sky_level

galsim = require("galsim", extra="sim")

__all__ = ["GeneratedBlends", "GeneratedCatalog", "VAEDeblender"]

_ROW = "astrovae_row"
_BRIGHT = 5.0
_PADDING = 2.0


class GeneratedCatalog(btk.catalog.Catalog):
    """
    A catalogue of properties of galaxies for the Blending ToolKit.

    Parameters
    ----------
    raw_catalog : `~astropy.table.Table`
        A row per galaxy: the conditions of the generator; and what the sampling
        function asks for, for most of them a magnitude such as ``i_ab``. Columns
        ``ra`` and ``dec``, in arcsec, are added if there are none.

    Examples
    --------
    >>> from astropy.table import Table
    >>> from astrovae.interop.btk import GeneratedCatalog
    >>> catalog = GeneratedCatalog(Table({"i_ab": [22.0, 23.0]}))
    >>> catalog.table.colnames
    ['i_ab', 'ra', 'dec']
    """

    @classmethod
    def from_file(cls, catalog_files):
        """
        Read a catalogue.

        Parameters
        ----------
        catalog_files : str
            A file that Astropy can read.

        Returns
        -------
        catalog : `GeneratedCatalog`
            The catalogue.
        """
        return cls(Table.read(catalog_files))

    def _prepare_table(self, raw_catalog):
        table = copy.deepcopy(raw_catalog)
        for name in ("ra", "dec"):
            if name not in table.colnames:
                table[name] = 0.0
        return table


class _PaintedBlends:
    """Blends as the toolkit samples them, whose galaxies are painted at once."""

    def __init__(self, sampler, paint):
        self._sampler, self._paint = sampler, paint
        self.images = None

    def __getattr__(self, name):
        if name.startswith("_"):  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __iter__(self):
        return self

    def __next__(self):
        blends = next(self._sampler)
        start = 0
        for blend in blends:
            blend[_ROW] = np.arange(start, start + len(blend))
            start += len(blend)
        self.images = None
        if start:
            filled = [blend for blend in blends if len(blend)]
            self.images = self._paint(vstack(filled, metadata_conflicts="silent"))
        return blends


class GeneratedBlends(btk.draw_blends.DrawBlendsGenerator):
    """
    Batches of blends of generated galaxies.

    All galaxies of a batch are painted at once, for all bands and surveys; GalSim
    then convolves them with the PSF of each survey.

    Parameters
    ----------
    catalog : `GeneratedCatalog`
        The catalogue that galaxies are sampled from.
    sampling_function : btk.sampling_functions.SamplingFunction
        What chooses the galaxies of a blend and their places.
    surveys : btk.survey.Survey or list of them
        The surveys that see them.
    flow : object
        With ``sample(table, seed=...)`` that gives a
        `~astrovae.images.CutoutStack` of galaxies before the PSF, e.g. a trained
        `~astrovae.models.LatentFlow`.
    zero_point : float, optional
        AB magnitude of the flux 1 of the images of the flow. Not needed if their unit
        is one of flux density, such as nJy.
    bands : dict, optional
        The band of the flow for each filter of the surveys. By default those of the
        same name.
    seed : int, optional
        Seed of the noise and of what properties leave open.
    **kwargs
        Arguments of ``btk.draw_blends.DrawBlendsGenerator``: ``batch_size``, ``njobs``,
        ``add_noise``, ``apply_shear``, ``augment_data`` and others.

    Raises
    ------
    ValueError
        If the catalogue is of another kind, a filter has no band, or fluxes cannot be
        told in electrons.

    Notes
    -----
    Galaxies without valid flux are marked in ``not_drawn_<filter>``, as the toolkit
    does. With ``njobs`` above 1, only the drawing is shared out: the model stays in the
    first process.

    Examples
    --------
    .. code-block:: python

        catalog = GeneratedCatalog.from_file("galaxies.fits")
        sampling = btk.sampling_functions.DefaultSampling(max_number=3)
        survey = btk.survey.get_surveys("LSST")
        blends = GeneratedBlends(catalog, sampling, survey, flow, batch_size=100)
        batch = next(blends)
    """

    compatible_catalogs = ("GeneratedCatalog",)

    def __init__(
        self,
        catalog,
        sampling_function,
        surveys,
        flow,
        *,
        zero_point=None,
        bands=None,
        seed=btk.utils.DEFAULT_SEED,
        **kwargs,
    ):
        self.flow, self.zero_point = flow, zero_point
        self.bands = dict(bands or {})
        self._unit = {}  # electrons per flux of 1, while a batch is drawn
        self._flow_seeds = np.random.SeedSequence([seed, 1])
        super().__init__(catalog, sampling_function, surveys, seed=seed, **kwargs)
        self.blend_generator = _PaintedBlends(self.blend_generator, self._paint)

    def __getstate__(self):
        """Leave the model and its catalogue out of what other processes get."""
        state = dict(self.__dict__)
        state["flow"] = state["catalog"] = None
        blends = _PaintedBlends(None, None)
        blends.images = self.blend_generator.images
        state["blend_generator"] = blends
        return state

    def _check_compatibility(self, survey):
        if not isinstance(self.catalog, GeneratedCatalog):
            name = type(self.catalog).__name__
            msg = f"catalog must be a GeneratedCatalog, got {name}."
            raise ValueError(msg)

    def _paint(self, table):
        """Paint the galaxies of a batch."""
        self._unit.clear()
        (state,) = self._flow_seeds.spawn(1)
        seed = int(state.generate_state(1)[0] >> 1)
        names = [name for name in (_ROW, "ra", "dec") if name in table.colnames]
        stack = self.flow.sample(table[_without(table, names)], seed=seed)
        if stack.pixel_scale is None:
            msg = (
                "the flow does not know the size of its pixels: train it on cutouts "
                "that have a pixel_scale."
            )
            raise ValueError(msg)
        for survey in self.surveys.values():
            for name in survey.available_filters:
                band = self.bands.get(name, name)
                check_option(f"the band of the filter {name}", band, stack.bands)
        return stack

    def _zero_point(self, stack):
        """AB magnitude of the flux 1."""
        if self.zero_point is not None:
            return self.zero_point
        unit = stack.unit
        if unit is None or not unit.is_equivalent(u.Jy):
            msg = (
                f"the unit of the galaxies, {unit}, is no flux density: give "
                "zero_point=..., the AB magnitude of a flux of 1."
            )
            raise ValueError(msg)
        return (1 * unit).to_value(u.ABmag)

    def render_single(self, entry, filt, psf, survey):
        """
        Draw one galaxy in one band.

        Parameters
        ----------
        entry : `~astropy.table.Row`
            The galaxy.
        filt : btk.survey.Filter
            The filter.
        psf : galsim.GSObject
            Its PSF.
        survey : btk.survey.Survey
            The survey.

        Returns
        -------
        image : galsim.Image or None
            The galaxy in electrons; `None` if it has no flux.
        """
        stack = self.blend_generator.images
        plane = stack.bands.index(self.bands.get(filt.name, filt.name))
        row = entry[_ROW]
        image = np.asarray(stack.data[row, ..., plane], dtype=float)
        flux = image.sum()
        if stack.mask[row, ..., plane].any() or not flux > 0:
            entry["not_drawn_" + filt.name] = 1
            return None
        key = survey.name, filt.name
        if key not in self._unit:
            self._unit[key] = _electrons(self._zero_point(stack), survey, filt)
        image = image * self._unit[key]
        scale = stack.pixel_scale.to_value(u.arcsec)
        # half the default padding changes no pixel by 1e-4 of the brightest one, and
        # looking for the smallest grids that will do costs more than it gains
        galaxy = galsim.InterpolatedImage(
            galsim.Image(image),
            scale=scale,
            pad_factor=_PADDING,
            calculate_stepk=False,
            calculate_maxk=False,
        )
        if entry["btk_rotation"] != 0:
            galaxy = galaxy.rotate(entry["btk_rotation"] * galsim.degrees)
        if self.apply_shear:
            galaxy = galaxy.shear(g1=entry["g1"], g2=entry["g2"])
        size = self._get_pix_stamp_size(survey)
        drawn = galsim.Convolve(galaxy, psf).shift(entry["ra"], entry["dec"])
        return drawn.drawImage(
            nx=size, ny=size, scale=survey.pixel_scale.to_value(u.arcsec)
        )


def _without(table, names):
    return [name for name in table.colnames if name not in names]


def _electrons(zero_point, survey, filt):
    """Electrons that a flux of 1 gives, if that is an AB magnitude."""
    # the toolkit rounds them: a bright source has enough
    bright = mag2counts(_BRIGHT, survey, filt).to_value(u.electron)
    return bright * 10 ** (-0.4 * (zero_point - _BRIGHT))


class VAEDeblender(btk.deblend.Deblender):
    """
    Deblend with a model of single galaxies as the prior.

    All blends of a batch are deblended at once; see `~astrovae.models.deblend`.

    Parameters
    ----------
    max_n_sources : int
        Largest number of galaxies of a blend.
    vae : `~astrovae.models.VAE`
        A model of single galaxies in the bands and pixels of the survey.
    detector : btk.deblend.Deblender, optional
        What finds the galaxies; its catalogues need ``x_peak`` and ``y_peak``, in
        pixels. By default, the true positions are used.
    zero_point : float, optional
        AB magnitude of the flux 1 of the images that the model was trained on. By
        default, these were in electrons of the survey.
    share : bool, optional
        Give the pixels of the blend, shared out in proportion to the models; without,
        the models themselves.
    **kwargs
        Arguments of `~astrovae.models.deblend`.

    Examples
    --------
    .. code-block:: python

        deblender = VAEDeblender(max_n_sources=3, vae=vae)
        deblended = deblender(batch).deblended_images
    """

    def __init__(
        self,
        max_n_sources,
        vae,
        *,
        detector=None,
        zero_point=None,
        share=True,
        **kwargs,
    ):
        super().__init__(check_positive_int("max_n_sources", max_n_sources))
        self.vae, self.detector, self.zero_point = vae, detector, zero_point
        self.share, self.options = bool(share), kwargs

    def deblend(self, ii, blend_batch):
        """
        Deblend one blend of a batch.

        Parameters
        ----------
        ii : int
            Which one.
        blend_batch : btk.blend_batch.BlendBatch
            The batch.

        Returns
        -------
        example : btk.blend_batch.DeblendExample
            Catalogue and images of its galaxies.
        """
        rows = slice(ii, ii + 1)
        (catalog,), images, extra = self._deblend(blend_batch, rows)
        return btk.blend_batch.DeblendExample(
            self.max_n_sources,
            catalog,
            images.shape[2],
            blend_batch.image_size,
            deblended_images=images[0],
            extra_data=extra[0],
        )

    def batch_call(self, blend_batch, njobs=1, **kwargs):
        """
        Deblend all blends of a batch.

        Parameters
        ----------
        blend_batch : btk.blend_batch.BlendBatch
            The batch.
        njobs : int, optional
            Not used: blends are deblended side by side in one process.
        **kwargs
            Arguments of `~astrovae.models.deblend`, in place of the usual ones.

        Returns
        -------
        batch : btk.blend_batch.DeblendBatch
            Catalogues and images; fluxes and latents in ``extra_data``.
        """
        rows = slice(0, blend_batch.batch_size)
        catalogs, images, extra = self._deblend(blend_batch, rows, **kwargs)
        return btk.blend_batch.DeblendBatch(
            blend_batch.batch_size,
            self.max_n_sources,
            catalogs,
            images.shape[2],
            blend_batch.image_size,
            deblended_images=images,
            extra_data=extra,
        )

    def _deblend(self, batch, rows, **kwargs):
        from astrovae.models import deblend

        survey = batch.survey
        filters = [survey.get_filter(name) for name in survey.available_filters]
        unit = np.ones(len(filters))
        if self.zero_point is not None:
            unit = np.array(
                [_electrons(self.zero_point, survey, filt) for filt in filters]
            )
        image = np.moveaxis(batch.blend_images[rows], 1, -1)
        # photons of sky and galaxies are counted
        sky = [mean_sky_level(survey, filt).to_value(u.electron) for filt in filters]
        error = np.sqrt(np.array(sky) + np.clip(image, 0, None))
        catalogs = self._catalogs(batch, rows)
        positions = np.full((len(image), self.max_n_sources, 2), np.nan)
        for place, catalog in zip(positions, catalogs):
            if len(catalog) > self.max_n_sources:
                msg = (
                    f"a blend has {len(catalog)} galaxies, more than max_n_sources="
                    f"{self.max_n_sources}."
                )
                raise ValueError(msg)
            place[: len(catalog), 0] = catalog["x_peak"]
            place[: len(catalog), 1] = catalog["y_peak"]
        planes = {"image": image / unit, "error": error / unit}
        planes = {name: plane.astype(np.float32) for name, plane in planes.items()}
        if "psf" in self.vae.needs:
            psf = _draw_psf(batch, image.shape[1])
            planes["psf"] = np.broadcast_to(psf, (len(image), *psf.shape[1:]))
        options = self.options | kwargs
        if self.vae.pose and "poses" not in options:
            options["poses"] = _measure_poses(self.vae, planes, positions)
        found = deblend(self.vae, planes, positions, **options)
        images = found["shared" if self.share else "model"] * unit
        images = np.moveaxis(images, -1, 2)
        names = ("flux", "flux_err")
        extra = [
            {name: found[name][i, : len(catalog)] * unit for name in names}
            | {"mean": found["mean"][i, : len(catalog)]}
            | {"log_var": found["log_var"][i, : len(catalog)]}
            for i, catalog in enumerate(catalogs)
        ]
        return catalogs, images, extra

    def _catalogs(self, batch, rows):
        """Positions of the galaxies, true ones or those that were found."""
        if self.detector is None:
            names = ("ra", "dec", "x_peak", "y_peak")
            return [
                Table({name: catalog[name] for name in names})
                for catalog in batch.catalog_list[rows]
            ]
        found = [
            self.detector.deblend(i, batch).catalog
            for i in range(*rows.indices(batch.batch_size))
        ]
        return [Table(catalog) for catalog in found]


def _draw_psf(batch, size):
    """PSFs of the survey with the response of the pixels, on an odd grid."""
    size = size - 1 + size % 2
    scale = batch.survey.pixel_scale.to_value(u.arcsec)
    drawn = [psf.drawImage(nx=size, ny=size, scale=scale).array for psf in batch.psf]
    drawn = np.stack(drawn, axis=-1)[np.newaxis]
    return (drawn / drawn.sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def _measure_poses(vae, planes, positions):
    """Angle and flip of each galaxy, measured after sharing out the light."""
    from astrovae.models.deblending import symmetric_cutouts

    cutouts = symmetric_cutouts(vae, planes, positions)
    stack = measure_pose(CutoutStack(cutouts["image"], mask=cutouts["mask"]))
    pose = stack.batch(np.arange(len(stack)))["pose"]
    return pose[:, 2:4].reshape(positions.shape)
