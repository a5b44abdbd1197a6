"""The Python API, as docs/python.md and the notebook use it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest
from bins import square_bins
from commands import REPOSITORY, SMALL_RUN, Run, command, environment
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import bincounter
from bincounter.data import photos
from bincounter.data.preprocessing import decode
from bincounter.errors import ConfigError, DataError, UserError
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.packing.archive import PackageSettings, package
from bincounter.serving.packing.tarball import unpack

SMALL = [*SMALL_RUN, "data.batch_size=16"]


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_bins(tmp_path_factory.mktemp("api") / "bins", photos=80)


@pytest.fixture
def small(bins: Path, tmp_path: Path) -> list[str]:
    paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "log")]
    return [*SMALL, f"data.source={bins}", *paths]


CHECKPOINT = REPOSITORY / "tests/assets/classification"
PHOTOS = sorted((REPOSITORY / "tests/assets/photos").rglob("*.jpg"))


@pytest.fixture(scope="module")
def counter() -> bincounter.Predictor:
    return bincounter.load(CHECKPOINT, device="cpu")


def test_importing_the_package_imports_no_torch() -> None:
    program = "import bincounter, sys; print(dir(bincounter), 'torch' in sys.modules, 'hydra' in sys.modules)"
    said = subprocess.check_output(command("-c", program), text=True, cwd=REPOSITORY, env=environment())
    assert said == f"{sorted(bincounter.__all__)} False False\n"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        bincounter.lode  # noqa: B018


_TINY = [*SMALL[1:], "experiment=demo", "data.layout.photos=60", "data.layout.size=32", "paths.data_dir=data"]


@pytest.mark.parametrize(
    "statement",
    [f"bincounter.train({_TINY})", "bincounter.BinDataModule(None, DemoBins(60, 32), data_dir='data').prepare()"],
    ids=["train", "photos"],
)
def test_a_script_needs_no_guard_for_the_processes_that_draw_bins(statement: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    imports = "import bincounter\nfrom bincounter.data.demo.layout import DemoBins"
    script.write_text(f"{imports}\nprint('begun')\n{statement}\nprint(__file__)\n")
    said = subprocess.check_output(command(str(script)), text=True, cwd=tmp_path, env=environment(), timeout=300)
    assert said.splitlines()[0] == "begun"
    assert said.count("begun") == 1
    assert said.splitlines()[-1] == str(script)


def test_an_image_that_cannot_be_converted_costs_only_its_own_count(counter: bincounter.Predictor) -> None:
    closed = Image.open(PHOTOS[0])
    closed.close()
    empty = np.zeros((0, 5, 3), np.uint8)
    answers = counter.predict([closed, empty, Image.new("La", (9, 9)), Image.open(PHOTOS[0]).convert("I"), PHOTOS[0]])
    assert [answer.count is None for answer in answers] == [True, True, True, False, False]


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_an_image_with_broken_bytes_is_refused_as_they_are(
    format_: str, counter: bincounter.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((90, 90), 50).convert("RGB").save(file := io.BytesIO(), format_)
    torn = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    monkeypatch.setattr(photos.time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(DataError, match=r"\(truncated|\(damaged"):
        counter.predict(torn)
    assert counter.failures == 0


def test_every_form_of_a_photo_gives_the_same_prediction(counter: bincounter.Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    path = tmp_path / "bin.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    forms: list[Any] = [path, str(path), data, Image.open(path), pixels, Image.fromarray(pixels)]
    answers = [counter.predict(form) for form in forms]
    assert [answer.photo for answer in answers] == [str(path), str(path), "0", "0", "0", "0"]
    answers += [
        counter.predict(form) for form in (bytearray(data), memoryview(data), path.open("rb"), io.BytesIO(data))
    ]
    assert all(answer.probabilities == answers[0].probabilities for answer in answers)
    first = answers[0]
    assert first.count == max(first.probabilities, key=first.probabilities.__getitem__)
    assert first.expected_count == pytest.approx(sum(count * share for count, share in first.probabilities.items()))
    (from_file,) = counter.predict([path.open("rb")])
    assert from_file.probabilities == first.probabilities
    assert [answer.photo for answer in counter.predict(forms)] == [str(path), str(path), "2", "3", "4", "5"]
    assert counter.predict(str(tmp_path)) == [first]  # a folder is a list, of whatever length


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_every_mode_and_orientation_are_counted(mode: str, counter: bincounter.Predictor) -> None:
    image = Image.new("L", (20, 30), 200).convert(mode) if mode != "I;16" else Image.new(mode, (20, 30), 200)
    image.getexif()[0x0112] = 6
    assert counter.predict(image).count in counter.counts


@pytest.mark.parametrize("mode", ["PA", "RGBa"])
def test_transparent_parts_are_white_in_every_mode(mode: str, counter: bincounter.Predictor) -> None:
    image = Image.new("RGBA", (20, 30), (200, 10, 10, 0)).convert(mode)
    given, white = counter.predict([image, Image.new("RGB", (20, 30), "white")])
    assert given.probabilities == white.probabilities


def test_an_image_of_floats_is_refused_as_an_array_of_them_is(counter: bincounter.Predictor) -> None:
    with pytest.raises(DataError, match=r"an image of float32\[30, 20\], not of uint8\[H, W, 3\]"):
        counter.predict(Image.new("F", (20, 30), 0.5))


def test_grey_of_32_bits_is_counted_as_of_16(counter: bincounter.Predictor) -> None:
    grey = Image.fromarray(np.arange(0, 60_000, 100, dtype=np.uint16).reshape(20, 30))
    assert grey.mode == "I;16"
    short, long = counter.predict([grey, grey.convert("I")])
    assert short.probabilities == long.probabilities


def test_the_numbers_are_those_of_the_command_and_of_the_endpoint(
    served_run: Path, run: Run, bins: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    run("-m", "bincounter", "predict", str(bins), f"--ckpt-path={served_run}", f"--csv={table}")
    answers = bincounter.load(served_run).predict(bins)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert [[a.photo, str(a.count), *(f"{p:.6g}" for p in a.probabilities.values()), ""] for a in answers] == [
        [*row[:2], *row[3:]] for row in rows
    ]

    alone = bincounter.load(served_run, device="cpu", batch_size=1).predict(bins)
    archive = package(served_run / "checkpoints/best.ckpt", PackageSettings(tmp_path / "model.tar.gz")).path
    served = ServedModel.load(unpack(archive, tmp_path / "unpacked"))
    for answer in alone[:20]:
        pixels = decode(Path(answer.photo).read_bytes(), served.image_size)
        assert list(answer.probabilities.values()) == served.probabilities(pixels[None])[0].tolist()
    assert [answer.probabilities for answer in answers] == [
        pytest.approx(answer.probabilities, abs=1e-6) for answer in alone
    ]


def test_uncountable_photo_raises_alone_and_is_listed_among_others(
    counter: bincounter.Predictor, tmp_path: Path
) -> None:
    (torn := tmp_path / "torn.jpg").write_bytes(PHOTOS[0].read_bytes()[:-300])
    answers = counter.predict([PHOTOS[0], torn, tmp_path / "gone.jpg", b"no photo", np.zeros((3, 3)), 7])  # type: ignore[list-item]
    assert answers[0].error == "" and answers[0].count is not None
    assert [(answer.count, answer.expected_count, answer.probabilities) for answer in answers[1:]] == [
        (None, None, {})
    ] * 5
    assert [answer.error for answer in answers[1:]] == [
        "truncated",
        "cannot be read (no such file or directory)",
        "not a JPEG, PNG or WebP image",
        "an array of float64[3, 3], not of uint8[H, W, 3]",
        "not a path, bytes, a file, an image of Pillow or an array, but of type int",
    ]
    closed = torn.open("rb")
    closed.close()
    assert [answer.error for answer in counter.predict(["", "a\0b", closed, bytearray(b"no photo")])] == [
        "an empty path",
        "not a path (embedded null byte)",
        "a file that cannot be read (read of closed file)",
        "not a JPEG, PNG or WebP image",
    ]
    with pytest.raises(DataError, match="the path of a photo is empty"):
        counter.predict("")
    with pytest.raises(DataError, match="open it as 'rb'"):
        counter.predict(io.StringIO("no photo"))  # type: ignore[call-overload]
    with pytest.raises(DataError, match="but of type int"):
        counter.predict(7)  # type: ignore[call-overload]
    with pytest.raises(DataError, match=r"torn\.jpg cannot be counted \(truncated\): replace it"):
        counter.predict(torn)
    with pytest.raises(DataError, match="neither a photo nor a folder"):
        counter.predict(str(tmp_path / "gone.jpg"))
    with pytest.raises(DataError, match="has no photos"):
        (tmp_path / "empty").mkdir()
        counter.predict(tmp_path / "empty")
    assert counter.predict([]) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda:99"}, "device=cuda:99 is not available here"),
        ({"device": "gpu"}, "device=gpu is not available here"),
        ({"device": "meta"}, "device=meta is not available here"),
        ({"device": ["cpu"]}, r"device=\['cpu'\] is not available here"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"batch_size": "8"}, "batch_size='8' is not a whole number"),
        ({"batch_size": 1.5}, "batch_size=1.5 is not a whole number"),
    ],
)
def test_options_of_load_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bincounter.load(CHECKPOINT, **options)


def test_a_gpu_that_torch_is_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr("torch.zeros", fail)
    with pytest.raises(ConfigError, match=r"the GPU cannot be used \(CUDA error: .* device\): hide it by CUDA_VISIBLE"):
        bincounter.load(CHECKPOINT)


def test_runs_of_one_process_leave_it_as_it_was(small: list[str], tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        root = logging.getLogger()
        hydra = GlobalHydra.instance().hydra
        return Path.cwd(), sys.argv, root.handlers[:], root.level, hydra, dict(os.environ)

    before = state()
    runs = [bincounter.train([*small, f"seed={seed}", f"paths.output_dir={tmp_path / str(seed)}"]) for seed in (1, 2)]
    assert state() == before
    for seed, run in enumerate(runs, start=1):
        assert run.folder == tmp_path / str(seed)
        assert run.scores == json.loads((run.folder / "metrics.json").read_text())
        assert run.scores["test"]["n"] == 8
        lines = (run.folder / "train.log").read_text().splitlines()
        assert len([line for line in lines if "80 photos of" in line]) == 1
        assert f"seed={seed}" in (run.folder / "overrides.txt").read_text().splitlines()
    assert bincounter.Run(str(runs[0].folder)).load().counts == (0, 1, 2, 3)
    with pytest.raises(UserError, match="already holds a run: resume it"):  # not that it is in use: it was let go
        bincounter.train([*small, f"paths.output_dir={runs[0].folder}"])
    with pytest.raises(UserError, match=r"has no metrics\.json"):
        _ = bincounter.Run(tmp_path).scores


@pytest.mark.parametrize("overrides", [["modle=cnn"], ["trainer.max_epochs=zero"], ["data=folders"]])
def test_a_wrong_override_is_refused_in_the_words_of_the_command(overrides: list[str], run: Run) -> None:
    with pytest.raises(ConfigError) as caught:
        bincounter.train(overrides)
    assert run("train.py", *overrides, code=2).stderr == f"Error: {caught.value}\n"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["-m", "seed=1,2"], "start sweeps and launchers by the command"),
        (["hydra.mode=MULTIRUN"], "start sweeps and launchers by the command"),
        (["hparams_search=optuna"], "start sweeps and launchers by the command"),
        (["launcher=sagemaker"], "start sweeps and launchers by the command"),
        (["--help"], "--help is not KEY=VALUE"),
        ("seed=1", r"write a list of them, as in \['seed=1'\]"),
        (["seed=1,2"], "seed=1,2 lists several values.* by the command"),
        (["seed=range(3)"], "lists several values.* by the command"),
        (["dry_run=true"], "dry_run=true shows the request of a launcher: remove it.* by the command"),
        (["seed=1", 2], "the override 2 is not a text"),
        ([("seed", 1)], r"the override \('seed', 1\) is not a text"),
        ([Path("seed=1")], "is not a text"),
        (b"seed=1", "is not a text"),
        (None, "the override None is not a text"),
    ],
    ids=str,
)
def test_what_is_not_one_run_is_refused(overrides: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bincounter.train(overrides)


def test_the_code_of_the_page_runs(bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bin.jpg").write_bytes(PHOTOS[0].read_bytes())
    (tmp_path / "photos/torn.jpg").write_bytes(PHOTOS[0].read_bytes()[:500])
    (tmp_path / "bins").symlink_to(bins)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/my-run").symlink_to(CHECKPOINT)
    tiny = '"trainer=cpu", "model=cnn", "data.layout.photos=60", "data.image_size=32", "trainer.max_epochs=1"'
    page: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace('"trainer.max_epochs=3"', tiny), page)
    assert page["data"].counts == [0, 1, 2, 3]
    assert len(page["table"]) == 2


def counted_table(bins: Path, folder: Path) -> Path:
    """The photos of bin folders, with their counts in a table instead."""
    folder.mkdir()
    lines = ["photo,count"]
    for photo in sorted(bins.glob("*/*.png")):
        (folder / photo.name).write_bytes(photo.read_bytes())
        lines.append(f"{photo.name},{photo.parent.name}")
    (folder / "counts.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("example", "option", "module"),
    [
        ("own_backbone", "model=dilated", "dilated"),
        ("own_objective", "objective=poisson", "poisson"),
        ("own_layout", "data=count_table", ""),
    ],
)
def test_an_example_is_trained_with_and_its_checkpoint_is_loaded(
    example: str, option: str, module: str, small: list[str], bins: Path, tmp_path: Path
) -> None:
    group = option.partition("=")[0]
    overrides = [word for word in small if not word.startswith((f"{group}=", f"{group}.backbone"))]
    if example == "own_layout":
        overrides.append(f"data.source={counted_table(bins, tmp_path / 'table')}")
    trained = bincounter.train([option, *overrides], config_dir=REPOSITORY / "examples" / example)
    assert trained.scores["test"]["n"] == 8
    answer = trained.load().predict(PHOTOS[0])
    assert answer.count in range(4)
    if module:
        with pytest.raises(UserError, match=rf"if you trust .*best\.ckpt, .*trust=\['{module}'\] for bincounter.load"):
            bincounter.load(trained.folder)
    assert bincounter.load(trained.folder, trust=[module] if module else []).predict(PHOTOS[0]) == answer


def test_the_notebook_runs(tmp_path: Path) -> None:
    path = REPOSITORY / "examples/count_bins.ipynb"
    book = nbformat.read(path, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "clear the outputs before a commit"
    cells[0].source = cells[0].source.replace("PHOTOS, EPOCHS = 1200, 6", "PHOTOS, EPOCHS = 90, 1")
    nbclient.NotebookClient(book, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert "PHOTOS, EPOCHS = 90, 1" in cells[0].source
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "right: " in "".join(output.get("text", "") for output in outputs)
