# Licensed under a 3-clause BSD style license - see LICENSE
"""Bridges to other packages: one module for each, loaded when it is asked for."""
