"""Rows of files and of the Hub, and what format they have; every mistake in them is named by file, line and column."""

from zofo.tasks.reading.formats import Format, check_labels, detect, one_label
from zofo.tasks.reading.rows import Row, beside_good_row
from zofo.tasks.reading.sources import file_of, folder_origins, hub_origins, read_file, read_folder, read_hub

__all__ = [
    "Format",
    "Row",
    "beside_good_row",
    "check_labels",
    "detect",
    "file_of",
    "folder_origins",
    "hub_origins",
    "one_label",
    "read_file",
    "read_folder",
    "read_hub",
]
