"""`python -m raysweep` is the command `raysweep`."""

from raysweep.cli.app import main

if __name__ == "__main__":
    main()
