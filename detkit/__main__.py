"""`python -m detkit`: the same program as `detkit`."""

from __future__ import annotations

from detkit.cli.main import program

if __name__ == "__main__":
    program()
