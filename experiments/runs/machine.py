"""The machine that a run is done on: device, threads, processor, versions, commit."""

import contextlib
import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import stridenet
from experiments.runs.result_keys import Circumstances
from experiments.settings.conversions import ConversionBenchmarkConfig, SurveyConfig, ZooConfig
from experiments.settings.schema import BenchmarkConfig, RunConfig
from stridenet.errors import InputError

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h
M_MMAP_THRESHOLD = -3


CODE_FOLDERS = ("stridenet", "experiments", "conf")  # what decides a run's numbers
IN_GIT = tuple(f":/{name}" for name in CODE_FOLDERS)
BY_HASH = "sources-"  # begins what stands in a commit's place
ALREADY_SAID = "STRIDENET_SOURCES_SAID"
PACKAGES = ("stridenet", "torch", "torchvision", "numpy", "hydra-core")


def choose_device(name: str) -> torch.device:
    """Return the device that `device=` means; auto takes an accelerator if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return found or torch.device("cpu")
    if name != "cpu" and (found is None or found.type != name):
        raise InputError(f"device={name} is not here; take device={found.type if found else 'cpu'}")
    return torch.device(name)


def prepare(threads: int) -> None:
    """Set this process up to train.

    On the same machine, build and threads the numbers are then the same, bit for bit.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        # By default every step gives its feature maps back to the kernel and gets them again page by
        # page, which takes a fifth of the time. Other C libraries than glibc lack the function.
        keep = getattr(ctypes.CDLL(None), "mallopt", None)
        if keep is not None:
            keep(M_MMAP_THRESHOLD, 1 << 25)  # what is larger, as data sets are, is still given back
            keep(M_TRIM_THRESHOLD, 1 << 30)


def circumstances(
    config: RunConfig | BenchmarkConfig | ConversionBenchmarkConfig | SurveyConfig | ZooConfig,
    device: torch.device,
    jobs_at_once: int | None = 1,
) -> Circumstances:
    """Return what a reader needs to judge the seconds, or to do the run again."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else _processor(),
        "threads": config.threads,
        "jobs_at_once": jobs_at_once,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "git_commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    """Return the processor's name, from where Linux has it or from Python's best guess."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # stridenet run from its folder without being installed
        return None


def commit() -> str:
    """Return the git commit, with + behind it if files have changed since.

    Where git tells none, a hash of the code stands in its place, and the first call says so.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # not of what we are installed in
        return _git("rev-parse", "HEAD") + (
            "+" if _git("status", "--porcelain", "--", *IN_GIT) else ""
        )
    except (OSError, subprocess.SubprocessError) as error:
        found = f"{BY_HASH}{_hash_of_sources()}"
        if not os.environ.get(ALREADY_SAID):  # which the processes that this one starts see, too
            os.environ[ALREADY_SAID] = "1"
            print(
                f"git tells no commit ({_why_not(error)}): {found}, a hash of the files in "
                f"{', '.join(CODE_FOLDERS)}, stands in its place",
                file=sys.stderr,
                flush=True,
            )
        return found


def _git(*command: str) -> str:
    """Return what git says of the repository of this file, whatever the current folder is."""
    others = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
    plain = {name: value for name, value in os.environ.items() if name not in others}
    return subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *command],
        env={**plain, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


def _why_not(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = " ".join(str(error.stderr).split()).removeprefix("fatal: ").removeprefix("error: ")
        return textwrap.shorten(said, 160) or f"exit code {error.returncode}"
    return "git is not installed" if isinstance(error, FileNotFoundError) else str(error)


def _hash_of_sources() -> str:
    """Return forty digits of a SHA-256 over the files that decide a run's numbers.

    Their names count as well as their contents.
    """
    here = Path(__file__).resolve().parents[2]
    roots = {name: here / name for name in CODE_FOLDERS} | {
        "stridenet": Path(stridenet.__file__).parent
    }
    paths = {
        f"{name}/{path.relative_to(root).as_posix()}": path
        for name, root in roots.items()
        for path in root.rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    whole = hashlib.sha256()
    for name in sorted(paths):
        content = paths[name].read_bytes()
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()[:40]


def short_commit(commit: Any) -> str:
    """Return the first digits of a commit, or of the hash that stands for it.

    A + behind it stays: files had changed since.
    """
    text = str(commit)
    digits = len(BY_HASH) + 8 if text.startswith(BY_HASH) else 8
    return text[:digits] + "+" * text.endswith("+")
