"""Rows of files and of the Hub, and what format they have; every mistake in them is named by file, line and column."""

from zofo.tasks.reading.folders import files_of, folder_origins, folders_with_rows, has_split
from zofo.tasks.reading.formats import Format, check_labels, detect, one_label
from zofo.tasks.reading.rows import Row, beside_good_row
from zofo.tasks.reading.sources import hub_origins, read_file, read_folder, read_hub

__all__ = [
    "Format",
    "Row",
    "beside_good_row",
    "check_labels",
    "detect",
    "files_of",
    "folder_origins",
    "folders_with_rows",
    "has_split",
    "hub_origins",
    "one_label",
    "read_file",
    "read_folder",
    "read_hub",
]
