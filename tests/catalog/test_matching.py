"""Tests of finding the same objects in another catalogue."""

import importlib

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Angle, SkyCoord, angular_separation
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.time import Time

from astrovae.catalog import (
    COLUMNS,
    crossmatch,
    merge_vectors,
    read_catalog,
    split_vectors,
    write_catalog,
)
from astrovae.exceptions import FlaggedRowsWarning
from astrovae.flags import Flag

BIG = 1237648720693755918
NO_POSITION = pytest.warns(FlaggedRowsWarning, match="have no position")
RADIUS = 30 * u.arcsec


def sky(rng, n, where):
    """Draw crowded positions: across RA 0, at a pole, or in a field."""
    if where == "wrap":
        ra, dec = rng.uniform(-0.1, 0.1, n) % 360, rng.uniform(-0.1, 0.1, n)
    elif where == "pole":
        ra, dec = rng.uniform(0, 360, n), 90 - 0.1 * np.sqrt(rng.uniform(0, 1, n))
    else:
        ra, dec = rng.uniform(150, 150.2, n), rng.uniform(-62.1, -62, n)
    return ra, dec


def separations(table, other):
    """All angles between rows of two tables, in arcseconds."""
    lonlat = [
        np.deg2rad([u.Quantity(t[name], u.deg).value for name in ("ra", "dec")])
        for t in (table, other)
    ]
    (lon, lat), (other_lon, other_lat) = lonlat
    angle = angular_separation(lon[:, None], lat[:, None], other_lon, other_lat)
    return np.rad2deg(angle) * 3600


def plain(column, fill=-1):
    """Values without unit, masked ones filled."""
    mask = np.broadcast_to(getattr(column, "mask", False), column.shape)
    data = np.asarray(np.ma.getdata(getattr(column, "unmasked", column)))
    return np.where(mask, fill, data)


@pytest.fixture(params=["wrap", "pole", "field"])
def catalogues(rng, request):
    """Two crowded catalogues of the same place."""
    tables = []
    for n, name in ((60, "x"), (80, "y")):
        ra, dec = sky(rng, n, request.param)
        tables.append(QTable({"id": BIG + np.arange(n), "ra": ra, "dec": dec}))
        tables[-1][name] = rng.normal(size=n) * u.nJy
    return tables


def test_best_is_the_nearest(catalogues):
    """Partners, angles and counts are those of all pairs, across RA 0 and poles."""
    table, other = catalogues
    result = crossmatch(table, other, radius=RADIUS)
    angles = separations(table, other)
    nearest = angles.argmin(axis=1)
    matched = angles.min(axis=1) <= 30
    assert 10 < matched.sum() < 60
    np.testing.assert_array_equal(
        plain(result["match_index"]), np.where(matched, nearest, -1)
    )
    np.testing.assert_array_equal(result["match_count"], (angles <= 30).sum(axis=1))
    np.testing.assert_allclose(
        result["separation"][matched].unmasked.value, angles.min(axis=1)[matched]
    )
    assert result["separation"].unit == u.arcsec
    ambiguous = plain(result["match_flags"]) & Flag.AMBIGUOUS_MATCH != 0
    np.testing.assert_array_equal(ambiguous, (angles <= 30).sum(axis=1) > 1)
    assert ambiguous.any()
    np.testing.assert_array_equal(result["id"], table["id"])
    np.testing.assert_array_equal(result["y"].mask, ~matched)
    assert (result["y"][matched].unmasked == other["y"][nearest[matched]]).all()
    assert (result["id_2"][matched] == other["id"][nearest[matched]]).all()


def test_mutual_is_best_both_ways(catalogues):
    """Each row of either table appears in one pair at most."""
    table, other = catalogues
    result = crossmatch(table, other, radius=RADIUS, find="mutual")
    angles = separations(table, other)
    expected = np.full(len(table), -1)
    for i, j in enumerate(angles.argmin(axis=1)):
        if angles[i, j] <= 30 and angles[:, j].argmin() == i:
            expected[i] = j
    np.testing.assert_array_equal(plain(result["match_index"]), expected)
    best = crossmatch(table, other, radius=RADIUS)
    assert result["match_index"].mask.sum() > best["match_index"].mask.sum()


