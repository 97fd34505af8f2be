"""Lets ``python -m sned`` do what the command `sned` does. Imports the command line only."""

from __future__ import annotations

import sys

from sned.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
