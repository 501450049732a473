"""Writing replaces only ordinary files, follows links, leaves nothing behind; reading never hangs."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.runs.files import load_tensors, lock_file, save_tensors, write_json
from experiments.settings.checks import resolve
from experiments.settings.conversions import ZooConfig
from experiments.settings.schema import RunConfig
from stridenet import export_onnx
from stridenet.errors import InputError
from stridenet.files import (
    destination,
    folder_for,
    make_folder,
    move,
    read,
    remove_half_written,
    write,
)
from tests.conftest import settings_of
from tests.devices import harmless_device

NET, SIZE = nn.Sequential(nn.Conv2d(1, 2, 2)), (1, 4, 4)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kind(path: Path) -> int:
    return stat.S_IFMT(path.lstat().st_mode)


DEVICES: list[Path] = []  # none of the machine's own, see tests/devices.py


@pytest.fixture(autouse=True)
def our_device() -> Iterator[None]:
    with harmless_device() as one:
        DEVICES[:] = [one]
        yield


def device(path: Path) -> None:
    path.symlink_to(DEVICES[0])


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the name of a socket may not be long
        server.bind(path.name)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


OTHERS = [device, fifo, link_to_fifo, listening, folder, loop]


@pytest.fixture(autouse=True)
def same_folder() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize(
    "writing",
    [
        lambda path: write(path, b"new"),
        lambda path: write_json(path, {"new": 1}),
        lambda path: save_tensors(path, {"new": torch.zeros(1)}),
        lambda path: export_onnx(NET, path, SIZE),
    ],
)
def test_what_is_no_ordinary_file_stays_and_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], None], writing: Callable[[Path], None]
) -> None:
    path = tmp_path / "it.onnx"
    make(path)
    before, of_kind = names(tmp_path), kind(path)
    with pytest.raises((InputError, OSError)) as caught:
        writing(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (names(tmp_path), kind(path)) == (before, of_kind)


def test_a_device_itself_is_refused() -> None:
    (path,) = DEVICES
    with pytest.raises(InputError, match=f"{path} is a device"):
        write(path, b"new")
    assert stat.S_ISCHR(path.stat().st_mode)


@pytest.mark.slow
@pytest.mark.parametrize("companion", ["net.onnx.data", "net.layout.json"])
def test_what_an_earlier_export_did_not_make_stays(tmp_path: Path, companion: str) -> None:
    mine = tmp_path / companion
    mine.write_text("mine")
    export_onnx(NET, tmp_path / "net.onnx", SIZE)  # replaces no export, of which it could be
    assert mine.read_text() == "mine"
    mine.unlink()
    for make in (device, folder):
        make(mine)
        export_onnx(NET, tmp_path / "net.onnx", SIZE)
        assert mine.is_symlink() or mine.is_dir()
        mine.unlink() if mine.is_symlink() else mine.rmdir()
    mine.write_text("of the export that is replaced")
    export_onnx(NET, tmp_path / "net.onnx", SIZE)
    assert names(tmp_path) == {"net.onnx"}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_to_its_file_and_stays_a_link(tmp_path: Path, there: bool) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "file", tmp_path / "here" / "link"
    if there:
        file.write_bytes(b"old")
    link.symlink_to("second")
    (tmp_path / "here" / "second").symlink_to(file)
    write(link, b"new")
    assert link.is_symlink()
    assert not file.is_symlink()
    assert file.read_bytes() == b"new"
    (tmp_path / "finished").write_bytes(b"newer")
    move(tmp_path / "finished", link)
    assert file.read_bytes() == b"newer"
    assert names(tmp_path) == {"here", "elsewhere"}
    assert names(tmp_path / "here") == {"link", "second"}
    assert names(tmp_path / "elsewhere") == {"file"}


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_new_files_follow_the_umask_and_replaced_ones_keep_their_permissions(
    tmp_path: Path, umask: int
) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    (tmp_path / "kept").chmod(0o640)
    before = os.umask(umask)
    try:
        for name in ("new", "kept"):
            write(tmp_path / name, b"content")
        export_onnx(NET, tmp_path / "made" / "net.onnx", SIZE)
    finally:
        os.umask(before)
    permissions = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert permissions == {"new": 0o666 & ~umask, "kept": 0o640, "made": 0o777 & ~umask}
    assert (tmp_path / "made" / "net.onnx").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("path", ["", " ", "a\0b", "new/"])
def test_a_path_that_names_no_file_is_refused(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        export_onnx(NET, path, SIZE)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
@pytest.mark.parametrize(
    ("command", "schema", "key"),
    [
        ("train", RunConfig, "outputs"),
        ("train", RunConfig, "published"),
        ("zoo", ZooConfig, "outputs"),
        ("zoo", ZooConfig, "weights"),
    ],
)
def test_a_setting_that_names_no_path_is_refused(
    command: str, schema: type, key: str, path: str
) -> None:
    settings = settings_of(command, ()).copy()
    settings[key] = path
    if command == "train":
        settings.recipe.learning_rate = 0.1
    with pytest.raises(InputError, match=f"^{key}="):
        resolve(settings, schema)


def test_a_long_name_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        write(tmp_path / name, b"content")
        assert names(tmp_path) == {name}
        (tmp_path / name).unlink()


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_cannot_take_its_place_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path, replace = tmp_path / "a" / "b" / "net.onnx", os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).suffix == ".onnx":
            raise error
        replace(source, target)

    monkeypatch.setattr("stridenet.onnx.export.SINGLE_FILE_LIMIT", 1)  # weights beside
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        export_onnx(NET, path, SIZE)
    assert names(tmp_path) == set()


def copy_and_fail(path: Path) -> None:
    write(path, b"")
    raise OSError(28, "No space left on the device of a file")


def test_folders_made_for_a_file_stay_where_it_does_or_another_is_in_them(tmp_path: Path) -> None:
    with folder_for(tmp_path / "a" / "b" / "file"):
        write(tmp_path / "a" / "b" / "file", b"")
    with pytest.raises(OSError, match="file"), folder_for(tmp_path / "a" / "c" / "d" / "file"):
        copy_and_fail(tmp_path / "a" / "c" / "mine")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {
        "a", "a/b", "a/b/file", "a/c", "a/c/mine",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="part of this path is a file") as caught:
        make_folder(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("make", [device, fifo, link_to_fifo, listening, folder])
def test_reading_does_not_wait_for_what_is_no_file(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "it")
    for reading in (read, load_tensors):
        with pytest.raises(InputError, match="a file is needed there"):
            reading(tmp_path / "it")


@pytest.mark.parametrize("make", [*OTHERS, lambda path: path.symlink_to("mine")])
def test_a_lock_is_an_ordinary_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "mine").write_text("mine")
    make(tmp_path / "lock")
    with pytest.raises((InputError, OSError)), lock_file(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_only_what_writing_left_is_removed(tmp_path: Path) -> None:
    for name in (".result.json-0123abcd", ".result.json-x7_a9bcd"):  # ours, and the code's before
        (tmp_path / name).write_text("half")
    (tmp_path / ".my-notes").write_text("mine")
    (tmp_path / ".folder-12345678").mkdir()
    remove_half_written(tmp_path)
    assert names(tmp_path) == {".my-notes", ".folder-12345678"}


def test_a_file_that_another_process_makes_meanwhile_is_a_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, realpath = tmp_path / "lock", os.path.realpath

    def made_meanwhile(given: Path) -> str:
        path.touch()
        return realpath(given)

    monkeypatch.setattr(os.path, "realpath", made_meanwhile)
    assert destination(path) == path
