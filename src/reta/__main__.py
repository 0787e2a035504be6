"""``python -m reta``."""

from reta.cli import main

main()
