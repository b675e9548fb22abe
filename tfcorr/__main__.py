"""`python -m tfcorr`: the same as the command `tfcorr`."""

import sys

from tfcorr.cli import main

if __name__ == "__main__":
    sys.exit(main())