def test_all_has_every_pair(catalogues):
    """Pairs are in the order of rows and angles; rows without are there once."""
    table, other = catalogues
    result = crossmatch(table, other, radius=RADIUS, find="all")
    angles = separations(table, other)
    expected = []
    for i, row in enumerate(angles):
        partners = [j for j in np.argsort(row) if row[j] <= 30]
        expected += [(BIG + i, j) for j in partners or [-1]]
    found = list(zip(result["id"].tolist(), plain(result["match_index"]).tolist()))
    assert found == expected


def test_is_that_of_astropy(rng):
    """Coordinates in any frame and tables in any unit match as astropy says."""
    ra, dec = rng.uniform(0, 3, 500), rng.uniform(-1, 1, 500)
    coords = SkyCoord(ra, dec, unit="deg")
    other_coords = SkyCoord(rng.permutation(ra), rng.permutation(dec), unit="deg")
    index, separation, _ = coords.match_to_catalog_sky(other_coords)
    other = Table({"sky": other_coords.galactic, "z": np.arange(500)})
    for table in (
        Table({"coord": coords.fk5}),
        Table({"RA": ra, "Dec": dec}),
        QTable({"RAJ2000": coords.ra.to(u.rad), "DEJ2000": coords.dec.to(u.arcmin)}),
        QTable({"ra": u.Quantity(coords.ra.hourangle, u.hourangle), "dec": dec}),
        Table(
            {
                "ra": coords.ra.to_string(u.hourangle, sep=":", precision=8),
                "dec": coords.dec.to_string(u.deg, sep=" ", precision=8),
            }
        ),
    ):
        result = crossmatch(table, other, radius=4 * u.arcmin)
        matched = separation <= 4 * u.arcmin
        assert 100 < matched.sum() < 500
        expected = np.where(matched, index, -1)
        np.testing.assert_array_equal(plain(result["match_index"]), expected)
        angles = u.Quantity(plain(result["separation"]), u.arcsec)[matched]
        assert np.abs(angles - separation[matched]).max() < 1e-6 * u.arcsec


def test_text_with_units_is_read_by_astropy():
    """Right ascension in hours or degrees, as its letters say."""
    table = Table({"ra": ["12h30m00s", "187d30m00s"], "dec": ["-01d30m00s", "-1.5d"]})
    other = Table({"ra": [187.5], "dec": [-1.5]})
    result = crossmatch(table, other, radius=1 * u.arcsec)
    assert result["match_index"].tolist() == [0, 0]


def test_chosen_columns(rng):
    """Columns can be named, and several coordinates must be."""
    table = Table({"ra": [1.0], "dec": [2.0], "gz2_ra": [3.0], "gz2_dec": [4.0]})
    other = Table(
        {"a": SkyCoord([1], [2], unit="deg"), "b": SkyCoord([3], [4], unit="deg")}
    )
    chosen = {"sky_columns": ("gz2_ra", "gz2_dec"), "other_sky_columns": "b"}
    result = crossmatch(table, other, radius=1 * u.arcsec, **chosen)
    assert result["separation"][0] < 1e-6
    with pytest.raises(
        ValueError, match=r"other has several coordinates, \['a', 'b'\]"
    ):
        crossmatch(table, other, radius=1 * u.arcsec)
    with pytest.raises(ValueError, match="name one with coordinates or two"):
        crossmatch(table, other, radius=1 * u.arcsec, sky_columns=("ra", "none"))
    with pytest.raises(ValueError, match="'ra' of table is not a SkyCoord"):
        crossmatch(table, other, radius=1 * u.arcsec, sky_columns="ra")
    with pytest.raises(ValueError, match="other has no positions"):
        crossmatch(table, Table({"x": [1]}), radius=1 * u.arcsec)


