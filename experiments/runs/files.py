"""Files that are written whole or not at all, and tensors that are read without executing anything."""

import io
import json
import os
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stridenet.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def write(path: Path, content: bytes) -> None:
    """Write all of a file or nothing of it, whatever happens meanwhile."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write all of the file or nothing."""
    write(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and what lies beside them, all of it or nothing."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def load_tensors(path: Path) -> Any:
    """What `save_tensors` wrote; executes nothing from the file. Raises OSError, InputError."""
    import torch

    content = io.BytesIO(path.read_bytes())
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on a foreign or cut-off file varies
        raise InputError(f"{path} is not a whole file of weights, as a run writes them") from error


def load_weights(path: Path, network: "nn.Module") -> None:
    """Put a state_dict into a network of the same layers; executes nothing from the file."""
    state = load_tensors(path)
    try:
        network.load_state_dict(state)
    except Exception as error:  # likewise, on whatever else the file may hold
        reason = textwrap.shorten(" ".join(str(error).split()), 200)
        raise InputError(f"the weights in {path} are of another network ({reason})") from error
