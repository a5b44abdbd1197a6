"""``python deploy.py [KEY=VALUE] ...``: the command ``bincounter deploy`` in a checkout."""

import sys

from bincounter.cli.deploy_command import main

if __name__ == "__main__":
    sys.exit(main())