def test_missing_positions(rng):
    """Rows without a position stay, masked and flagged, on either side."""
    ra = MaskedColumn([1.0, 2, 3, np.nan, 5], mask=[0, 1, 0, 0, 0])
    table = Table({"ra": ra, "dec": [0.0, 0, 95, 0, 0]})
    other = Table({"ra": [5.0, np.nan, 1], "dec": [0.0, 0, np.inf], "x": [7, 8, 9]})
    for find in ("best", "mutual", "all"):
        with pytest.warns(FlaggedRowsWarning, match="3 of 5 rows have no position"):
            result = crossmatch(table, other, radius=1 * u.arcsec, find=find)
        assert result["x"].tolist() == [None, None, None, None, 7]
        assert result["match_count"].tolist() == [0, None, None, None, 1]
        flagged = plain(result["match_flags"]) & Flag.NO_POSITION != 0
        assert flagged.tolist() == [False, True, True, True, False]
    assert result.meta["astrovae"]["default"]["crossmatch"]["n_masked"] == 3


@pytest.mark.parametrize("find", ["best", "mutual", "all"])
@pytest.mark.parametrize("on", [None, "id"])
def test_empty_tables(find, on):
    """Nothing matches nothing; the columns are there all the same."""
    coords = SkyCoord([1, 2, 3], [4, 5, 6], unit="deg")
    full = QTable(
        {"id": [1, 2, 3], "sky": coords, "v": np.ones((3, 2)), "s": list("abc")}
    )
    full["flux"] = [1, 2, 3] * u.nJy
    full["time"] = Time([1, 2, 3], format="mjd")
    options = {"find": find, "on": on, "radius": None if on else 1 * u.arcsec}
    for table, other in ((full[:0], full), (full, full[:0]), (full[:0], full[:0])):
        result = crossmatch(table, other, **options)
        assert len(result) == len(table)
        assert result["v_2"].shape == (len(table), 2)
        assert result["flux_2"].unit == u.nJy
        assert np.all(result["flux_2"].mask) if len(table) else True
        assert result["match_count"].tolist() == [0] * len(table)


@pytest.mark.parametrize("kind", [Table, QTable])
def test_columns_of_every_kind_are_masked(kind):
    """Where nothing matches, whatever the type of the column."""
    table = kind({"id": [1, 2]})
    other = kind({"id": [2], "v": np.ones((1, 2)), "s": ["a"], "b": [True]})
    other["q"] = [1] * u.nJy
    other["q"].info.description = "a flux"
    other["time"] = Time([1], format="mjd")
    other["m"] = MaskedColumn([1], mask=[True])
    result = crossmatch(table, other, on="id")
    for name in ("v", "s", "b", "q", "time"):
        mask = np.asarray(result[name].mask).reshape(2, -1)
        assert mask[0].all(), name
        assert not mask[1].any(), name
    assert result["m"].mask.all()
    assert result["q"].unit == u.nJy
    assert result["q"].info.description == "a flux"
    assert "separation" not in result.colnames


