"""The files of a run: nothing half written, weights that run no code, locks."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.runs.files import load_weights, save_tensors, write, write_json
from experiments.runs.folder import locked, run_folder
from experiments.runs.results import read_result
from experiments.runs.run import run_once
from experiments.settings.schema import RunConfig
from stridenet.errors import InputError
from stridenet.files import move
from tests.experiments.runs import Payload, file_names, network

ROOT = Path(__file__).resolve().parents[2]


# Writing


def test_a_file_is_written_whole_readable_by_all_and_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    write(tmp_path / "file", b"old and long")
    write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert file_names(tmp_path) == {"file"}


@pytest.mark.parametrize("broken", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(type(error)) as caught:
        write(tmp_path / "file", b"new")
    if isinstance(error, OSError):
        assert str(tmp_path / "file") in str(caught.value)
        assert error.strerror in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert file_names(tmp_path) == {"file"}


@pytest.mark.parametrize("puts", ["write", "move"])
def test_content_is_on_the_disk_before_the_file_has_its_name(
    puts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").write_bytes(b"content")
    calls: list[tuple[str, int]] = []
    replace_file, fsync = os.replace, os.fsync

    def replacing(source: str, target: Path) -> None:
        calls.append(("replace", Path(source).stat().st_size))
        replace_file(source, target)

    def syncing(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(os, "fsync", syncing)
    if puts == "write":
        write(tmp_path / "file", b"content")
    else:
        move(tmp_path / "made", tmp_path / "file")
    assert calls == [("fsync", 7), ("replace", 7)]


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    for content in (float("nan"), {"a": float("inf")}, {"a": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "file.json", content)
    assert file_names(tmp_path) == set()
    write_json(tmp_path / "file.json", {"a": [1, None, 0.1]})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": [1, None, 0.1]}


# Results


def test_a_folder_without_a_result_is_not_done(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", '{"run": "x"', "[]", "null", "7", "\x00\x00", "{}"])
def test_a_damaged_result_is_named_with_the_cure(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_result(tmp_path)
    assert str(tmp_path / "result.json") in str(caught.value)
    assert f"rm -r {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_come_back_exactly(tmp_path: Path) -> None:
    saved, loaded = network(), network()
    save_tensors(tmp_path / "weights.pt", saved.state_dict())
    load_weights(tmp_path / "weights.pt", loaded)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert file_names(tmp_path) == {"weights.pt"}


def foreign(path: Path) -> None:
    path.write_text("These are no weights.\n")


def truncated(path: Path) -> None:
    save_tensors(path, network().state_dict())
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"0.weight": Payload(path.with_name("victim"))}))


def saved_code(path: Path) -> None:
    torch.save({"0.weight": Payload(path.with_name("victim"))}, path)


def whole_module(path: Path) -> None:
    torch.save(network(), path)


def a_list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def other_layers(path: Path) -> None:
    save_tensors(path, nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict())


def other_sizes(path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(8, 3))
    save_tensors(path, network.state_dict())


@pytest.mark.parametrize(
    "make", [foreign, truncated, empty, pickled_code, saved_code, whole_module]
)
def test_a_file_that_holds_no_weights_is_named_and_runs_nothing(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(InputError, match="is not a whole file of weights") as caught:
        load_weights(path, network())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert file_names(tmp_path) == {"weights.pt"}  # the victim was not made


@pytest.mark.parametrize("make", [a_list, other_layers, other_sizes])
def test_weights_of_another_network_are_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "weights.pt"
    make(path)
    with pytest.raises(InputError, match="of another network") as caught:
        load_weights(path, network())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_the_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    pickled_code(tmp_path / "weights.pt")
    pickle.loads((tmp_path / "weights.pt").read_bytes())
    assert (tmp_path / "victim").exists()


# Locks


def test_a_second_process_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a-run"
    program = (
        "import sys; from pathlib import Path; from experiments.runs.folder import locked\n"
        "with locked(Path(sys.argv[1])): Path(sys.argv[1], 'second').touch()\n"
    )
    with locked(folder):
        command = [sys.executable, "-c", program, str(folder)]
        second = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        # The line comes while the first still holds the lock.
        assert second.stderr.readline().startswith("a-run: waiting, another process")
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=0.5)
        assert not (folder / "second").exists()
    _, rest = second.communicate(timeout=60)
    assert (second.returncode, rest) == (0, "")
    assert (folder / "second").exists()


def test_a_free_lock_is_taken_silently_and_freed_after_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="stopped"), locked(tmp_path / "run"):
        raise RuntimeError("stopped")
    with locked(tmp_path / "run"):
        pass
    assert capfd.readouterr() == ("", "")


def test_what_a_killed_process_left_half_written_is_removed(config: RunConfig) -> None:
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / ".checkpoint.pt-abcd1234").write_bytes(b"half")
    run_once(config)
    assert file_names(folder) == {"lock", "config.yaml", "weights.pt", "result.json"}


def test_a_file_where_a_folder_should_be_is_named(config: RunConfig) -> None:
    Path(config.outputs).mkdir()
    (Path(config.outputs) / "runs").write_text("")
    with pytest.raises(InputError, match=r"part of this path is a file; remove it") as caught:
        run_once(config)
    assert str(run_folder(config)) in str(caught.value)
