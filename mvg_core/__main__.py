"""`python -m mvg_core` is `mvg`."""

from __future__ import annotations

from mvg_core.cli import main

if __name__ == "__main__":
    main()