def test_ids_are_exact():
    """Neighbouring 64-bit ids differ, as integers of any type and as text."""
    ids = BIG + np.arange(6)
    table = Table({"objid": ids[:4]})
    for convert in (np.asarray, lambda a: a.astype("u8"), lambda a: a.astype(">i8")):
        other = Table({"gz2_objid": convert(ids[:1:-1]), "x": np.arange(4)})
        result = crossmatch(table, other, on=("objid", "gz2_objid"))
        assert result["x"].tolist() == [None, None, 3, 2]
    texts = [Table({"id": t["objid"].astype(str)}) for t in (table, table[::-1])]
    assert crossmatch(*texts, on="id")["match_index"].tolist() == [3, 2, 1, 0]
    huge = Table({"objid": np.array([2**64 - 1, BIG], dtype="u8")})
    signed = Table({"objid": np.array([-1, BIG])})
    assert crossmatch(huge, signed, on="objid")["match_index"].tolist() == [None, 1]
    with pytest.raises(ValueError, match=r"are floats.*2\*\*53.*int64"):
        crossmatch(Table({"objid": ids.astype(float)}), table, on="objid")
    with pytest.raises(ValueError, match=r"are int64.*astype\(str\)"):
        crossmatch(table, texts[0], on=("objid", "id"))
    with pytest.raises(ValueError, match="no column 'none'"):
        crossmatch(table, table, on="none")
    with pytest.raises(ValueError, match="integers or text, got bool"):
        crossmatch(table, Table({"objid": [True]}), on="objid")
    with pytest.raises(ValueError, match="one of each table"):
        crossmatch(table, table, on=("a", "b", "c"))


def test_duplicate_ids():
    """Of several rows with one id the first is best; all are counted and flagged."""
    table = Table({"id": ["b", "a", "c", "a", ""]})
    other = Table({"id": MaskedColumn(["a", "b", "a", "x"], mask=[0, 0, 0, 1])})
    with pytest.warns(FlaggedRowsWarning, match="1 of 5 rows have no identifier"):
        best = crossmatch(table, other, on="id")
    assert best["match_index"].tolist() == [1, 0, None, 0, None]
    assert best["match_count"].tolist() == [1, 2, 0, 2, None]
    flagged = plain(best["match_flags"]) & Flag.AMBIGUOUS_MATCH != 0
    assert flagged.tolist() == [False, True, False, True, False]
    with pytest.warns(FlaggedRowsWarning):
        pairs = crossmatch(table, other, on="id", find="all")
    assert pairs["id"].tolist() == ["b", "a", "a", "c", "a", "a", ""]
    assert pairs["match_index"].tolist() == [1, 0, 2, None, 0, 2, None]
    with pytest.warns(FlaggedRowsWarning):
        mutual = crossmatch(table, other, on="id", find="mutual")
    assert mutual["match_index"].tolist() == [1, 0, None, None, None]
    record = best.meta["astrovae"]["default"]["crossmatch"]
    assert (record["n_matched"], record["n_ambiguous"], record["n_shared"]) == (3, 2, 1)


def test_proper_motions():
    """Positions are moved to the epoch of the other catalogue, from either side."""
    years = 15.5
    start = Table({"ra": [10.0, 50.0, 80.0], "dec": [60.0, 60.0, 60.0]})
    start["pmra"] = [2000.0, np.nan, -1000.0] * u.mas / u.yr
    start["pmdec"] = [-1000.0, 0, 500] * u.mas / u.yr
    # of small angles: arcseconds per year along both axes
    factor = np.cos(np.deg2rad(60.0))
    motion = np.array([[2.0, -1.0], [0, 0], [-1.0, 0.5]]) * years / 3600
    later = Table(
        {"ra": start["ra"] + motion[:, 0] / factor, "dec": start["dec"] + motion[:, 1]}
    )
    epochs = {
        "epoch": Time(2000, format="jyear"),
        "other_epoch": Time(2015.5, format="jyear"),
    }
    reversed_epochs = dict(zip(epochs, reversed(epochs.values())))
    still = crossmatch(start, later, radius=1 * u.arcsec)
    assert still["match_index"].tolist() == [None, 1, None]
    forwards = crossmatch(start, later, radius=1 * u.arcsec, **epochs)
    assert forwards["match_index"].tolist() == [0, 1, 2]
    assert forwards["separation"].max() < 0.02
    backwards = crossmatch(later, start, radius=1 * u.arcsec, **reversed_epochs)
    assert backwards["match_index"].tolist() == [0, 1, 2]
    coords = SkyCoord(
        start["ra"],
        start["dec"],
        unit="deg",
        pm_ra_cosdec=[2, 0, -1] * u.arcsec / u.yr,
        pm_dec=[-1, 0, 0.5] * u.arcsec / u.yr,
    )
    moved = crossmatch(
        Table({"sky": coords.galactic}), later, radius=1 * u.arcsec, **epochs
    )
    assert moved["match_index"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="both epoch and other_epoch"):
        crossmatch(start, later, radius=1 * u.arcsec, epoch=epochs["epoch"])
    with pytest.raises(ValueError, match="neither table has proper motions"):
        crossmatch(later, later, radius=1 * u.arcsec, **epochs)


