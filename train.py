"""``python train.py [GROUP=OPTION] [KEY=VALUE] ...``: the command ``bincounter train`` in a checkout."""

import sys

from bincounter.cli.train_command import main

if __name__ == "__main__":
    sys.exit(main())
