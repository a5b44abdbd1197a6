"""Models at the Hugging Face Hub, ``hf://owner/name[@revision]``, by its own client and through its cache."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bincounter.errors import ConfigError, ResourceError, UserError, first_line
from bincounter.redaction import mask_text

FILES = ("best.ckpt", "config.yaml", "metrics.json")
"""Names of the files that are read; a README.md is written beside them."""

# A path has lost one of the slashes.
_ADDRESS = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True)
class HubAddress:
    """Address of a model.

    Attributes:
        repository: ``owner/name``.
        revision: a branch, a tag or a commit; ``None``: the newest.
    """

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub(name: str | Path | None) -> bool:
    """Return True if a name is one of the hub."""
    return name is not None and Path(name).as_posix().startswith("hf:/")


def parse_hub(name: str | Path) -> HubAddress:
    """Parse ``hf://owner/name[@revision]``.

    Raises:
        ConfigError: it is not of that form.
    """
    posix = Path(name).as_posix()
    found = _ADDRESS.fullmatch(posix)
    if found is None:
        shown = re.sub("^hf:/+", "hf://", posix)
        raise ConfigError(f"{shown} is not an address of the hub: write hf://owner/name or hf://owner/name@revision")
    return HubAddress(*found.groups())


def folder_for(name: str | Path, run: Path, log_dir: Path) -> Path:
    """Folder for files made of a model: its run's, or one under ``log_dir`` for a model of the hub.

    The hub's cache belongs to its library.
    """
    return log_dir / "hub" / parse_hub(name).repository if is_hub(name) else run


def download(name: str | Path) -> Path:
    """Download a model, or find it in the hub's cache, and return its ``best.ckpt``.

    Raises:
        UserError: it does not exist, or is not open to this login.
        ResourceError: the hub does not answer, and the cache lacks it.
    """
    address = parse_hub(name)
    with translate_hub_errors(address):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(address.repository, revision=address.revision, allow_patterns=list(FILES))
    checkpoint = Path(folder) / FILES[0]
    if not checkpoint.is_file():
        raise UserError(f"{address} has no {FILES[0]}: name a model that `bincounter push` wrote")
    return checkpoint


@contextmanager
def translate_hub_errors(address: HubAddress) -> Iterator[None]:
    """Translate the errors of the hub's client in this block into one sentence.

    Raises:
        UserError: the repository or the revision does not exist, or the login is not enough.
        ResourceError: the hub does not answer.
    """
    login = "log in by `hf auth login` or with HF_TOKEN"
    try:
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise ConfigError(f"{address} needs {error.name}: pip install 'bincounter[hub]'") from error
    for client in ("httpx", "httpx2"):  # of versions 1 and 2
        logging.getLogger(client).setLevel(logging.WARNING)  # else a line for each request
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{address} is gated: accept its terms on its page at the hub, and {login}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{address} does not exist or is private: correct the name, or {login}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{address}: the repository has no revision {address.revision}: name a branch, a tag or a commit"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{address} needs a login: {login}") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{address} is not a name that the hub allows ({_reason(error)}): correct it") from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(f"{address} is refused to this login ({_reason(error)}): {login}") from error
        raise ResourceError(f"{address}: the hub answers with an error ({_reason(error)}): try again") from error
    except Exception as error:
        # Several libraries raise errors for a lack of network.
        of_client = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS
        if not of_client or isinstance(error, BrokenPipeError):  # the latter is of the output, as in `| head`
            raise
        problem, step = "cannot be reached and is not in the cache", "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            problem, step = "cannot be written to the hub's cache", "make room there, or set HF_HOME"
        raise ResourceError(f"{address} {problem} ({_reason(error)}): {step}") from error


_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "hf_xet", "requests")


def _reason(error: BaseException) -> str:
    return mask_text(first_line(error)).rstrip(". ")
