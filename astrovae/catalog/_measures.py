# Licensed under a 3-clause BSD style license - see LICENSE
"""The statistics of one property beside latents, by the names of their columns."""

import numpy as np

from astrovae.catalog import _statistics as st

__all__ = ["Measures"]

# rows for neighbours and for distances: these take n log n and n**2
MAX_NEIGHBOR_ROWS = 20_000
MAX_DISTANCE_ROWS = 5_000
# more than there are variables
SPARE_ROWS = 10


class Measures:
    """Everything that does not depend on the property."""

    def __init__(self, **kwargs):
        vars(self).update(kwargs)
        self.dim = self.z.shape[1]
        self.usable = np.isfinite(self.z).all(axis=1) & (self.weights > 0)

    def measure(self, values, error):
        """All statistics of a property, by name."""
        rows = self.usable & np.isfinite(values)
        if error is not None:
            rows &= np.isfinite(error)
        n = int(rows.sum())
        row = {"n": n, "n_dropped": len(values) - n, "notes": ""}
        if not n:
            return row | {"notes": "no galaxy has it, latents and a weight"}
        size = self.size(rows)
        if size < self.dim + SPARE_ROWS or n < 2 * self.folds:
            return row | {"notes": f"{_count(n, size)} have it and latents: too few"}
        if np.ptp(values[rows]) == 0:
            return row | {"notes": "constant"}
        rng = np.random.default_rng(self.seed)
        z, y, weights = self.z[rows], values[rows], self.weights[rows]
        # of the size of 1, so that sums of squares keep their digits
        unit = np.std(y)
        y = (y - np.mean(y)) / unit
        row |= self.together(z, y, weights, rng)
        row |= self.one_by_one(z, y, weights, np.empty((n, 0)), "")
        controls = self.controls[rows]
        if self.partial:
            kept = np.isfinite(controls).all(axis=1)
            row["n_partial"] = int(kept.sum())
            size = self.size(rows & np.isfinite(self.controls).all(axis=1))
            if size < self.dim + controls.shape[1] + SPARE_ROWS:
                count = _count(row["n_partial"], size)
                row["notes"] = f"{count} have nuisances: too few"
                return row
            z, y, weights, controls = (a[kept] for a in (z, y, weights, controls))
            rows = np.flatnonzero(rows)[kept]
            chosen = st.independent_columns(controls, weights)
            controls = controls[:, chosen]
            row |= self.beside(z, y, weights, controls, rng)
            row |= self.one_by_one(z, y, weights, controls, "partial_")
        sigma = None if self.sigma is None else self.sigma[rows]
        error = None if error is None else error[rows] / unit
        found = self.planes(np.hstack([z, controls]), y, weights, sigma, error)
        for name, value in found.items():
            row[name] = value * (1 if name == "r2_ceiling" else unit)
        return row

    def size(self, rows):
        """How many galaxies of equal weight tell as much as some do."""
        return st.effective_size(self.weights[rows]) if rows.any() else 0

    def together(self, z, y, weights, rng):
        """What all latents together know."""
        n = len(y)
        fold = st.fold_numbers(n, self.folds, rng)
        linear = st.linear_predictions(z, y, weights, fold)
        products = st.joint_products(z, y[:, None], weights)
        sums = np.column_stack([weights * np.square(y - linear), products])
        sums = st.bootstrap_sums(sums, self.n_bootstrap, rng)
        moments = sums[:, 1], sums[:, 2 + self.dim], sums[:, -1]
        row = _with_interval("linear_r2", st.r2_of_sums(sums[:, 0], *moments))
        row |= self.canonical(sums[:, 1:], st.effective_size(weights))
        few = _sample(n, MAX_NEIGHBOR_ROWS, rng)
        near = st.neighbor_predictions(
            z[few], y[few], weights[few], fold[few], self.n_neighbors
        )
        w = weights[few]
        terms = np.square(y[few] - near), np.ones(len(w)), y[few], np.square(y[few])
        sums = np.column_stack([w * term for term in terms])
        sums = st.bootstrap_sums(sums, self.n_bootstrap, rng)
        row |= _with_interval("knn_r2", st.r2_of_sums(*sums.T))
        estimate, p = st.distance_correlation(z, y, weights, rng, MAX_DISTANCE_ROWS)
        return row | {"distance_correlation": estimate, "distance_correlation_p": p}

    def canonical(self, sums, n):
        """Canonical correlation, less what chance adds; its interval."""
        covariance = st.joint_covariances(sums, self.dim + 1)
        squares = np.square(st.canonical_correlations(covariance, self.dim)[:, 0])
        squares = 1 - (1 - squares) * (n - 1) / (n - self.dim - 1)
        found = squares[0], *st.r2_interval(squares)
        return _named("canonical_correlation", np.sqrt(np.clip(found, 0, 1)))

    def one_by_one(self, z, y, weights, controls, prefix):
        """Correlations with each latent, given the controls."""
        size = st.effective_size(weights) - 2 - controls.shape[1]
        others = [y, *controls.T]
        ranked = [st.Ranks(values) for values in others]
        if controls.shape[1]:
            # the ranks of what is not the same may be
            places = [rank.below(weights) for rank in ranked[1:]]
            chosen = st.independent_columns(np.stack(places, axis=1), weights)
            ranked = [ranked[0], *(ranked[1 + index] for index in chosen)]
        row = {}
        for name in ("pearson", "spearman"):
            found = []
            for latent in z.T:
                if name == "spearman":
                    ranks = [st.Ranks(latent), *ranked]
                    estimate, error = st.rank_correlation(ranks, weights)
                else:
                    columns = np.stack([latent, *others], axis=1)
                    estimate, error = st.correlation(columns, weights)
                interval = st.correlation_interval(estimate, error, size)
                found.append((estimate, *interval))
            endings = ("", "_low", "_high", "_p")
            for ending, values in zip(endings, np.transpose(found), strict=True):
                row[f"{prefix}{name}{ending}"] = values
        return row

    def beside(self, z, y, weights, controls, rng):
        """What the latents add to the nuisances."""
        fold = st.fold_numbers(len(y), self.folds, rng)
        terms = [np.ones(len(y)), y, np.square(y)]
        for columns in (controls, np.hstack([controls, z])):
            predicted = st.linear_predictions(columns, y, weights, fold)
            terms.append(np.square(y - predicted))
        sums = st.bootstrap_sums(
            np.stack(terms, axis=1) * weights[:, None], self.n_bootstrap, rng
        )
        total, first, second, alone, both = sums.T
        row = _with_interval("nuisance_r2", st.r2_of_sums(alone, total, first, second))
        return row | _with_interval("partial_r2", 1 - both / alone)

    def planes(self, x, y, weights, sigma, error):
        """Slopes with and without the errors of the latents."""
        row = {}
        found, uncertain, scatter = st.slopes(x, y, weights)
        row["slope"], row["slope_err"] = found[: self.dim], uncertain[: self.dim]
        if sigma is not None and self.error_model == "classical":
            known = np.isfinite(sigma).all(axis=1)
            variances = np.zeros((known.sum(), x.shape[1]))
            variances[:, : self.dim] = np.square(sigma[known])
            x, y, weights = x[known], y[known], weights[known]
            error = None if error is None else error[known]
            found, uncertain = np.full((2, x.shape[1]), np.nan)
            scatter = np.nan
            if known.sum() >= x.shape[1] + SPARE_ROWS:
                found, uncertain, scatter = st.slopes(x, y, weights, variances)
        if sigma is not None:
            row["eiv_slope"] = found[: self.dim]
            row["eiv_slope_err"] = uncertain[: self.dim]
        if error is not None and len(y):
            variance = np.average(np.square(error), weights=weights)
            row["intrinsic_scatter"] = np.sqrt(np.maximum(scatter - variance, 0))
            spread = np.cov(y, aweights=weights)
            row["r2_ceiling"] = float(np.clip(1 - variance / spread, 0, 1))
        return row

    def audit(self, nuisances):
        """R2 of each latent and of all of them, from nuisances."""
        rows = self.usable & np.isfinite(nuisances).all(axis=1)
        n = int(rows.sum())
        size = self.size(rows)
        if size < nuisances.shape[1] + SPARE_ROWS or n < 2 * self.folds:
            return None
        rows = np.flatnonzero(rows)
        rng = np.random.default_rng(self.seed)
        rows = rows[_sample(n, MAX_NEIGHBOR_ROWS, rng)]
        z, weights = self.z[rows], self.weights[rows]
        z = z - np.average(z, axis=0, weights=weights)
        columns = nuisances[rows]
        columns = columns[:, st.independent_columns(columns, weights)]
        if not columns.shape[1]:
            return None
        places = [st.Ranks(column).below(weights) for column in columns.T]
        fold = st.fold_numbers(len(rows), self.folds, rng)
        predicted = {
            "linear_r2": st.linear_predictions(columns, z, weights, fold),
            "knn_r2": st.neighbor_predictions(
                np.stack(places, axis=1), z, weights, fold, self.n_neighbors
            ),
        }
        found = [{"n": n} for _ in range(self.dim + 1)]
        for name, values in predicted.items():
            terms = [np.square(z - values), z, np.square(z), np.ones((len(z), 1))]
            sums = np.hstack(terms) * weights[:, None]
            sums = st.bootstrap_sums(sums, self.n_bootstrap, rng)
            residual, first, second = np.split(sums[:, :-1], 3, axis=1)
            total = second - np.square(first) / sums[:, -1:]
            residual, total = (
                np.column_stack([part, part.sum(axis=1)]) for part in (residual, total)
            )
            draws = 1 - residual / np.where(total > 0, total, np.nan)
            for row, column in zip(found, draws.T, strict=True):
                row.update(_with_interval(name, column))
        return found


def _count(n, size):
    """Say how many galaxies there are, and what their weights leave of them."""
    few = "" if round(size) == n else f", by their weights as good as {size:.1f},"
    return f"{n} galaxies{few}"


def _sample(n, limit, rng):
    """Rows to use, at random if there are too many."""
    if n <= limit:
        return np.arange(n)
    return np.sort(rng.choice(n, limit, replace=False))


def _with_interval(name, draws):
    """R2, the first of the draws, and its interval."""
    return _named(name, (draws[0], *st.r2_interval(draws)))


def _named(name, found):
    """An estimate and the ends of its interval, by name."""
    endings = ("", "_low", "_high")
    return {name + end: float(x) for end, x in zip(endings, found, strict=True)}