def test_rate_of_chance(rng):
    """It is the density of the other catalogue times the area of the circle."""
    n, side = 20_000, 2.0
    ra, dec = rng.uniform(10, 10 + side, n), rng.uniform(-side / 2, side / 2, n)
    inner = (np.abs(ra - 11) < 0.8) & (np.abs(dec) < 0.8)
    # every row has its counterpart, and others by chance
    table = Table({"ra": ra[inner], "dec": dec[inner]})
    result = crossmatch(table, Table({"ra": ra, "dec": dec}), radius=8 * u.arcsec)
    record = result.meta["astrovae"]["default"]["crossmatch"]
    expected = 1 - np.exp(-n / side**2 * np.pi * (8 / 3600) ** 2)
    error = np.sqrt(expected / (8 * len(table)))
    assert record["n_matched"] == len(table)
    assert abs(record["chance_match_rate"] - expected) < 4 * error
    again = crossmatch(table, Table({"ra": ra, "dec": dec}), radius=8 * u.arcsec)
    assert (
        record["chance_match_rate"]
        == (again.meta["astrovae"]["default"]["crossmatch"]["chance_match_rate"])
    )


def test_names_and_records(catalogues, tmp_path):
    """Columns are documented; several matches stay side by side."""
    table, other = catalogues
    table.meta["astrovae"] = {"default": {"latents": {"seed": 1}}}
    other.meta["astrovae"] = {"default": {"latents": {"seed": 2}}, "b_": {"pose": {}}}
    before = [(t.copy(), t.meta) for t in (table, other)]
    result = crossmatch(table, other, radius=RADIUS)
    for name in ("separation", "match_index", "match_count", "match_flags"):
        assert result[name].info.description == COLUMNS[name].description
        assert result[name].info.meta["ucd"] == COLUMNS[name].ucd
        assert result[name].dtype == COLUMNS[name].dtype
    meta = result.meta["astrovae"]
    assert meta["default"]["latents"] == {"seed": 1}
    assert meta["default"]["latents_2"] == {"seed": 2}
    assert "pose" in meta["b_"]
    record = meta["default"]["crossmatch"]
    assert (record["n_rows"], record["n_other"]) == (60, 80)
    assert record["radius_arcsec"] == 30
    with pytest.raises(ValueError, match=r"already columns.*separation.*prefix"):
        crossmatch(result, other, radius=RADIUS)
    twice = crossmatch(result, other, radius=RADIUS, prefix="b_", suffix="_3")
    assert {"separation", "b_separation", "ra_2", "ra_3"} <= set(twice.colnames)
    for (old, old_meta), new in zip(before, (table, other)):
        assert old.colnames == new.colnames
        assert all((old[name] == new[name]).all() for name in old.colnames)
        assert old_meta == new.meta
    write_catalog(result, tmp_path / "both.fits")
    again = read_catalog(tmp_path / "both.fits")
    assert again.meta["astrovae"] == result.meta["astrovae"]
    np.testing.assert_array_equal(
        plain(again["match_index"]), plain(result["match_index"])
    )


def test_split_vectors_of_the_other_table():
    """They can be merged in the result, unless their names were changed."""
    table = Table({"id": [1, 2], "v_1": [0, 0]})
    other = split_vectors(
        Table({"id": [2], "v": np.ones((1, 2)), "w": np.ones((1, 2))})
    )
    result = merge_vectors(crossmatch(table, other, on="id"))
    assert result["w"].tolist() == [[None, None], [1, 1]]
    assert {"v_0", "v_1", "v_1_2"} <= set(result.colnames)


