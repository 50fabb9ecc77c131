# Licensed under a 3-clause BSD style license - see LICENSE
"""The picture of the Hubble eXtreme Deep Field that scikit-image carries."""

import numpy as np
from astropy.nddata import NDData

__all__ = ["hubble_deep_field"]


def hubble_deep_field():
    """
    Load a real colour picture of thousands of galaxies.

    It is a public-outreach picture of the Hubble eXtreme Deep Field, which
    scikit-image carries, so that it needs no download. What that means for
    measurements:

    - it has 8 bits per pixel, 0 to 255, rounded: each value has a rounding
      variance of 1/12, and the brightest centres are saturated at 255;
    - it was stretched for the eye, by a function that is not recorded, so
      values are not proportional to flux, and colours are those of the
      composition (several ACS and WFC3/IR filters in each of red, green
      and blue), not magnitudes;
    - it was resized for the web: the noise of adjacent pixels is correlated,
      the pixel scale is not recorded, and there is no WCS.

    Returns
    -------
    image : `~astropy.nddata.NDData`
        ``image.data`` is float32 of shape (872, 1000, 3), row 0 at the
        bottom as in FITS images. ``image.meta`` has ``bands`` (``"red"``,
        ``"green"``, ``"blue"``), ``band_axis``, ``quantization_step``,
        ``saturation`` and ``origin``.

    References
    ----------
    NASA, ESA, G. Illingworth, D. Magee and P. Oesch (University of
    California, Santa Cruz), R. Bouwens (Leiden University), and the HUDF09
    Team, news release STScI-2012-37; Illingworth et al. 2013, ApJS 209, 6
    (arXiv:1305.1931).

    Examples
    --------
    >>> from astrovae.datasets import hubble_deep_field
    >>> image = hubble_deep_field()
    >>> image.data.shape, image.meta["bands"]
    ((872, 1000, 3), ('red', 'green', 'blue'))
    """
    from skimage import data

    pixels = data.hubble_deep_field()[::-1]
    return NDData(
        np.ascontiguousarray(pixels, dtype=np.float32),
        meta={
            "bands": ("red", "green", "blue"),
            "band_axis": 2,
            "quantization_step": 1.0,
            "saturation": 255.0,
            "origin": (
                "Hubble eXtreme Deep Field (NASA, ESA, G. Illingworth et al.; news "
                "release STScI-2012-37), 8-bit picture carried by scikit-image"
            ),
        },
    )
