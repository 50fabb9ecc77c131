# Licensed under a 3-clause BSD style license - see LICENSE
"""Examples are tested in the pages that people write, not in generated ones."""

collect_ignore = ["_build", "_ext", "api", "conf.py", "tutorials"]
