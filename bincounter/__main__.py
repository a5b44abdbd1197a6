"""``python -m bincounter``: the console script ``bincounter``."""

import sys

from bincounter.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
