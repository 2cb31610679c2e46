"""`python -m selfaug` is `selfaug`."""

from __future__ import annotations

import sys

from selfaug.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
