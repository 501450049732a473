"""Tensors and settings as files, which are read without executing anything and told if damaged."""

import hashlib
import io
import json
import struct
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from stridenet.errors import InputError
from stridenet.files import destination, read
from stridenet.files import write as write  # the runs write through this module

if TYPE_CHECKING:
    from torch import nn

# The end of a zip archive, which torch.save writes: this signature, 16 bytes, the length of a comment.
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22
SEAL_BYTES = 64  # of a SHA-256 in hexadecimal digits


def write_json(path: Path, content: Any) -> None:
    """Write all of the file or nothing."""
    write(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def lock_file(path: Path) -> FileLock:
    """Return a lock on this file, which is created if it is missing.

    Raises InputError where it is no ordinary file.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link, and a file is locked there; remove it")
    destination(path)
    return FileLock(path)


def save_tensors(path: Path, content: dict[str, Any], sealed: bool = False) -> str:
    """Write tensors and what lies beside them, all of it or nothing; returns the file's SHA-256.

    sealed: with the hash of its content in it, which `load_tensors` checks.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    whole = _seal(buffer.getvalue()) if sealed else buffer.getvalue()
    write(path, whole)
    return hashlib.sha256(whole).hexdigest()


def _seal(archive: bytes) -> bytes:
    """Return the zip archive with the SHA-256 of its bytes as its comment, which torch ignores."""
    body = archive[:-2] + struct.pack("<H", SEAL_BYTES)
    return body + hashlib.sha256(body).hexdigest().encode()


def _seal_holds(content: bytes) -> bool:
    """Tell whether the content has the hash of its seal.

    Archives of older code have no seal, and pass.
    """
    body, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    end = content[-ZIP_END_BYTES:]
    if end.startswith(ZIP_END) and end.endswith(b"\0\0"):  # no comment
        return True
    return hashlib.sha256(body).hexdigest().encode() == seal


def load_tensors(path: Path, sealed: bool = False) -> Any:
    """Return what `save_tensors` wrote, and execute nothing from the file.

    Raises OSError, InputError.
    """
    import torch

    content = read(path)
    if sealed and not _seal_holds(content):
        raise InputError(f"{path} is not a whole file of weights: its SHA-256 is another one")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on a foreign or cut-off file varies
        raise InputError(f"{path} is not a whole file of weights, as a run writes them") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits. Raises OSError, InputError."""
    return hashlib.sha256(read(path)).hexdigest()


def load_weights(path: Path, network: "nn.Module") -> None:
    """Put a state_dict into a network of the same layers; executes nothing from the file."""
    state = load_tensors(path)
    try:
        network.load_state_dict(state)
    except Exception as error:  # likewise, on whatever else the file may hold
        reason = textwrap.shorten(" ".join(str(error).split()), 200)
        raise InputError(f"the weights in {path} are of another network ({reason})") from error