def test_bad_arguments(catalogues):
    """Each is named, with what to give instead."""
    table, other = catalogues
    for radius in (
        1.0,
        1 * u.pc,
        -1 * u.arcsec,
        0 * u.deg,
        [1, 2] * u.arcsec,
        np.nan * u.deg,
    ):
        with pytest.raises(ValueError, match=r"radius must be an angle.*1 \* u.arcsec"):
            crossmatch(table, other, radius=radius)
    for options in ({}, {"radius": RADIUS, "on": "id"}):
        with pytest.raises(ValueError, match=r"either radius.*or on"):
            crossmatch(table, other, **options)
    with pytest.raises(ValueError, match="find must be one of"):
        crossmatch(table, other, radius=RADIUS, find="nearest")
    with pytest.raises(TypeError, match=r"other must be an astropy Table.*from_pandas"):
        crossmatch(table, table["id", "ra"].to_pandas(), radius=RADIUS)
    table = Table({"ra": ["187.5"], "dec": ["1"]})
    with pytest.raises(ValueError, match=r"'187\.5': hours or degrees"):
        crossmatch(table, other, radius=RADIUS)
    table = Table({"ra": ["12:61:00"], "dec": ["1:00:00"]})
    with pytest.raises(ValueError, match="no sexagesimal angle"):
        crossmatch(table, other, radius=RADIUS)
    table = Table({"ra": [1] * u.pix, "dec": [1] * u.deg})
    with pytest.raises(ValueError, match="must be an angle, its unit is pix"):
        crossmatch(table, other, radius=RADIUS)


def test_crowded_radius_is_refused(monkeypatch, catalogues):
    """All pairs of a radius that makes no sense do not fill the memory."""
    table, other = catalogues
    module = importlib.import_module("astrovae.catalog.matching")
    monkeypatch.setattr(module, "_MAX_PAIRS", 1_000)
    with pytest.raises(ValueError, match=r"pairs are within 10\.0 deg.*smaller radius"):
        crossmatch(table, other, radius=10 * u.deg, find="all")


# ---------------------------------------------------------------------------
# Real catalogues
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def galaxynet(data_path):
    """9,054 SDSS galaxies."""
    return read_catalog(data_path / "catalogues" / "galaxynet_sdss_gz2_9054.csv")


def _degrees(column, hours):
    """Angles as numbers; astropy reads some of those that are text."""
    if column.dtype.kind == "f":
        return column.astype(float)
    parts = np.array([text.lstrip("+-").split(":") for text in column], dtype=float)
    sign = np.where(np.char.startswith(column, "-"), -1, 1)
    angles = sign * (parts @ [1, 1 / 60, 1 / 3600]) * (15 if hours else 1)
    some = Angle(column[::1000], unit=u.hourangle if hours else u.deg)
    np.testing.assert_allclose(some.deg, angles[::1000], rtol=1e-12)
    return angles


@pytest.mark.parametrize(
    "name", ["gz1_radec_type_50131.csv", "gz2_table5_stripe82coadd_19761.fits.gz"]
)
def test_positions_of_real_catalogues(galaxynet, data_path, name):
    """The matches are astropy's, and each row is accounted for."""
    other = read_catalog(data_path / "catalogues" / name)
    names = {column.lower(): column for column in other.colnames}
    lonlat = [_degrees(other[names[key]], key == "ra") for key in ("ra", "dec")]
    theirs = SkyCoord(*lonlat, unit="deg")
    ours = SkyCoord(galaxynet["ra"], galaxynet["dec"], unit="deg")
    index, angle, _ = ours.match_to_catalog_sky(theirs)
    for radius in (1 * u.arcsec, 2 * u.arcmin):
        result = crossmatch(galaxynet, other, radius=radius)
        assert result["objid"].tolist() == galaxynet["objid"].tolist()
        matched = angle <= radius
        assert matched.any()
        expected = np.where(matched, index, -1)
        found = plain(result["match_index"])
        # astropy's own ties, of rows at the same place, may be any of them
        tie = found != expected
        assert (
            theirs[found[tie]].separation(theirs[expected[tie]]) < 1e-3 * u.mas
        ).all()
        separation = plain(result["separation"])
        np.testing.assert_allclose(
            separation[matched], angle[matched].arcsec, atol=1e-6
        )
        i, _, _, _ = theirs.search_around_sky(ours, radius)
        counts = np.bincount(i, minlength=len(galaxynet))
        np.testing.assert_array_equal(result["match_count"], counts)
        pairs = crossmatch(galaxynet, other, radius=radius, find="all")
        assert len(pairs) == counts.sum() + (counts == 0).sum()


