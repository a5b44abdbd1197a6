"""Self-contained pages: one file that opens from disk with no network, with style, plots and photos inside."""

import math
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from bincounter.files import write_text

ABSENT = "n/a"


def write_page(path: Path, template: str, content: dict[str, object], *, package: str = "bincounter.report") -> Path:
    """Fill a template and write the page, whole or not at all.

    Values from data are escaped; only plots are inserted as they are.

    Args:
        path: of the page.
        template: its file, which may extend those of this folder.
        content: variables of the template.
        package: the package with the folder ``templates``.

    Returns:
        ``path``.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("bincounter.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, decimals=decimals, whole=whole)
    write_text(path, environment.get_template(template).render(content))
    return path


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction in per cent, such as ``36.1 %`` for 0.3612."""
    return ABSENT if _missing(fraction) else f"{100 * fraction:.{digits}f} %"  # type: ignore[operator]


def decimals(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of decimals."""
    return ABSENT if _missing(value) else f"{value:.{digits}f}"


def whole(value: float | None) -> str:
    """Format a whole number, such as ``5,331``."""
    return ABSENT if _missing(value) else f"{value:,.0f}"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)
