"""Model cards, with the front matter of Hugging Face: README.md of an archive, and of a model at the hub."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from bincounter.data.s3.address import is_remote
from bincounter.files import look_up
from bincounter.model.build import without_pretrained
from bincounter.model.packaged_weights import name_weights
from bincounter.number_format import BASELINES, SCORES, format_score, score_heading, whole
from bincounter.serving.packing.tarball import CHECKSUMS
from bincounter.training.results import SPLIT_OF_SIDE, CheckpointOrigin, RunResults

_ABID_BUCKET = "aft-vbi-pds"
_ALWAYS = {"majority": "the most frequent count", "mean": "the mean of the training photos"}  # what baselines predict
_CONFIGURATION = (
    "seed",
    "data.image_size",
    "data.batch_size",
    "data.split.method",
    "data.split.fractions",
    "model.weights",
    "model.trained",
    "model.answer",
    "model.optimizer._target_",
    "model.optimizer.lr",
    "trainer.max_epochs",
)


def write_card(about: Mapping[str, Any], description: Mapping[str, Any], origin: CheckpointOrigin) -> str:
    """Write the model card: scores, training data, configuration, limits and request format.

    Args:
        about: the content of ``model.json``.
        description: metadata of the checkpoint.
        origin: the checkpoint and its run.
    """
    run = origin.run
    blocks = [
        _front_matter(about, run),
        f"# {about['model']}\n\nCounts the items in a warehouse bin from one photo: {_listed(about['counts'])} items.",
        *_scores(run, origin.checkpoint.name),
        *_data(run, description),
        *_training(about, run),
        _limits(about),
        _requests(about),
        f"## Files\n\n`{CHECKSUMS}` holds the sha256 of every other file: `sha256sum --check {CHECKSUMS}`.",
    ]
    return "\n\n".join(blocks) + "\n"


def write_hub_card(address: str, description: Mapping[str, Any], origin: CheckpointOrigin, licence: str) -> str:
    """Write the card of a model at the hub.

    Args:
        address: ``hf://owner/name``.
        description: metadata of the checkpoint.
        origin: the checkpoint and its run.
        licence: of the model, by the hub's name of it.
    """
    run, name = origin.run, PurePath(address).name
    parts = {"model": without_pretrained(description["model"]), "objective": description["objective"]}
    about = {**description, "model": name, "description": parts}
    counts = _listed(about["counts"])
    blocks = [
        _front_matter(about, run, licence),
        f"# {name}\n\nCounts the items in a warehouse bin from one photo: {counts} items.",
        f"## Use\n\n```bash\npip install 'bincounter[hub]'\nbincounter predict --ckpt-path {address} photo.jpg\n"
        f"bincounter deploy ckpt_path={address}\nbincounter train model.weights={address} ...\n```",
        *_scores(run, origin.checkpoint.name),
        *_data(run, description),
        *_training(about, run, "config.yaml"),
        _limits(about),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(about: Mapping[str, Any], run: RunResults | None, licence: str = "") -> str:
    front: dict[str, Any] = {
        "license": licence or ("cc-by-nc-sa-3.0" if run and is_abid(run) else "unknown"),
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["bincounter", "counting", "warehouse"],
    }
    side = _scored_side(run)
    if run and side:
        metrics = [{"type": name, "value": run.metrics[side][name]} for name in ("accuracy", "rmse")]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": source_name(run), "type": "image", "split": SPLIT_OF_SIDE[side]},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": about["model"], "results": [result]}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _scored_side(run: RunResults | None) -> str | None:
    return next((side for side in ("test", "val") if run and run.metrics.get(side)), None)


def _scores(run: RunResults | None, checkpoint: str) -> Iterator[str]:
    side = _scored_side(run)
    if run is None or side is None:
        yield "## Scores\n\nUnknown: there are no scores of a run beside the checkpoint."
        return
    scores = run.metrics[side]
    note = "" if checkpoint == "best.ckpt" else f" Scores are those of the run's best.ckpt; this model is {checkpoint}."
    rows = [
        [
            score_heading(name),
            format_score(name, scores.get(name)),
            f"{format_score(name, scores[key])} (always {_ALWAYS[kind]})" if scores.get(key) is not None else "",
        ]
        for name in SCORES
        for key, kind in [BASELINES.get(name, ("", ""))]
    ]
    seen = run.seen.get(side) or 0
    learnt = f"{seen:,} of them used in training" if seen else "not used in training"
    chosen = ", but used to choose the best checkpoint" if side == "val" else ""
    caveats = "".join(f"- {caveat}\n" for caveat in run.caveats)
    yield (
        f"## Scores\n\nOn {scores['n']:,} {SPLIT_OF_SIDE[side]} photos, {learnt}{chosen}.{note}\n\n"
        + (f"{caveats}\n" if caveats else "")
        + _table(["Score", "Model", "Baseline"], rows)
    )
    if per_count := scores.get("per_count"):
        rows = [
            [
                str(row["count"]),
                whole(row["n"]),
                *("" if row[name] is None else format_score(name, row[name]) for name in ("accuracy", "rmse")),
            ]
            for row in per_count
        ]
        yield _table(["Count", "Photos", score_heading("accuracy"), score_heading("rmse")], rows)


def _data(run: RunResults | None, description: Mapping[str, Any]) -> Iterator[str]:
    photos = description["train_counts"]
    learnt, further = len(description["train_ids"]), ""
    if above := learnt - sum(photos.values()):  # photos of data.learn_above
        further = f", {above:,} of them with more items than are answered"
    trained = f"Trained on {learnt:,} photos ({_per_count(photos)}{further})"
    if run is None:
        yield f"## Data\n\n{trained}; their source and licence are unknown."
        return
    sides = [f"{sum(run.photos(split).values()):,} {split}" for split in ("validation", "test")]
    beside = f", beside {' and '.join(sides)} photos" if run.split else ""
    yield f"## Data\n\n{trained} of {source_name(run)}{beside}. {_licence(run)}"
    if run.config.get("train", True) and run.config["model"].get("weights") is not None:
        yield f"Training started from {name_weights(run.config['model'])}."


def _licence(run: RunResults) -> str:
    if is_abid(run):
        return "They are of the Amazon Bin Image Dataset, licence CC BY-NC-SA 3.0 US: no commercial use."
    if run.config["data"]["source"] is None:
        return "They are rendered; real bins look different."
    return "Their licence is unknown: find it out before you share this model."


def _per_count(photos: Mapping[int, int]) -> str:
    return ", ".join(f"{number:,} of count {count}" for count, number in sorted(photos.items()))


def is_abid(run: RunResults) -> bool:
    """Return True if a run was trained on the Amazon Bin Image Dataset."""
    data = run.config.get("data") or {}
    target = (data.get("layout") or {}).get("_target_")
    return str(target).endswith(".Abid") or _ABID_BUCKET in str(data.get("source"))


def source_name(run: RunResults) -> str:
    """Name of the data source, without local paths and buckets, which can hold an account's number."""
    source = (run.config.get("data") or {}).get("source")
    if source is None:
        return "rendered demo bins"
    return "a bucket" if is_remote(source) and source.count("/") < 3 else PurePath(source).name