def test_ids_of_real_catalogues(galaxynet, data_path):
    """Every galaxy whose 64-bit id is in the other catalogue finds it."""
    other = read_catalog(data_path / "catalogues" / "sdss_oh_p50_20466.csv")
    values = dict(zip(other["objID"].tolist(), other["oh_p50"].tolist()))
    expected = [values.get(objid) for objid in galaxynet["objid"].tolist()]
    result = crossmatch(galaxynet, other, on=("objid", "objID"))
    assert result["oh_p50"].tolist() == expected
    assert 0 < sum(value is not None for value in expected) < len(galaxynet)
    assert result["objid"].tolist() == galaxynet["objid"].tolist()


def test_records_of_the_other_table_follow_its_columns():
    """They name the columns as they are now, and no record is lost."""
    one, two, three = (
        Table({"ra": [1.0], "dec": [1.0], name: [1], "latent_mean": [0.5]})
        for name in ("a", "b", "c")
    )
    entry = {"columns": ["latent_mean"], "seed": 1}
    two.meta["astrovae"] = {"default": {"latents": entry}}
    other = crossmatch(two, three, radius=RADIUS, suffix="_c")
    result = crossmatch(one, other, radius=RADIUS, suffix="_b")
    records = result.meta["astrovae"]["default"]
    assert set(records) == {"crossmatch", "crossmatch_b", "latents_b"}
    assert records["latents_b"] == {"columns": ["latent_mean_b"], "seed": 1}
    assert entry["columns"] == ["latent_mean"]
    assert "separation" in records["crossmatch"]["columns"]
    assert "separation_b" in records["crossmatch_b"]["columns"]
    assert {c for r in records.values() for c in r["columns"]} <= {*result.colnames}
    # nothing is renamed: the records alone clash
    ids = Table({"i": [1]}, meta={"astrovae": {"default": {"pose": {"seed": 1}}}})
    labels = Table({"j": [1]}, meta={"astrovae": {"default": {"pose": {"seed": 2}}}})
    records = crossmatch(ids, labels, on=("i", "j"), suffix="").meta["astrovae"]
    assert records["default"]["pose_2"] == {"seed": 2}


def test_arguments_of_other_types(catalogues):
    """What is no column, no time, no proper motion, no prefix is said to be so."""
    table, other = catalogues
    with pytest.raises(ValueError, match="on must be a column"):
        crossmatch(table, other, on=5)
    with pytest.raises(ValueError, match="epochs must be astropy times"):
        crossmatch(table, other, radius=RADIUS, epoch=2000.0, other_epoch=2015.0)
    with pytest.raises(ValueError, match="prefix must be text"):
        crossmatch(table, other, radius=RADIUS, prefix="default")
    table = Table(table, copy=True)
    table["pmra"] = table["pmdec"] = Column(np.ones(len(table)), unit="m")
    times = {"epoch": Time("J2000"), "other_epoch": Time("J2015")}
    with pytest.raises(ValueError, match="'pmra' must be a proper motion"):
        crossmatch(table, other, radius=RADIUS, **times)
