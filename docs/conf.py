# Licensed under a 3-clause BSD style license - see LICENSE
"""Configuration of Sphinx."""

import os
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sphinx_astropy.conf.v2 import *  # noqa: F403
from sphinx_astropy.conf.v2 import (
    exclude_patterns,
    extensions,
    html_theme_options,
    intersphinx_mapping,
)

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# Tutorials run in this process.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["MPLBACKEND"] = "Agg"

# -- Project ------------------------------------------------------------------

project = "astrovae"
author = "The astrovae developers"
project_copyright = f"2026-{datetime.now(tz=UTC).year}, {author}"
release = metadata.version(project)
version = ".".join(release.split(".")[:2])

# -- Content ------------------------------------------------------------------

extensions += [
    "class_pages",
    "registry_tables",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns += ["changes/*"]
highlight_language = "python3"

# The constructor is documented on the class, and pages list what a class adds
# to Keras, not all of Keras.
autoclass_content = "class"
autodoc_inherit_docstrings = False
automodapi_inheritance_diagram = False
automodsumm_inherited_members = False

# Other projects' pages are linked where the network is known to be there; the
# build itself needs none.
if os.environ.get("READTHEDOCS") == "True":
    intersphinx_mapping.update(
        {
            "pandas": ("https://pandas.pydata.org/docs/", None),
            "photutils": ("https://photutils.readthedocs.io/en/stable/", None),
            "skimage": ("https://scikit-image.org/docs/stable/", None),
            "sklearn": ("https://scikit-learn.org/stable/", None),
        }
    )
    del intersphinx_mapping["pythonloc"]
else:
    intersphinx_mapping.clear()

# References to astrovae itself must always resolve.
nitpicky = True
external = (
    "astropy|btk|collections|enum|galsim|h5py|keras|matplotlib|numpy|pandas|pathlib"
    "|photutils|scipy|skimage|sklearn"
)
builtin = "None|True|False|bool|bytes|dict|float|int|list|object|set|str|tuple"
nitpick_ignore_regex = [
    (r"py:.*", rf"({external})(\..*)?"),
    (r"py:.*", rf"{builtin}|\w*(Error|Warning)"),
]

# -- Tutorials ----------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py$",
    "image_scrapers": ("figure_scraper",),
    "within_subsection_order": "FileNameSortKey",
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1,
}

# -- HTML ---------------------------------------------------------------------

html_title = f"{project} {release}"
html_theme_options["navigation_with_keys"] = False
html_show_sourcelink = False
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
