"""Windows, as far as it is known here: a process without the modules and functions that only POSIX systems have."""

from pathlib import Path

from commands import Run

# Other packages keep what is taken away: they have tests of their own on Windows.
PROGRAM = """
import ctypes, fcntl, importlib, os, pkgutil, signal, sys, types
from pathlib import Path

import bincounter

def everything():
    names = [each.name for each in pkgutil.walk_packages(bincounter.__path__, "bincounter.")]
    return [importlib.import_module(name) for name in names if not name.endswith(("__main__", "smdebug.hook"))]

def locking(descriptor, mode, length):  # like LockFileEx: a range of bytes belongs to one handle
    place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
    if holders.setdefault(place, descriptor) != descriptor:
        raise PermissionError(13, "Permission denied")
    assert (place[1], mode) == (0, 2)  # LK_NBLCK

holders = {}
everything()
for name in [name for name in sys.modules if name.partition(".")[0] in ("bincounter", "hydra_plugins")]:
    del sys.modules[name]
for name in ("fcntl", "resource", "pty", "termios", "tty", "pwd", "grp", "syslog", "posix"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
for name in [name for name in sys.modules if name.partition(".")[0] == "portalocker"]:
    del sys.modules[name]
os.name = "nt"
import portalocker  # its locks for Windows
os.name = "posix"
for owner, names in {
    os: "fork forkpty getuid geteuid getgid setsid getpgid killpg mkfifo nice posix_fadvise posix_fallocate pread"
    " pwrite sched_getaffinity sendfile statvfs fchmod chown wait WNOHANG O_DIRECTORY O_NOFOLLOW O_NONBLOCK",
    signal: "SIGKILL SIGHUP SIGALRM SIGQUIT SIGCHLD SIGPIPE SIGSTOP SIGUSR1 SIGPROF pthread_sigmask setitimer",
}.items():
    for name in names.split():
        delattr(owner, name)

def library(name, *arguments, **options):  # as CDLL takes its name there
    raise TypeError("argument of type 'NoneType' is not iterable")

ctypes.CDLL, sys.platform = library, "win32"
print(len(everything()))
from bincounter.files import lock, write_text

path = Path(sys.argv[1])
write_text(path, "content")
with path.open("r+") as mine, path.open() as other:
    print(mine.read(3), lock(mine, wait=0), mine.read(), lock(other, wait=0, shared=True), flush=True)
os._exit(0)  # what other packages do at exit needs the functions
"""


def test_every_module_is_imported_and_a_lock_has_one_holder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run(str(tmp_path / "program.py"), str(tmp_path / "file.txt"))
    modules, locked = done.stdout.splitlines()
    assert int(modules) > 150
    assert locked == "con True tent False"
