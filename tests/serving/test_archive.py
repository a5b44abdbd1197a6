"""Archives: reproducible bytes, contents, model card, foreign code, and refusals of damaged ones."""

import gzip
import io
import json
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from bins import COUNTS
from commands import REPOSITORY
from served_runs import checkpoint_alone

from bincounter.cli.deploy_command import pack_and_check
from bincounter.cli.hydra_app import compose
from bincounter.config.deploy_schema import check_deploy
from bincounter.errors import BinCounterError, UserError
from bincounter.serving.application.answers import Limits
from bincounter.serving.packing.archive import Package, PackageSettings, package, read_package, record_packed
from bincounter.serving.packing.tarball import unpack, write_tarball


@pytest.fixture(scope="module")
def packed(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The archive of a trained run."""
    return package(
        served_run / "checkpoints/best.ckpt", PackageSettings(tmp_path_factory.mktemp("packed") / "model.tar.gz")
    )


@pytest.fixture(scope="module")
def unpacked(packed: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(packed.path, tmp_path_factory.mktemp("unpacked") / "model")


def test_archive_has_its_files_with_checksums_for_sha256sum(unpacked: Path, packed: Package) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert names >= {
        "weights.pt",
        "model.json",
        "training.yaml",
        "config.yaml",
        "deployment.py",
        "code/inference.py",
        "code/requirements.txt",
        "README.md",
        "checksums.sha256",
    }
    assert "code/bincounter/config/__init__.py" not in names
    for path in (unpacked / "code/bincounter").rglob("*.py"):
        own = REPOSITORY / "bincounter" / path.relative_to(unpacked / "code/bincounter")
        assert path.read_bytes() == own.read_bytes()
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "checksums.sha256"], cwd=unpacked, capture_output=True, check=False
    )
    assert checked.returncode == 0
    assert subprocess.run(["gzip", "--test", str(packed.path)], check=False).returncode == 0
    assert all(line.startswith("#") for line in (unpacked / "code/requirements.txt").read_text().splitlines())


def test_model_json_and_weights_are_what_the_application_reads(unpacked: Path, packed: Package) -> None:
    about = json.loads((unpacked / "model.json").read_text())
    assert about["model"] == packed.model
    assert about["counts"] == list(COUNTS)
    assert about["description"]["model"]["weights"] is None
    assert "optimizer" not in about["description"]["model"] or about["description"]["model"]["optimizer"] is None
    assert about["task_name"] == "train"
    weights = torch.load(unpacked / "weights.pt", weights_only=True)
    assert {name.partition(".")[0] for name in weights} <= {"backbone", "head", "objective"}
    served = yaml.safe_load((unpacked / "config.yaml").read_text())
    assert served["applications"][0]["import_path"] == "deployment:app"


def test_card_has_scores_with_baselines_and_no_local_path(unpacked: Path, served_run: Path) -> None:
    card = (unpacked / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    scores = json.loads((served_run / "metrics.json").read_text())["test"]
    assert front["license"] == "unknown"
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == scores["accuracy"]
    assert f"On {scores['n']} test photos" in card
    assert f"{100 * scores['accuracy']:.1f} % | {100 * scores['majority_accuracy']:.1f} %" in card
    assert str(served_run.parent) not in card


def test_checkpoint_without_a_run_is_packed_with_unknown_scores(tmp_path: Path) -> None:
    made = package(checkpoint_alone(tmp_path), PackageSettings(tmp_path / "model.tar.gz"))
    card = (unpack(made.path, tmp_path / "model") / "README.md").read_text()
    assert "Unknown: there are no scores" in card
    assert not (tmp_path / "model/training.yaml").exists()


def test_model_id_depends_on_weights_and_precision_only(packed: Package, tmp_path: Path) -> None:
    def id_of(checkpoint: Path, **settings: object) -> str:
        return package(checkpoint, PackageSettings(tmp_path / "a.tar.gz", **settings)).model  # type: ignore[arg-type]

    first = checkpoint_alone(tmp_path / "first")
    assert id_of(first) == id_of(first, limits=Limits(max_batch=1))
    assert id_of(first) != id_of(first, precision="bf16")
    assert id_of(first) != id_of(checkpoint_alone(tmp_path / "second", seed=1)) != packed.model


def test_photos_of_abid_bring_their_licence_into_the_card(served_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "split.csv", "checkpoints/last.ckpt"):
        (run / name).write_bytes((served_run / name).read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["layout"]["_target_"] = "bincounter.data.layouts.Abid"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    made = package(run / "checkpoints/last.ckpt", PackageSettings(tmp_path / "model.tar.gz"))
    card = (unpack(made.path, tmp_path / "model") / "README.md").read_text()
    assert "CC BY-NC-SA 3.0 US" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-nc-sa-3.0"


def test_foreign_model_packs_its_files_and_pins_its_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, site = tmp_path / "own", tmp_path / "site"
    (own / "mynets").mkdir(parents=True)
    (own / "mynets/__init__.py").write_text("")
    (own / "mynets/net.py").write_text("from bincounter.model.backbones import cnn\nimport mysizes, fromindex\n\n\n"
                                       "def net():\n    return cnn(mysizes.WIDTH, 3)\n")  # fmt: skip
    (own / "mysizes.py").write_text("WIDTH = 8\n")
    (site / "FromIndex-1.2.dist-info").mkdir(parents=True)
    (site / "FromIndex-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: FromIndex\nVersion: 1.2+cpu\n")
    (site / "FromIndex-1.2.dist-info/top_level.txt").write_text("fromindex\n")
    (site / "fromindex.py").write_text("")
    for folder in (own, site):
        monkeypatch.syspath_prepend(str(folder))
    checkpoint = checkpoint_alone(tmp_path, backbone={"_target_": "mynets.net.net"})
    with pytest.raises(UserError, match=r"mynets\.net\.net, which is not part of bincounter"):
        package(checkpoint, PackageSettings(tmp_path / "model.tar.gz"))
    made = package(checkpoint, PackageSettings(tmp_path / "model.tar.gz"), trusted=["mynets"])
    code = unpack(made.path, tmp_path / "model") / "code"
    assert (code / "mynets/net.py").read_bytes() == (own / "mynets/net.py").read_bytes()
    assert (code / "mysizes.py").exists()
    assert (code / "requirements.txt").read_text() == "FromIndex==1.2\n"


def test_a_module_named_as_one_of_the_archives_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inference.py").write_text(
        "from bincounter.model.backbones import cnn\n\n\ndef net():\n    return cnn(8, 3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = checkpoint_alone(tmp_path, backbone={"_target_": "inference.net"})
    with pytest.raises(UserError, match="rename it"):
        package(checkpoint, PackageSettings(tmp_path / "model.tar.gz"), trusted=["inference"])


def test_what_cannot_be_packed_or_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for name, expected in {"none.ckpt": "does not exist", "text.ckpt": "not a checkpoint"}.items():
        with pytest.raises(UserError, match=expected):
            package(tmp_path / name, PackageSettings(tmp_path / "model.tar.gz"))
    with pytest.raises(UserError, match=r"text\.ckpt cannot be written to"):
        package(checkpoint_alone(tmp_path), PackageSettings(tmp_path / "text.ckpt/model.tar.gz"))


def _tar(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    member.size = 1 if kind == tarfile.REGTYPE else 0
    return member


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a path upwards": lambda path: _tar(path, _member("../outside")),
    "an absolute path": lambda path: _tar(path, _member("/outside")),
    "a link": lambda path: _tar(path, _member("link", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": lambda path: _tar(path, _member("link", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": lambda path: _tar(path, _member("device", tarfile.CHRTYPE)),
    "a name twice": lambda path: _tar(path, _member("a"), _member("a")),
    "no checksums": lambda path: _tar(path, _member("a")),
    "no archive": lambda path: path.write_bytes(b"no archive"),
    "a truncated one": lambda path: (
        write_tarball({"a": b"x" * 100_000}, path) and path.write_bytes(path.read_bytes()[:50_000])
    ),
    "a changed byte": lambda path: (
        write_tarball({"a": b"x" * 1000}, path) and path.write_bytes(path.read_bytes().replace(b"xx", b"xy", 1))
    ),
    "nothing": lambda path: None,
    "a gzip bomb": lambda path: _bomb(path, _member("a")),
    "a bomb of many files": lambda path: _tar(path, *(_member(f"a{number}") for number in range(10_001))),
    "a sparse bomb": lambda path: _bomb(path, _member("a", tarfile.GNUTYPE_SPARSE)),
    "a bomb in a long name": lambda path: _bomb(path, _member("././@LongLink", tarfile.GNUTYPE_LONGNAME)),
    "a bomb in an extended header": lambda path: _bomb(path, _member("a", tarfile.XHDTYPE)),
}


def _bomb(path: Path, member: tarfile.TarInfo) -> None:
    """Write 100 MB of zeros as 100 kB."""
    member.size = 100_000_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            file.write(bytes(1_000_000))
        file.write(bytes(4096))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_refused_and_leaves_nothing_behind(damage: str, tmp_path: Path) -> None:
    archive, folder = tmp_path / "model.tar.gz", tmp_path / "place" / "model"
    DAMAGES[damage](archive)
    with pytest.raises(BinCounterError) as refused:
        unpack(archive, folder)
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "place").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"model.tar.gz", "place"}


def test_a_folder_that_holds_something_is_not_unpacked_into(packed: Package, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        unpack(packed.path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_bomb_is_not_read(tmp_path: Path) -> None:
    _bomb(tmp_path / "model.tar.gz", _member("model.json"))
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 10000 files or 67 MB"):
        read_package(tmp_path / "model.tar.gz")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_an_archive_of_somebody_else_is_served_only_if_it_is_trusted(packed: Package, tmp_path: Path) -> None:
    def opened(*overrides: str) -> Package:
        given = [f"archive={packed.path}", "parity.photos=0", f"paths.cache_dir={tmp_path}", *overrides]
        cfg = compose(given, config_name="deploy")
        check_deploy(cfg)
        return pack_and_check(cfg)

    with pytest.raises(UserError, match=f"runs its code: .* add archive_sha256={packed.digest} if .* or trust=true"):
        opened()
    with pytest.raises(UserError, match=f"its sha256 is {packed.digest} and not archive_sha256={'0' * 64}"):
        opened(f"archive_sha256={'0' * 64}")
    assert opened("trust=true") == packed
    assert opened(f"archive_sha256={packed.digest.upper()}") == packed
    record_packed(packed, tmp_path / "serving" / "packed.sha256")
    assert opened() == packed
