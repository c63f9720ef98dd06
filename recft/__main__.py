"""`python -m recft` is the command line."""

from recft.cli import main

main()
