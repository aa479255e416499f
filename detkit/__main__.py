"""`python -m detkit`: the same program as `detkit`."""

from __future__ import annotations

import sys

from detkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
