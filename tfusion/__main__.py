"""`python -m tfusion` is the command `tfusion`."""

import sys

from tfusion.cli import main

if __name__ == "__main__":  # worker processes import this file too
  sys.exit(main())
