"""Rows of files and of the Hub, and what format they have; every mistake in them is named by file, line and column."""
