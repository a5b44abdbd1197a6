"""``bincounter push RUN --to hf://owner/name``: upload a run's model to the Hugging Face Hub, without photos."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from bincounter.cli.data_commands import as_path
from bincounter.data.s3.address import is_remote
from bincounter.errors import UserError
from bincounter.hub import FILES, HubAddress, parse_hub, translate_hub_errors
from bincounter.names import escape_name
from bincounter.redaction import mask_secrets

if TYPE_CHECKING:
    from bincounter.training.results import CheckpointOrigin, RunResults

_OPEN = "apache-2.0"  # licence of a model without others' photos or weights
_NOT_SENT = ("ckpt_path", "debugger", "hparams_search", "launcher", "logger", "paths", "profiler")
"""Groups of a run's configuration that name folders, buckets, roles and servers, and do not define the model."""


def add_push(commands: Any) -> None:
    """Add the command to the parser."""
    push_ = commands.add_parser("push", help="upload a run's model, with a model card, to the Hugging Face Hub")
    push_.add_argument("run", type=as_path, metavar="RUN", help="its folder, or a checkpoint in it")
    push_.add_argument("--to", required=True, metavar="hf://OWNER/NAME", help="the repository; a new one is private")
    push_.add_argument(
        "--licence", metavar="NAME", help="of the model, as the hub names it: confirms that you may share it"
    )
    push_.set_defaults(command=lambda arguments: push(arguments.run, arguments.to, arguments.licence))


def push(run: Path, to: str, licence: str | None = None) -> int:
    """Upload the model of a run, and print the names of sent and omitted files.

    Args:
        run: its folder, or a checkpoint in it.
        to: ``hf://owner/name``; a missing repository is created, and is private.
        licence: of the model; needed if the photos or the first weights have terms of their own.

    Returns:
        The exit code.

    Raises:
        UserError: there is no such run, its licence has to be confirmed, or the hub refuses.
        ResourceError: the hub does not answer.
    """
    address = parse_hub(to)
    if address.revision:
        raise UserError(f"--to {to} names a revision: write hf://{address.repository}, whose main branch is written")
    if run.is_file() and run.suffix != ".ckpt":
        raise UserError(
            f"{run} is not uploaded, since files of a run but its checkpoint can show photos or name them: give the "
            "run's folder"
        )
    with translate_hub_errors(address):  # before torch is imported
        import huggingface_hub
    from bincounter.training.results import find_run_of_checkpoint

    origin = find_run_of_checkpoint(run)
    if origin.run is None or not origin.checkpoint.is_file():
        raise UserError(f"{run} is not a run's folder with a checkpoint: name the folder that the run printed")
    files = _files(address, origin, origin.run, licence)
    sent = {Path(name).name for name in (*files, str(origin.checkpoint))}
    left = [each for each in sorted(origin.run.path.iterdir()) if each.name not in {*sent, "checkpoints", ".lock"}]
    with translate_hub_errors(address):
        api = huggingface_hub.HfApi(library_name="bincounter")
        api.create_repo(address.repository, private=True, exist_ok=True)
        seen_by = "private" if api.model_info(address.repository).private else "public"
        print(f"Sending to {address} ({seen_by}): {', '.join(files)}")
        print(
            f"Left out, with photos, their names, paths or logs: {', '.join(escape_name(each.name) for each in left)}"
        )
        operations = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()]
        try:
            done = api.create_commit(address.repository, operations, commit_message=f"Model of {origin.run.path.name}")
        except ValueError as error:  # the hub checks the header of the card
            raise UserError(
                f"{address} does not take the model card ({' '.join(str(error).split())[:150]}): write --licence as "
                "huggingface.co/docs/hub/repositories-licenses does, such as mit"
            ) from error
    print(done.commit_url)
    return 0


def _files(address: HubAddress, origin: "CheckpointOrigin", run: "RunResults", licence: str | None) -> dict[str, bytes]:
    """Contents to upload, by name."""
    import json

    import torch
    import yaml

    from bincounter.model.build import read_model
    from bincounter.serving.packing.model_card import source_name, write_hub_card

    if not licence and (reasons := list(_terms(run))):
        raise UserError(
            f"{run.path} is not uploaded, since {' and '.join(reasons)}: if you may share the model, name its licence, "
            "as in --licence cc-by-nc-sa-3.0"
        )
    checkpoint = read_model(origin.checkpoint)
    description = checkpoint["bincounter"]
    described = {
        **description,
        "model": _without_paths(description["model"]),
        # Names of photos; their hashes are enough.
        **{key: [""] * len(description[key]) for key in ("train_ids", "earlier_ids") if key in description},
    }
    content = io.BytesIO()
    torch.save({"state_dict": checkpoint["state_dict"], "bincounter": described}, content)
    config = _without_paths(mask_secrets({key: run.config[key] for key in run.config if key not in _NOT_SENT}))
    if config["data"]["source"] is not None:
        config["data"]["source"] = source_name(run)
    scores = json.loads((run.path / "metrics.json").read_text(encoding="utf-8")) if run.metrics else {}
    card = write_hub_card(str(address), described, origin, licence or _OPEN)
    texts = [yaml.safe_dump(config, sort_keys=False), json.dumps(mask_secrets(scores), indent=2)]
    return {"README.md": card.encode(), **dict(zip(FILES, [content.getvalue(), *map(str.encode, texts)], strict=True))}


def _terms(run: "RunResults") -> Iterator[str]:
    """Yield the reasons against sharing a model without a confirmed licence."""
    from bincounter.serving.packing.model_card import is_abid, source_name

    weights = run.config["model"].get("weights")
    if is_abid(run):
        yield "it learnt from the Amazon Bin Image Dataset (CC BY-NC-SA 3.0 US: no commercial use)"
    elif run.config["data"]["source"] is not None:
        yield f"the licence of its photos ({source_name(run)}) is not known"
    if weights is not None:
        known = str(weights).upper().startswith("IMAGENET") or str(weights).lower() in ("default", "package")
        terms = "were trained on ImageNet, whose terms allow research only" if known else "have a licence of their own"
        yield f"the weights it started from ({PurePath(weights).name}) {terms}"


def _without_paths(node: Any) -> Any:
    """Copy plain containers with the names of files and folders in place of their paths."""
    if isinstance(node, Mapping):
        return {key: _without_paths(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_paths(value) for value in node]
    is_path = isinstance(node, str) and (PurePath(node).is_absolute() or node.startswith("~") or is_remote(node))
    return PurePath(node).name if is_path else node
