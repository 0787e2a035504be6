"""Run folders of plain files: units of work, the manifest, verification.

A run folder is the only state of a run. Work is done in units; a unit's files are written first,
its record ``units/<name>.json`` (inputs, facts, SHA-256 of each file) last. So a unit is either
complete or invisible, and running the same command again continues where the last one stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from reta import __version__
from reta.errors import DataError, RetaError, UsageError
from reta.files import (
    atomic_write,
    fingerprint,
    json_bytes,
    read_json,
    require_space,
    sha256,
    sha256_file,
    storage_error,
    sync_files,
)
from reta.lease import HOLDER, LOCK, held
from reta.mirror import local, mirror_of

__all__ = [
    "RunFolder",
    "Unit",
    "atomic_write",
    "fingerprint",
    "json_bytes",
    "read_json",
    "sha256",
    "sha256_file",
]

FORMAT = 1
MANIFEST = "manifest.json"

# Rebuilt at will from the rest of the folder, so neither hashed nor missed.
DERIVED = ("report.html", "gallery.png", "README.md", LOCK, HOLDER)


_RECORD = {"inputs", "facts", "files"}

_LOCKED: set[Path] = set()


def locked_here() -> list[Path]:
    """Return the run folders that this process holds and that are no copies of a URL."""
    return sorted(path for path in _LOCKED if mirror_of(path) is None)


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


@dataclass
class Unit:
    """One piece of work of a run folder: its inputs, its files, and whether it is done."""

    name: str
    folder: RunFolder
    inputs: str
    done: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of this unit, atomically, and remember its hash.

        It is certain to be on the disk once the unit is finished, not before.
        """
        atomic_write(self.folder.path / name, data, sync=False)
        self.files[name] = sha256(data)

    def require_space(self, size: int) -> None:
        """Raise StorageError if the disk lacks the bytes that the unit is about to write."""
        require_space(self.folder.path, size)

    def keep(self, data: bytes) -> None:
        """Keep the state of the work under way in place of an earlier one, see `Checkpoint`."""
        head = f"{sha256(data)} {self.inputs}\n".encode()
        atomic_write(self.folder.state_path(self.name), head, data)

    def kept(self) -> bytes | None:
        """Return what was kept last, if it is intact and was made from the same inputs."""
        try:
            head, _, data = self.folder.state_path(self.name).read_bytes().partition(b"\n")
        except OSError:
            return None
        return data if head.decode(errors="replace") == f"{sha256(data)} {self.inputs}" else None

    def forget(self) -> None:
        """Remove what was kept: the unit is done, or must begin anew."""
        self.folder.state_path(self.name).unlink(missing_ok=True)

    def finish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the unit's record; from here on the unit counts as done."""
        self.facts = json.loads(json_bytes(dict(facts or {})))  # as a later run will read them
        record = {"inputs": self.inputs, "facts": self.facts, "files": self.files}
        sync_files([self.folder.path / name for name in self.files])
        atomic_write(self.folder.record_path(self.name), json_bytes(record))
        self.folder.send([*self.files, f"units/{self.name}.json"])
        self.done = True
        self.forget()


