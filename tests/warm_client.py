"""Program ``python ARGUMENTS`` by way of a process that has imported what it needs: see ``warm_python``."""

import json
import os  # pathlib takes long
import signal
import socket
import sys


def main(python: str, *arguments: str) -> int:
    """Have ``arguments`` run, with this process's folder, environment and outputs.

    Args:
        python: the path that this program was started by; the process listens beside it.
        arguments: of ``python``; those with an option of the interpreter but ``-P`` before a file, or of joblib, whose
            processes inherit files, are run by itself.
    """
    command = arguments[arguments[:1] == ("--",) :]
    is_module = command[:1] == ("-m",) and not command[1].startswith("joblib.")
    file = command[command[:1] == ("-P",) :][:1]
    if not is_module and (not file or file[0].startswith("-")):
        os.execv(sys.executable, [python, *arguments])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.path.join(os.path.dirname(python), "socket"))  # noqa: PTH118, PTH120
        request = json.dumps([command, os.getcwd(), dict(os.environ)]).encode()  # noqa: PTH109
        socket.send_fds(connection, [request], [0, 1, 2])
        pid = int(connection.recv(100))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        code = int(connection.recv(100) or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


sys.exit(main(*sys.argv[1:]))
