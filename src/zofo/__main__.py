"""`python -m zofo`."""

from zofo.cli import main

main()
