"""The one sentence that answers a value outside a fixed set of names."""

from collections.abc import Iterable
from difflib import get_close_matches

from bincounter.errors import ConfigError


def check_choice(key: str, value: object, allowed: Iterable[str], where: str = "") -> None:
    """Refuse a value that is none of the allowed names.

    Args:
        key: the override that sets the value.
        value: what it was set to.
        allowed: the names.
        where: said after the names, such as ``" for resnet18"``.

    Raises:
        ConfigError: names the key, what was allowed and the nearest name.
    """
    names = list(allowed)
    if value in names:
        return
    by_lower = {name.lower(): name for name in names}
    nearest = get_close_matches(str(value).lower(), by_lower, n=1)
    hint = f"; did you mean {by_lower[nearest[0]]}?" if nearest else "."
    raise ConfigError(f"{key}={value} is not one of {', '.join(names)}{where}{hint}")
