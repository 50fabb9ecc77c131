# Licensed under a 3-clause BSD style license - see LICENSE
"""Show the figures of tutorials, which are made without pyplot."""

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def scrape_figures(block, block_vars, gallery_conf):
    """Save the figures that a block of code has given a name."""
    paths = []
    for value in block_vars["example_globals"].values():
        if isinstance(value, Figure) and not hasattr(value, "_in_gallery"):
            path = next(block_vars["image_path_iterator"])
            value.savefig(path)
            value._in_gallery = True
            paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])


def _get_sg_image_scraper():
    """Tell Sphinx-Gallery which function it is."""
    return scrape_figures
