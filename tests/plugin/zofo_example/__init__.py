"""A distribution with parts for zofo, as somebody else would write it; tests/test_plugins.py installs it."""
