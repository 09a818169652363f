"""``python -m epigraph`` is the command."""

from epigraph.cli import main

main()
