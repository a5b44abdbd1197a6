"""Tab completion of ``bincounter`` in bash: names of commands, their options, and overrides by Hydra's completion."""

import io
import os
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout

from bincounter.errors import UserError

FLAGS = ("-sc", "--shell-completion")
"""Hydra's options for completion, which ``bincounter`` itself has, too."""

_QUERY = "query=bash"
_TAKE_OVERRIDES = {"train": "train", "deploy": "deploy", "explore": "train", "arrange": "train", "prepare": "train"}
_INSTALL = r"""
_bincounter() {
    local line=${COMP_LINE:0:COMP_POINT} split= candidates each
    local word=${line##*[[:space:]]}
    # not compgen -W, which runs $(...) in a file's name
    IFS=$' \t\n' read -rd '' -a candidates < <("${COMP_WORDS[0]}" -sc query=bash -- "$line" 2>/dev/null)
    # readline replaces what stands behind the last of its word breaks
    [[ $COMP_WORDBREAKS == *=* ]] && split=${word%"${word##*[=:]}"}
    COMPREPLY=()
    for each in "${candidates[@]}"; do
        [[ $each == "$word"* ]] && printf -v each %q "${each#"$split"}" && COMPREPLY+=("$each")
    done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} != *[=./] ]]; then COMPREPLY[0]+=" "; fi
}
complete -o nospace -o default -F _bincounter bincounter
"""


def wants_completion(arguments: Sequence[str]) -> bool:
    """Return True if arguments are for this module, and not for Hydra's own query of one app."""
    asked = [word for word in arguments if word in FLAGS]
    return bool(asked) and (arguments[0] in FLAGS or any(word.startswith(("install=", "uninst")) for word in arguments))


def run_completion(
    arguments: Sequence[str], commands: Mapping[str, ArgumentParser], run_hydra_app: Callable[..., int]
) -> int:
    """Print the script to install, or candidates for the end of a line; returns the exit code.

    Args:
        arguments: of the command.
        commands: parsers of the commands, by name.
        run_hydra_app: called with a command and its arguments, prints Hydra's candidates for ``COMP_LINE``.

    Raises:
        UserError: the shell is not bash.
    """
    if _QUERY in arguments:
        return _complete(arguments[-1], commands, run_hydra_app)
    if "install=bash" in arguments:
        print(_INSTALL.strip())
    elif "uninstall=bash" in arguments:
        print("complete -r bincounter; unset -f _bincounter")
    else:
        raise UserError('Completion is for bash alone: eval "$(bincounter -sc install=bash)"')
    return 0


def _complete(line: str, commands: Mapping[str, ArgumentParser], run_hydra_app: Callable[..., int]) -> int:
    """Print candidates for the last word of a line; none if file names are to be completed."""
    before, word = line[: len(line) - len(line.rsplit(" ", maxsplit=1)[-1])], line.rsplit(" ", maxsplit=1)[-1]
    try:
        words = shlex.split(before)[1:]
    except ValueError:  # a quote is open
        return 0
    if not words:
        print("\n".join(commands))
    elif word.startswith("-") and words[0] in commands and words[0] not in ("train", "deploy"):
        print("\n".join(sorted(set(re.findall(r"(?<!\S)--?[a-z][\w-]*", commands[words[0]].format_help())))))
    elif words[0] in _TAKE_OVERRIDES:
        multirun = ["-m"] if {"-m", "--multirun"} & set(words) else []
        given = [each for each in words[1:] if "=" in each and not re.search(r"\s", each)]
        folder = re.search(r"(?:--config-dir|-cd)[= ](\S+)", shlex.join(words))
        options = ["--config-dir", folder[1]] if folder else []
        deleted = word.startswith("~")  # Hydra completes no settings behind it
        os.environ["COMP_LINE"] = " ".join(["bincounter", *multirun, *given, word.removeprefix("~")])
        with redirect_stdout(io.StringIO()) as found:
            code = run_hydra_app(_TAKE_OVERRIDES[words[0]], *options, "-sc", _QUERY)
        for each in found.getvalue().splitlines():
            print(f"~{each.rstrip('=')}" if deleted else each)
        return code
    return 0
