"""`python -m rayembed` is the command `rayembed`."""

from rayembed.cli.main import main

main()
