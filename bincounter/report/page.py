"""Self-contained pages: one file that opens from disk with no network, with style, plots and photos inside."""

import functools
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from bincounter.files import write_text
from bincounter.number_format import decimals, percent, whole


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
    write_text(path, environment(package).get_template(template).render(content))
    return path


@functools.cache
def environment(package: str) -> Environment:
    """Templates of a package, each compiled once in a process."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("bincounter.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(percent=percent, decimals=decimals, whole=whole)
    return found
