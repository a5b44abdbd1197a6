"""The pages: their commands, the reference made from the sources, and the site."""

import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import REPOSITORY
from omegaconf import DictConfig, OmegaConf

from bincounter.cli.composition import compose
from bincounter.cli.hydra_internals import parse_overrides, split_jobs
from bincounter.cli.main import _parser

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAM = r"(?:bincounter|\S*python (?:train|deploy)\.py|python -m bincounter)"
LOADED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src"}


def commands_of(page: Path) -> list[str]:
    """Our commands on a page: lines of its blocks, and commands inside its text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [
        each.replace("\\|", "|") for each in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]
    commands = [each for each in lines + inline if re.match(rf"{PROGRAM} [^.]", each)]
    return [each.replace("$BUCKET", "my-bucket") for each in commands if not re.search("COMMAND|=$", each)]


def test_every_page_has_commands() -> None:
    counts = {page.name: len(commands_of(page)) for page in PAGES}
    assert counts["README.md"] >= 5 and counts["train.md"] > 20 and sum(counts.values()) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page: Path) -> None:
    for line in commands_of(page):
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        words = words[next(n for n, word in enumerate(words) if word in ("bincounter", "train.py", "deploy.py")) :]
        command, *given = [words[0].removesuffix(".py"), *words[1:]] if words[0] != "bincounter" else words[1:]
        assert command in _parser()[1], line
        if command not in ("train", "deploy") and given:
            arguments, rest = _parser()[0].parse_known_args([command, *given])
            assert not [word for word in rest if word.startswith("-")], line
            given = [*arguments.overrides, *rest] if "overrides" in arguments else []
            given += ["debugger=tensors"] if command == "rules" else []
        overrides = parse_overrides([word for word in given if not word.startswith("--") and word not in ("-m", "job")])
        searched = [each.key_or_group for each in overrides if each.is_interval_sweep()]
        (job, *_) = split_jobs([each for each in overrides if each.key_or_group not in searched])
        folders = [REPOSITORY / word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
        config_name = "deploy" if command == "deploy" else "train"
        cfg = compose(job, config_name=config_name, config_dir=next(iter(folders), None))
        assert all(OmegaConf.select(cfg, key) is not None for key in searched), line


@pytest.fixture(scope="module")
def reference() -> Any:
    """The program that makes the reference of settings."""
    pytest.importorskip("mkdocs", reason="the pages are built by mkdocs: pip install 'bincounter[docs]'")
    spec = importlib.util.spec_from_file_location("reference_of_settings", REPOSITORY / "docs/hooks/settings.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def leaves(node: DictConfig, prefix: str = "") -> set[str]:
    """Keys of all values of a configuration."""
    found = set()
    for name in map(str, node):
        key = f"{prefix}{name}"
        inner = None if OmegaConf.is_missing(node, name) else node._get_node(name)
        if isinstance(inner, DictConfig) and not inner._is_none() and len(inner):
            found |= leaves(inner, f"{key}.")
        elif name not in ("_target_", "kind"):
            found.add(key)
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ["train", "data=abid", "model/optimizer=sgd", "debugger=tensors", "profiler=pytorch", "launcher=rehearsal"],
        ["train", "model=cnn", "objective=neighbour", "trainer=ddp", "callbacks=[default,ema,early_stopping]"],
        ["train", "logger=[csv,tensorboard,mlflow,wandb]", "debugger=smdebug", "hparams_search=sagemaker_tuner"],
        ["train", "hparams_search=optuna", "hparams_search/sampler=nsgaii", "hparams_search/pruner=hyperband"],
        ["deploy"],
        ["deploy", "target=async"],
        ["deploy", "target=serverless"],
    ],
    ids=" ".join,
)
def test_every_setting_is_in_the_reference(reference: Any, overrides: list[str]) -> None:
    app, *chosen = overrides
    described = {row.key: row.description for row in reference.settings(app)}
    cfg = compose(chosen, config_name=app)
    keys = leaves(cfg) - {group for group, _ in reference.reference(app)}  # such as launcher=local, which sets nothing
    keys = {key for key in keys if not key.startswith("hparams_search.space.")}
    assert len(keys) > 10
    assert {key for key in keys if not described.get(key)} == set()


@pytest.mark.parametrize("app", ["train", "deploy"])
def test_every_setting_is_described(reference: Any, app: str) -> None:
    assert [row.key for row in reference.settings(app) if not row.description] == []


def test_a_setting_has_its_type_default_and_bounds(reference: Any) -> None:
    rows = {row.key: row for row in reference.settings("train")}
    size = rows["data.image_size"]
    assert (size.type, size.default, size.allowed) == ("int", "224", "≥ 16, ≤ 1,024")
    assert size.description == "pixels, both sides; the aspect ratio is not kept"
    assert rows["data.split.method"].allowed == "`grouped`, `given`, `random`"
    assert rows["launcher.usd_per_hour"].type == "float or null" and rows["launcher.usd_per_hour"].allowed == "> 0"
    assert rows["trainer.max_epochs"].default == "10"
    page = reference.settings_page("train")
    assert "Default: `model=resnet50`." in page and "Sets `model.weights=IMAGENET1K_V2`." in page


class Loads(HTMLParser):
    """Addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag != "link" or values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get(LOADED.get(tag, "")) or "")


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Built as ``make docs`` builds it: a warning, such as a broken link, is an error."""
    pytest.importorskip("material", reason="the site is built by mkdocs-material: pip install 'bincounter[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert [each for each in loads.found if re.match(r"(https?:)?//", each)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    assert "data.batch_size" in (site / "reference/train/index.html").read_text(encoding="utf-8")
    commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in commands for name in _parser()[1])
    assert "<svg" in (site / "architecture/index.html").read_text(encoding="utf-8").split("<article")[1]
