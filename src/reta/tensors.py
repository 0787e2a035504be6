"""Tensors and images as bytes of plain files: safetensors and PNG, never pickle."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from PIL import Image
from safetensors.torch import load, save

from reta.errors import DataError


def tensor_bytes(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> bytes:
    """Return a safetensors file holding tensors and, as metadata, JSON facts about them."""
    # One entry, because the format writes several in no fixed order: equal content, equal bytes.
    metadata = {"facts": json.dumps(dict(facts), sort_keys=True)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(contiguous, metadata)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a safetensors file.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; is this a run folder of reta?") from error
    except (safetensors.SafetensorError, ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); run `reta verify` on its folder") from error


def tensors_of(data: bytes, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the facts in the bytes of a safetensors file.

    Args:
        data: from `tensor_bytes`.
        name: what to call it in messages.

    Raises:
        DataError: if it is damaged.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, json.loads(header["__metadata__"]["facts"])
    except (safetensors.SafetensorError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{name}: damaged ({error})") from error


def png_bytes(image: torch.Tensor) -> bytes:
    """Return a PNG of one image ``(3, h, w)`` uint8."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(buffer, "PNG")
    return buffer.getvalue()


def png_files(images: torch.Tensor) -> Iterator[bytes]:
    """Yield a PNG of each image ``(n, 3, h, w)`` uint8, in order; threads encode ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib releases the interpreter lock
        yield from pool.map(png_bytes, images)