def _training(about: Mapping[str, Any], run: RunResults | None, file: str = "training.yaml") -> Iterator[str]:
    parts = about["description"]
    rows = [["model.backbone", _call(parts["model"]["backbone"])], ["objective", _call(parts["objective"])]]
    if run:
        rows += [[key, f"`{value}`"] for key in _CONFIGURATION if (value := _setting(run.config, key)) is not None]
        versions = run.provenance.get("versions", {})
        rows += [[f"version of {name}", str(version)] for name, version in versions.items() if version]
    where = f"\n\n`{file}` holds the whole configuration." if run else ""
    yield f"## Training\n\n{_table(['Setting', 'Value'], rows)}{where}"


def _call(node: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if key != "_target_" and value is not None)
    return f"`{node['_target_']}({arguments})`"


def _setting(config: Mapping[str, Any], key: str) -> Any:
    value = look_up(config, key)
    return PurePath(value).name if isinstance(value, str) and "/" in value else value


def _limits(about: Mapping[str, Any]) -> str:
    side = about["image_size"]
    requests = ""
    if limits := about.get("limits"):
        requests = (
            f"\n- A request holds at most {limits['max_body_bytes'] / 1e6:g} MB and {limits['max_instances']} photos."
        )
    return f"""## Limits

- Only photos of warehouse bins like the training photos are counted reliably; counts of other photos are meaningless.
- The result is always {_listed(about["counts"])}, also for a bin with more items.
- Photos are resized to {side} x {side} pixels; items too small to see at that size are not counted.{requests}"""


def _requests(about: Mapping[str, Any]) -> str:
    urls = about["limits"]["url_hosts"]
    by_url = f', or `{{"url": "https://{urls[0]}/..."}}` for photos on {_listed(urls)}' if urls else ""
    first = about["counts"][0]
    unsure = "" if about["needs_person_below"] is None else ', "needs_person": true or false'
    last = f", needs_person (yes below a probability of {about['needs_person_below']:.3f})" if unsure else ""
    return f"""## Requests

| Content-Type | Body |
|---|---|
| `image/jpeg`, `image/png`, `image/webp` | the photo |
| `application/json` | `{{"image": "<base64>"}}`{by_url}, or `{{"instances": [...]}}` of these for several photos |

With `Accept: application/json` the answer is
`{{"count": ..., "probabilities": {{"{first}": ...}}, "expected_count": ..., "model": "{about["model"]}"{unsure}}}`,
or `{{"predictions": [...]}}` for instances; with `Accept: text/csv` it is a line per photo: count, expected count, a
probability per count, model{last}. Rejected requests get a status of 400 or more and `{{"error": "..."}}`."""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _listed(values: Sequence[Any]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last
