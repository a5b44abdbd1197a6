"""Pages from the root of the repository, and drawings inside of pages."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "packages/sagemaker-rehearsal/README.md": "rehearsal.md",
    "LICENSE": "licence.txt",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages, with links as they are on the site."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for each, renamed in (PAGES | {"benchmarks)": "benchmarks.md)", "docs/": ""}).items():
            text = text.replace(f"]({each}", f"]({renamed}")
        text = re.sub(r"\[([^\]]+)\]\([\w/-]+\.py\)", r"\1", text)  # the sources are no pages
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Leave the list of pages out beside the front page."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put drawings into the page itself, where they follow its light and dark colours; leave Sphinx's roles out."""

    def drawing(image: re.Match[str]) -> str:
        return f'<div class="drawing">{(ROOT / "docs/images" / image[1]).read_text(encoding="utf-8")}</div>'

    html = re.sub(r'<img alt="[^"]*" src="[./]*images/([\w-]+\.svg)" ?/?>', drawing, html)
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code>)", "", html)
