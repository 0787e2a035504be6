"""A distilled set on the Hugging Face Hub: what would be uploaded, and the upload."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reta.data.distilled import run_manifest
from reta.errors import DataError, UsageError, unknown
from reta.reporting.card import CARD, front_matter, write_card
from reta.sharing.extras import optional
from reta.storage import MANIFEST, RunFolder, sha256_file

# What shows or describes single real images, or is not needed to train on the set.
OPTIONAL = {
    "history": "how each image came about; shows real training images",
    "pool": "features of every real image",
    "report": "report.html; shows real training images",
    "students": "weights of the students",
    "teachers": "weights of the teachers",
}


@dataclass(frozen=True)
class Upload:
    """What a push would do.

    Attributes:
        folder: the run folder.
        repository: ``owner/name`` on the Hub.
        files: paths inside the folder, with their sizes in bytes.
        left_out: parts of `OPTIONAL` the run has and the upload does not.
        licensed: whether the dataset card names a licence.
    """

    folder: Path
    repository: str
    files: dict[str, int]
    left_out: list[str]
    licensed: bool


def plan(folder: str | Path, target: str, include: Iterable[str] = ()) -> Upload:
    """Return what `push` would upload; nothing is sent.

    Args:
        folder: a run folder.
        target: ``hf:owner/name``.
        include: names of `OPTIONAL` to upload as well.

    Raises:
        DataError: if the run is unfinished, or a file differs from the manifest.
        UsageError: if the target or a name is wrong.
    """
    repository = _repository(target)
    include = set(include)
    for name in include - set(OPTIONAL):
        raise unknown("part", name, OPTIONAL)
    run = RunFolder(folder)
    manifest = run_manifest(run)
    card = run.path / CARD
    if not card.is_file():
        write_card(run.path)
    names = [name for name in manifest["files"] if _part(name) in (include | {None})]
    for name in names:
        path = run.path / name
        if not path.is_file() or sha256_file(path) != manifest["files"][name]:
            raise DataError(f"{path}: missing or changed; see `reta verify {run.path}`")
    names += [CARD, MANIFEST]
    if "report" in include and (run.path / "report.html").is_file():
        names.append("report.html")
    present = {_part(name) for name in manifest["files"]} | {"report"}
    return Upload(
        folder=run.path,
        repository=repository,
        files={name: (run.path / name).stat().st_size for name in sorted(names)},
        left_out=[name for name in OPTIONAL if name in present - include],
        licensed=front_matter(card.read_text("utf-8")).get("license") not in (None, "unknown"),
    )


def _part(name: str) -> str | None:
    """Return the optional part a file belongs to, or None if it is always uploaded."""
    top = name.split("/")[0]
    return top if top in OPTIONAL else None


def _repository(target: str) -> str:
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)", target)
    if not found:
        raise UsageError(f"{target}: write the target as hf:owner/name")
    return found[1]


def push(upload: Upload, *, private: bool = False, token: str | None = None) -> str:
    """Upload a distilled set to the Hugging Face Hub as one commit; return its address.

    Args:
        upload: from `plan`.
        private: create the repository as private, if it is new.
        token: of the Hub; by default the one of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        UsageError: if huggingface_hub is missing, there is no token, or the Hub refuses.
    """
    hub = optional("huggingface_hub", "hf")
    token = token or hub.get_token()
    if not token:
        raise UsageError("the Hub needs a token: run `hf auth login`, or set HF_TOKEN")
    api = hub.HfApi(token=token)
    try:
        api.create_repo(upload.repository, repo_type="dataset", private=private, exist_ok=True)
        commit = api.create_commit(
            upload.repository,
            [hub.CommitOperationAdd(name, upload.folder / name) for name in upload.files],
            repo_type="dataset",
            commit_message="Distilled with reta",
        )
    except (hub.errors.HfHubHTTPError, *_connection_errors(hub)) as error:
        raise UsageError(f"the Hub did not take {upload.repository}: {error}") from error
    return str(commit.commit_url)


def _connection_errors(hub: Any) -> tuple[type[Exception], ...]:
    # No network: an error of the HTTP library, which is not the same in every huggingface_hub.
    return (hub.errors.HTTPError, OSError) if hasattr(hub.errors, "HTTPError") else (OSError,)