class RunFolder:
    """A folder of plain files with a record per unit of work and one manifest over all.

    Args:
        path: the folder, or a URL that it is a copy of, see `reta.mirror`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = local(path)
        self._mirror = mirror_of(self.path)

    def send(self, names: Iterable[str]) -> None:
        """Copy files home, if that is a URL."""
        if self._mirror:
            self._mirror.send(names)

    def bring(self, files: Mapping[str, str] | None = None) -> None:
        """Bring files, given with their hashes, from home if that is a URL; by default all."""
        if self._mirror and files is None:
            self._mirror.bring_all()
        elif self._mirror and files:
            known = {name: digest for name, digest in files.items() if _stays_inside(name)}
            self._mirror.bring(name for name in known if not self._intact({name: known[name]}))

    def _begun(self) -> bool:
        return any((self.path / name).exists() for name in ("units", MANIFEST, LOCK, HOLDER))

    def record_path(self, name: str) -> Path:
        """Where the record of a unit lies."""
        return self.path / "units" / f"{name}.json"

    def state_path(self, name: str) -> Path:
        """Where the state of a unit under way lies."""
        return self.path / "units" / f"{name}.state"

    def unit(self, name: str, inputs: Any) -> Unit:
        """Open a unit of work: done if it was finished from the same inputs and is intact.

        Args:
            name: the unit's name, unique in the folder.
            inputs: a JSON value that names everything its bytes depend on.
        """
        unit = Unit(name, self, fingerprint({"reta": __version__, "inputs": inputs}))
        record = self.record(name)
        if record and record["inputs"] == unit.inputs:
            self.bring(record["files"])
        if record and record["inputs"] == unit.inputs and self._intact(record["files"]):
            unit.done, unit.facts, unit.files = True, record["facts"], record["files"]
        return unit

    def record(self, name: str) -> dict[str, Any] | None:
        """Return the record of a finished unit, or None; a damaged record counts as none."""
        if self._mirror:
            self._mirror.bring([f"units/{name}.json"])
        try:
            record = read_json(self.record_path(name))
        except DataError:
            return None
        return record if isinstance(record, dict) and set(record) == _RECORD else None

    def finished(self, name: str) -> dict[str, Any]:
        """Return the record of a unit that must be there, with its files.

        Raises:
            DataError: if it is not.
        """
        record = self.record(name)
        if record is None:
            raise DataError(
                f"{self.record_path(name)}: missing or damaged; repair: the same command again"
            )
        self.bring(record["files"])
        return record

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records of all finished units by name."""
        if self._mirror:
            paths = [Path(name) for name in self._mirror.names("units")]
        else:
            paths = list((self.path / "units").glob("*.json"))
        names = sorted(path.stem for path in paths if path.suffix == ".json")
        found = {name: self.record(name) for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def _intact(self, files: Mapping[str, str]) -> bool:
        return all(
            (self.path / name).is_file() and sha256_file(self.path / name) == digest
            for name, digest in files.items()
        )

    def seal(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest: the facts and the hash of every file of every finished unit.

        Hashes come from the unit records, made when the bytes were written, so sealing again
        never blesses a file that was damaged since.
        """
        files = {}
        for name, record in self.records().items():
            path = self.record_path(name)
            files[path.relative_to(self.path).as_posix()] = sha256_file(path)
            files.update(record["files"])
        manifest = {"format": FORMAT, **facts, "files": files}
        manifest["seal"] = fingerprint(manifest)
        atomic_write(self.path / MANIFEST, json_bytes(manifest))
        self.send([MANIFEST])

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of a finished run.

        Raises:
            DataError: if the folder is no finished run, or of a newer reta.
        """
        path = self.path / MANIFEST
        if self._mirror:
            self._mirror.bring([MANIFEST])
        if not self.path.is_dir():
            raise DataError(
                f"{self.path}: no such folder; `reta distill DATA --out {self.path}` makes one"
            )
        if not self._begun():
            raise DataError(f"{self.path}: no {MANIFEST}, so no run folder of reta")
        if not path.exists():
            raise DataError(
                f"{self.path}: no {MANIFEST}; the same `reta distill` again finishes it"
            )
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
            raise DataError(f"{path}: not a manifest of reta")
        if manifest["format"] > FORMAT:
            raise DataError(f"{path}: written by a newer reta (format {manifest['format']})")
        body = {name: value for name, value in manifest.items() if name != "seal"}
        if fingerprint(body) != manifest.get("seal"):
            raise DataError(f"{path}: changed after it was written")
        for name in manifest["files"]:
            if not _stays_inside(name):
                raise DataError(f"{path}: names a file outside the folder: {name!r}")
        return manifest

    def verify(self) -> list[str]:
        """Return every way the folder differs from its manifest; an empty list means intact."""
        try:
            manifest = self.manifest()
        except RetaError as error:
            return [str(error)]
        problems = []
        for name, digest in manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                problems.append(f"{name}: missing")
            elif sha256_file(path) != digest:
                problems.append(f"{name}: changed after it was written")
        known = {MANIFEST, *DERIVED, *manifest["files"]}
        for path in self._own_files():
            name = path.relative_to(self.path).as_posix()
            if path == self.state_path(path.stem) or name.startswith(LOCK):
                continue  # of a student under way, say: it carries its own hash; of a lock
            if name not in known:
                problems.append(f"{name}: not in the manifest")
        return problems

    def _own_files(self) -> list[Path]:
        """Return every file below the folder that does not belong to a run nested in it."""
        nested = {path.parent for path in self.path.rglob("units") if path.parent != self.path}
        return [
            path
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and not nested.intersection(path.parents)
        ]

    def clean(self) -> None:
        """Remove temporary files left by a killed process."""
        for path in self._own_files():
            if path.name.startswith(".") and path.suffix == ".tmp":
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second run, see `lease.held`.

        Raises:
            UsageError: at once, naming the holder, if another process holds it; or if the folder
                holds something that is no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; choose a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._begun():
            raise UsageError(f"{self.path} holds other files; choose an empty or a new --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.path, 0, error) from error
        place = self.path.resolve()
        with held(self.path):
            self.clean()
            _LOCKED.add(place)
            try:
                yield
            finally:
                _LOCKED.discard(place)
