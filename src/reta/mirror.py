"""A run folder whose home is a URL: ``s3://bucket/run``, ``gs://…`` or any other of fsspec.

Work is done in a local copy of it; every unit that is finished goes home, its record last, and
what other machines finished is brought when it is needed. The home is the truth: a record that is
not there does not count, and every file that is brought is compared with its record.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from reta.errors import StorageError, UsageError

_HOMES: dict[Path, str] = {}  # local copies and their homes, in this process


@dataclass(frozen=True)
class Mirror:
    """A local folder and the URL that is its home.

    Attributes:
        path: the local copy.
        url: its home.
    """

    path: Path
    url: str

    def send(self, names: Iterable[str]) -> None:
        """Copy files home, in this order.

        Raises:
            StorageError: if the home cannot be written.
        """
        files, root = self._home()
        for name in names:
            there = f"{root}/{name}"
            try:
                files.makedirs(there.rpartition("/")[0], exist_ok=True)
                files.put_file(str(self.path / name), there)
            except Exception as error:  # each store has errors of its own
                raise StorageError(f"{self.url}/{name}: could not be written: {error}") from error

    def bring(self, names: Iterable[str]) -> None:
        """Copy files here; one that is not at home is removed here too.

        Raises:
            StorageError: if the home cannot be read.
        """
        files, root = self._home()
        for name in names:
            here = self.path / name
            here.parent.mkdir(parents=True, exist_ok=True)
            coming = here.with_name(f".{here.name}.{os.getpid()}.tmp")
            try:
                files.get_file(f"{root}/{name}", str(coming))
                coming.replace(here)
            except FileNotFoundError:
                here.unlink(missing_ok=True)
            except Exception as error:  # each store has errors of its own
                raise StorageError(f"{self.url}/{name}: could not be read: {error}") from error
            finally:
                coming.unlink(missing_ok=True)

    def names(self, below: str = "") -> list[str]:
        """Return the names of the files at home, or of those below a folder of it."""
        return sorted(self._sizes(below))

    def bring_all(self) -> None:
        """Copy here what is not here yet; of a file of the same size, only if it is JSON."""
        wanted = []
        for name, size in sorted(self._sizes().items()):
            here = self.path / name
            if name.endswith(".json") or not here.is_file() or here.stat().st_size != size:
                wanted.append(name)
        self.bring(wanted)

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """Yield a fresh copy of everything at home; it is removed afterwards."""
        with TemporaryDirectory(prefix="reta-") as folder:
            Mirror(Path(folder), self.url).bring_all()
            yield Path(folder)

    def _sizes(self, below: str = "") -> dict[str, int]:
        files, root = self._home()
        files.invalidate_cache()
        found: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            found = files.find(f"{root}/{below}".rstrip("/"), detail=True)
        return {
            name.removeprefix(root).lstrip("/"): int(facts["size"]) for name, facts in found.items()
        }

    def _home(self) -> tuple[Any, str]:
        try:
            files, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{self.url}: {error}") from error
        return files, root.rstrip("/")


def local(where: Path | str) -> Path:
    """Return the local folder of a path or URL; a URL gets a copy below ``RETA_CACHE``.

    That is ``~/.cache/reta`` by default. It must be a place that every machine of a cluster has.
    """
    text = str(where)
    if isinstance(where, Path) or "://" not in text:
        return Path(where)
    cache = Path(os.environ.get("RETA_CACHE", "~/.cache/reta")).expanduser()
    scheme, _, rest = text.partition("://")
    path = cache / scheme / rest.strip("/")
    attach({path: text.rstrip("/")})
    return path


def attach(homes: Mapping[Path, str]) -> None:
    """Say of local folders that they are copies of URLs."""
    _HOMES.update(homes)


def homes() -> dict[Path, str]:
    """Return the local copies of this process and their homes."""
    return dict(_HOMES)


def mirror_of(path: Path) -> Mirror | None:
    """Return the mirror of a folder that is, or lies in, the copy of a URL."""
    for folder in (path, *path.parents):
        if folder in _HOMES:
            below = path.relative_to(folder).as_posix()
            return Mirror(path, _HOMES[folder] + ("" if below == "." else f"/{below}"))
    return None
