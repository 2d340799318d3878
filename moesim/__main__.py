"""``python -m moesim`` is the ``moesim`` command."""

import sys

from moesim.cli import main

if __name__ == "__main__":
    sys.exit(main())
