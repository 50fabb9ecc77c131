# Licensed under a 3-clause BSD style license - see LICENSE
"""
Cross-match of two large catalogues: astrovae beside astropy.

Half of the rows have a counterpart. Astropy is asked for the nearest coordinate
alone, and for the same table as astrovae makes: nearest, number of candidates, and
the columns of the other catalogue, masked where nothing matches. Besides these,
astrovae estimates the rate of chance from eight shifts. Both start from
columns of numbers. By default it takes half a minute::

    python benchmarks/crossmatch.py --json crossmatch.json
"""

import os

# before NumPy is loaded
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse

import astropy.units as u
import numpy as np
from _timing import interleaved, ratio, report
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table

from astrovae.catalog import crossmatch

RADIUS = 2 * u.arcsec
FIRST_ID = 1237648720693755918


def make_catalogues(n, rng):
    """Make two tables of which half are the same galaxies, in another order."""
    tables = []
    ra, dec = rng.uniform(0, 20, 2 * n), rng.uniform(-5, 5, 2 * n)
    for start in (0, n // 2):
        rows = rng.permutation(np.arange(start, start + n))
        table = Table({"objid": FIRST_ID + rows})
        for name, values in (("ra", ra), ("dec", dec)):
            table[name] = values[rows] + rng.normal(0, 0.3 / 3600, n)
        for i in range(10):
            table[f"property_{i}"] = rng.normal(size=n)
        tables.append(table)
    return tables


def coordinates(table):
    """Make coordinates; they keep no tree from the turn before."""
    return SkyCoord(table["ra"], table["dec"], unit=u.deg)


def nearest(table, other):
    """Nearest coordinate with astropy."""
    return coordinates(table).match_to_catalog_sky(coordinates(other))


def by_hand(table, other):
    """Make the table that astrovae makes, with astropy."""
    ours, theirs = coordinates(table), coordinates(other)
    index, separation, _ = ours.match_to_catalog_sky(theirs)
    rows, _, _, _ = theirs.search_around_sky(ours, RADIUS)
    result = table.copy()
    mask = separation > RADIUS
    for name in other.colnames:
        result[f"{name}_2"] = MaskedColumn(other[name][index], mask=mask)
    result["separation"] = MaskedColumn(separation.arcsec, mask=mask)
    result["match_index"] = MaskedColumn(index, mask=mask)
    result["match_count"] = np.bincount(rows, minlength=len(table))
    return result


def main():
    """Run the comparison, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("-n", type=int, default=100_000, help="rows of each table")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    table, other = make_catalogues(options.n, np.random.default_rng(0))
    functions = {
        find: lambda find=find: crossmatch(table, other, radius=RADIUS, find=find)
        for find in ("best", "mutual", "all")
    }
    functions["on"] = lambda: crossmatch(table, other, on="objid")
    functions["astropy nearest"] = lambda: nearest(table, other)
    functions["astropy by hand"] = lambda: by_hand(table, other)
    times = interleaved(functions, repeats=options.repeats)

    ours, theirs = crossmatch(table, other, radius=RADIUS), by_hand(table, other)
    same = np.array_equal(
        ours["match_index"].filled(-1), theirs["match_index"].filled(-1)
    ) and np.array_equal(ours["match_count"], theirs["match_count"])
    record = ours.meta["astrovae"]["default"]["crossmatch"]
    results = {
        "n_rows": options.n,
        "seconds_best": float(np.median(times["best"])),
        "seconds_mutual": float(np.median(times["mutual"])),
        "seconds_all": float(np.median(times["all"])),
        "seconds_on": float(np.median(times["on"])),
        "best_over_astropy_nearest": ratio(times, "best", "astropy nearest"),
        "best_over_astropy_by_hand": ratio(times, "best", "astropy by hand"),
        "same_matches": same,
        "n_matched": record["n_matched"],
        "chance_match_rate": record["chance_match_rate"],
    }
    rows = [(name, seconds, options.n) for name, seconds in times.items()]
    report(rows, results, options.json)


if __name__ == "__main__":
    main()
