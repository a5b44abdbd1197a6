"""Masks of passwords, tokens and keys in everything that a run saves or prints."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")  # of camelCase, snake_case and kebab-case
_SECRET_WORDS = _words(
    "password passwords passwd pwd pw passphrase passphrases secret secrets token credential credentials auth bearer "
    "authorization jwt"
)
# In one word without capitals, as in PGPASSWORD and apikey.
_SECRET_PARTS = re.compile(
    r"password|passwd|passphrase|(?:api|access|secret|private|auth|account)keys?|(?:auth|access|session|refresh)tokens?"
    r"|clientsecret"
)
_KEY_OWNERS = _words(  # "key" alone is a key of a mapping, of S3 or of a keyboard
    "api access private secret signing encryption master shared account ssh auth aws azure gcp wandb comet neptune "
    "openai huggingface hf mlflow license session service webhook admin"
)
_PASS_OWNERS = _words("db user smtp mysql pg postgres redis root admin ftp mail http proxy")
# Words after which a name is about a secret or a token, without being one.
_HARMLESS_ENDINGS = _words(
    "count counts length len size limit type file path dir url uri name arn policy field header method mode dim dims "
    "index budget ttl expiry expires timeout lifetime provider endpoint host port enabled required scheme mixer mlp "
    "drop"
)
_TOKENS_OF_TEXT = _words(
    "cls class pad eos bos mask sep unk special register image dist distillation num n max min per"
)

_HARMLESS_VALUES = ("", "null", "None", "true", "false", "True", "False", MASK)
_INNER = re.compile(r"[{,]\s*['\"]?([\w.-]+)['\"]?\s*:")
_VALUE = r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s&;,'\"#<>()\[\]{}]+)"
_ASSIGNED = re.compile(rf"(?<![\w.$-])([\w.+~/@-]*\w)(\s*=\s*){_VALUE}")  # also in a DSN, JDBC and a query
# Quotes as in a printed list: ['--token', 'abc'].
_FLAG = re.compile(rf"(?<![\w-])(--?[A-Za-z][\w-]*)(\s+|\s*,\s*|['\"]\s*,\s*(?=['\"][^-])){_VALUE}")
_QUOTED_PAIR = re.compile(r"([\"'])([\w.-]+)\1(\s*:\s*)(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\d+)")
_FLOW_MAPPING = re.compile(r"\{[^{}]*")  # up to one inside it
_FLOW_PAIR = re.compile(r"([{,]\s*)([\w.-]+)(\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s,'\"][^,\n]*)")
_YAML_LINE = re.compile(r"^(\s*(?:- )?)([\w.-]+)(: +)(\"[^\"]*\"|'[^']*'|\S+)\s*$", re.MULTILINE)
# A password may hold a slash; a port and a path are none.
_LOGIN = re.compile(r"(?<=://)(?:[^/\s]+|[^/\s:@\[]*:(?!\d+/)[^\s@]+)(?=@)")
_ORACLE_LOGIN = re.compile(r"(?<=:thin:)[^/\s@]+/[^\s@]+(?=@)")
_SIGNED = re.compile(
    r"([?&;](?:sig|signature|awsaccesskeyid|googleaccessid|x-(?:amz|goog|oss)-(?:signature|credential|security-token))=)"
    r"[^&#\s'\"<>]+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(\b[\w-]*(?:authorization|api-?key|(?:auth|security|access)-token|cookie)[\"']?\s*:\s*[\"']?)[^\r\n\"']+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=-]{12,}", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# Keys that their issuers gave a recognisable form.
_ISSUED = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[oprsu]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|AIza[\w-]{35}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+)"
)


def is_secret_name(name: str) -> bool:
    """Return True if the value of a setting, variable, parameter or header of this name is a secret.

    Args:
        name: of any spelling, such as ``db.password``, ``dbPassword``, ``DB_PASSWORD`` or ``--db-password``.
    """
    return any(_is_secret([word.lower() for word in _WORDS.findall(part)]) for part in re.split(r"[./@:]", name))


def _is_secret(words: list[str]) -> bool:
    if not words or words[-1] in _HARMLESS_ENDINGS or "per" in words:
        return False
    if any(_SECRET_PARTS.search(word) and word != "passwordless" for word in words):
        return True
    for before, word in zip(["", *words], words, strict=False):
        if word == "token" and (before in _TOKENS_OF_TEXT or words[-1] in ("id", "ids")):
            continue
        if word in _SECRET_WORDS:
            return True
        if word in ("key", "keys") and before in _KEY_OWNERS:
            return True
        if word == "tokens" and before in ("access", "api", "auth", "refresh", "session", "secret"):
            return True
        if word == "pass" and (len(words) == 1 or before in _PASS_OWNERS):
            return True
        if word == "signature" and before in ("amz", "access"):
            return True
    return False


def mask_secrets(node: Any, name: str = "") -> Any:
    """Copy plain containers with the values of secret names, and secrets in texts, masked."""
    if isinstance(node, Mapping):
        named = next((str(node[key]) for key in ("Name", "Key", "name", "key") if isinstance(node.get(key), str)), "")
        # Everything below a secret name is secret, too.
        below = name if is_secret_name(name) else ""
        return {
            key: mask_secrets(value, below or (named if key in ("Value", "value") and named else str(key)))
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        flags = ["", *(each if isinstance(each, str) and each.startswith("-") else "" for each in node)]
        names = [name] * len(node) if is_secret_name(name) else flags
        return [mask_secrets(value, each) for value, each in zip(node, names, strict=False)]
    if node is None or isinstance(node, bool) or not (isinstance(node, str) or is_secret_name(name)):
        return node
    if is_secret_name(name):
        return node if node in _HARMLESS_VALUES else MASK
    return mask_argument(node) if _OVERRIDE.match(node) else mask_text(node)


_OVERRIDE = re.compile(r"[+~]{0,2}[\w./@-]+=")


def mask_argument(argument: str) -> str:
    """Mask the value of a command-line argument if its key is a secret name, and secrets in it."""
    key, equals, value = argument.partition("=")
    secret = is_secret_name(key) or any(is_secret_name(inner) for inner in _INNER.findall(value))
    return f"{key}={MASK}" if equals and secret and value not in _HARMLESS_VALUES else mask_text(argument)


def mask_text(text: str) -> str:
    """Mask secrets in a text: a message, a URL, a DSN, a command line, a header."""
    text = _PEM.sub(MASK, text)
    text = _ORACLE_LOGIN.sub(MASK, _LOGIN.sub(MASK, text))
    text = _HEADER.sub(rf"\1{MASK}", _SIGNED.sub(rf"\1{MASK}", text))
    text = _ISSUED.sub(MASK, _BEARER.sub(rf"\1{MASK}", text))
    text = _ASSIGNED.sub(lambda found: _masked(found, 1, 3), text)
    text = _FLAG.sub(lambda found: _masked(found, 1, 3), text)
    text = _QUOTED_PAIR.sub(lambda found: _masked(found, 2, 4), text)
    text = _FLOW_MAPPING.sub(lambda flow: _FLOW_PAIR.sub(lambda found: _masked(found, 2, 4), flow[0]), text)
    return _YAML_LINE.sub(lambda found: _masked(found, 2, 4), text)


def _masked(found: re.Match[str], name: int, value: int) -> str:
    """Mask one group of a match if another group is a secret name, else the secrets in it."""
    given = found[value]
    quote = given[0] if given[0] in "'\"" else ""
    inner = given[1:-1] if quote else given
    if not is_secret_name(found[name]):
        masked = mask_text(inner)
    elif inner in _HARMLESS_VALUES:
        masked = inner
    else:
        masked = MASK
    start, end = found.start(value) - found.start(), found.end(value) - found.start()
    return found[0][:start] + quote + masked + quote + found[0][end:]
