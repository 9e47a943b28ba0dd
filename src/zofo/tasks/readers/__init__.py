"""Rows of files and of the Hub, and what format they have; every mistake in them is named by file, line and column."""

from zofo.tasks.readers.columns import check_present, explaining, renamed
from zofo.tasks.readers.folders import file_name, files_of, folder_origins, folders_with_rows, has_split
from zofo.tasks.readers.formats import DataFormat, check_labels, detect, single_label_error
from zofo.tasks.readers.row import Row, with_valid_example
from zofo.tasks.readers.sharegpt import turns_of
from zofo.tasks.readers.sources import hub_origins, read_file, read_folder, read_hub

__all__ = [
    "DataFormat",
    "Row",
    "with_valid_example",
    "check_labels",
    "check_present",
    "explaining",
    "renamed",
    "turns_of",
    "detect",
    "file_name",
    "files_of",
    "folder_origins",
    "folders_with_rows",
    "has_split",
    "hub_origins",
    "single_label_error",
    "read_file",
    "read_folder",
    "read_hub",
]
