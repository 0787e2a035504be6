"""Files that survive a crash, and what they hold: atomic writes, hashes, JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from reta.errors import DataError, StorageError


def atomic_write(path: Path, *parts: bytes, sync: bool = True) -> None:
    """Write a file so that a crash leaves either the old content or the new, never a mixture.

    Args:
        path: the file; folders on the way are made.
        parts: its content, one after the other.
        sync: wait until it is on the disk. Without, a power cut may lose it until `sync_files` was
            called on it.

    Raises:
        StorageError: if the disk is full, read-only or over quota; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        os.makedirs(path.parent, exist_ok=True)  # noqa: PTH103 - every call below is one of os
        try:
            _write(temporary, parts, sync)
            os.replace(temporary, path)  # noqa: PTH105
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        if sync:
            _sync(path.parent)
    except OSError as error:
        raise storage_error(path, sum(map(len, parts)), error) from error


def _write(path: Path, parts: tuple[bytes, ...], sync: bool) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(handle, rest) :]
        if sync:
            os.fsync(handle)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    # Of a file: its content. Of a folder: the names in it.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(paths: list[Path]) -> None:
    """Wait until files, and their names, are on the disk: cheaper together than one by one.

    A disk writes out a dozen files that are waited for at once about as fast as one.

    Raises:
        StorageError: if one cannot be brought there.
    """

    def sync(path: Path) -> None:
        try:
            _sync(path)
        except OSError as error:
            raise storage_error(path, 0, error) from error

    for stage in (paths, sorted({path.parent for path in paths})):  # first files, then names
        with ThreadPoolExecutor(16, thread_name_prefix="fsync") as threads:
            list(threads.map(sync, stage))


def storage_error(path: Path, size: int, error: OSError) -> StorageError:
    """Return one clear message for whatever kept a file from being written."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would exceed the size limit",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission denied",
    }
    reason = reasons.get(error.errno or 0, str(error))
    free = _free(path)
    what = f"{size:,} bytes" if size else "it"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"{path}: could not write {what}: {reason}{free}; "
            "free space and run the same command again, or choose another --out"
        )
    return StorageError(f"{path}: could not write {what}: {reason}{free}; check the folder")


def _free(path: Path) -> str:
    try:
        return f" ({shutil.disk_usage(_existing(path)).free:,} bytes are free)"
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    """Return the nearest folder on the way to a path that is there."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))


def require_space(path: Path, size: int) -> None:
    """Say that a disk is too small before the work is done, not after.

    Args:
        path: a file or folder that may not be there yet.
        size: bytes that are about to be written below or at it.

    Raises:
        StorageError: if the disk has less space.
    """
    try:
        free = shutil.disk_usage(_existing(path / "_")).free
    except OSError:
        return  # a file system that does not tell
    if free < size:
        raise StorageError(
            f"{path}: needs {size:,} bytes, but the disk has only {free:,} free; "
            "free space and run the same command again, or choose another --out"
        )


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """Return JSON a person can read and two equal values agree on byte for byte."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return sha256(json_bytes(value))


def read_json(path: Path) -> Any:
    """Return the JSON value in a file.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; is this a run folder of reta?") from error
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); repair: the same command again") from error
