"""`python -m rayembed` is the command `rayembed`."""

from rayembed.cli import main

main()
