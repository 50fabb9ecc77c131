# Licensed under a 3-clause BSD style license - see LICENSE
"""Tests of the registry of flag bits."""

import numpy as np
import pytest
from astropy.io import fits

from astrovae.flags import Flag, decode_flags


def test_bits():
    """Every flag is one bit of its own, and all fit into 32 bits with a sign."""
    values = [int(flag) for flag in Flag.__members__.values()]
    assert all(value > 0 and value & (value - 1) == 0 for value in values)
    assert len(set(values)) == len(values)
    assert sum(values) <= np.iinfo(np.int32).max
    assert all(flag.description for flag in Flag)


def test_all_bits_survive(tmp_path):
    """All bits at once go through int32 columns, FITS and back."""
    every = int(sum(Flag))
    flags = np.zeros(3, np.int32)
    for flag in Flag:
        flags[1] |= flag
        flags |= np.where([False, False, True], flag, 0).astype(np.int32)
    assert flags.dtype == np.int32
    assert flags.tolist() == [0, every, every]
    column = fits.Column("flags", "J", array=flags)
    fits.BinTableHDU.from_columns([column]).writeto(tmp_path / "flags.fits")
    again = fits.getdata(tmp_path / "flags.fits")["flags"]
    assert again.tolist() == flags.tolist()
    names = [flag.name.lower() for flag in Flag]
    assert decode_flags(again.astype(np.int32)) == [[], names, names]


@pytest.mark.parametrize("value", [-1, 1 << 31])
def test_unknown_bits(value):
    """The bit of the sign, or one beyond 32 bits, is none of them."""
    with pytest.raises(ValueError, match="does not know"):
        decode_flags(np.array(value, np.int64))
