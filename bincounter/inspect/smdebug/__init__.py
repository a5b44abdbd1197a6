"""``debugger=smdebug``: SageMaker Debugger's own hook in a run; ``smdebug.trials.create_trial`` reads what it saved.

smdebug runs in an environment of its own (``make install-smdebug``); elsewhere importing this package says so.
"""

import os

from bincounter.config.smdebug import require_smdebug

require_smdebug()
os.environ.setdefault("SMDEBUG_LOG_LEVEL", "warning")  # it tells each parameter's size otherwise, on stdout
