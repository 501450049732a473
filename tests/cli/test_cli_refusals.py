"""What is wrong with what was typed: exit code 2, one line that helps, and nothing is written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from stridenet.cli.ending import with_options
from stridenet.cli.output import checked_output
from stridenet.errors import InputError
from tests.command import Cli, files_in
from tests.onnx_models import convolution, saved

ROOT = Path(__file__).resolve().parents[2]
MODELS = """\
import os, sys
from torch import nn

def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, 2, 2))

def number():
    return 3

def raises():
    raise RuntimeError("out of\\n  order")

def raises_more():
    raise BaseException("anything")

def leaves():
    print("no data here", file=sys.stderr)
    sys.exit(0)

def leaves_at_once():
    os._exit(0)

def stops():
    raise KeyboardInterrupt

class Leaves(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3, stride=2)

    def forward(self, x):
        sys.exit(0)

class Raises(Leaves):
    def forward(self, x):
        raise ValueError("not\\nnow")

class Closes(Leaves):
    def forward(self, x):
        sys.stdout.close()
        os._exit(0)

network = small()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: models, an ONNX file, and files that hold no network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(MODELS)
    (tmp_path / "leaves.py").write_text("import sys\nprint('\\nset UP first\\n')\nsys.exit(0)\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    saved(convolution([3, 3], [2, 2], pads=[1, 1, 1, 1]), tmp_path, "net.onnx")
    (tmp_path / "text.onnx").write_text("This is no network.")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:-60])
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("These are no weights.")
    return tmp_path


SIZE = ["--input-size", "3,9,9"]
OUT = ["-o", "out.onnx"]
TYPED = [
    (["plann"], "no such command 'plann'. Did you mean 'plan'?"),
    (["--helpp"], "Did you mean '--help'?"),
    (["plan"], "missing argument 'MODEL'; stridenet plan --help lists what there is"),
    (["plan", "net.onnx", "--poolin"], "'--pooling'"),
    (["plan", "net.onnx", "--kernel", "ood"], "not one of minimal, odd (did you mean 'odd'?)"),
    (["plan", "net.onnx", "more"], "unexpected extra argument (more)"),
    (["plan", "bad.py:small", "--input-size", "3,x"], "3,x is no size of one image"),
    (["plan", "bad.py:small", "--input-size", "3,0"], "3,0 is no size of one image"),
    (["plan", "bad.py:small", "--input-size", "3,²"], "3,² is no size of one image"),
    (["plan", "bad.py:small", "--args", "{'a': 1}"], "is no JSON object (Expecting"),
    (["plan", "bad.py:small", "--args", "[1]"], "is no JSON object; write '{"),
    (["plan", "bad.py:small", "--seed", "-1"], "-1 is not in the range"),
    (["plan", "bad.py:small", "--theorem", "3"], "not one of 1, 2"),
    (["plan", "bad.py:small", "--theorem", "2"], "--theorem 2 needs the size of the input"),
    (["plan", "bad.py:small", *SIZE, "--theorem=2", "--output-factor=0"], "0 is not N[,N…]"),
    (["plan", "net.onnx", *SIZE], "--input-size has no effect on net.onnx"),
    (["plan", "net.onnx", "--batch-norm=shared"], "--batch-norm has no effect here: it is for PyTorch"),
    (["plan", "bad.py:small", "--kernel=odd"], "--kernel has no effect here: it is for ONNX files"),
    (["plan", "bad.py:small", *SIZE, "--theorem=2", "--pooling"], "(--theorem 1)"),
    (["plan", "bad.py:small", "--output-factor=2"], "(--theorem 2)"),
    (["plan", "net.onnx", "--csv", "net.onnx"], "net.onnx must end in .csv"),
    (["convert", "net.onnx"], "missing option '-o'"),
    (["convert", "net.onnx", *OUT, "--sizes", "x"], "x is not an input's size"),
    (["convert", "net.onnx", *OUT, "--sizes", "y=1,3,9,9"], "--sizes: 'y' is no input; there are: x"),
    (["convert", "net.onnx", *OUT, "--only", "conw"], "--only: 'conw' is no node"),
    (["convert", "net.onnx", *OUT, "--rearrange=graph"], "--rearrange graph is unknown"),
    (["convert", "bad.py:small", *OUT], ".onnx file needs the size of the input"),
    (["convert", "bad.py:small", *OUT, *SIZE, "--rearrange=host"], "needs --theorem 2; or"),
    (["convert", "bad.py:small", *OUT, *SIZE, "--rearrange=two-step", "--theorem=2"],
     "needs --theorem 1"),
    (["convert", "bad.py:small", *OUT, *SIZE, "--kernel=odd", "--only=0"], "--only has no effect"),
    (["convert", "bad.py:small", *SIZE, "--tolerance=1", "-o", "out.pt2"], "--tolerance has no effect"),
    (["convert", "bad.py:small", *OUT, *SIZE, "--tolerance=nan"], "nan is no number from 0 on"),
    (["convert", "bad.py:small", *OUT, *SIZE, "--theorem=2", "--max-parameters=9"],
     "more than --max-parameters 9; --theorem 1 needs far fewer"),
    (["verify", "net.onnx"], "stridenet verify net.onnx CONVERTED.onnx"),
    (["verify", "net.onnx", "bad.py:small"], "bad.py:small is no ONNX file"),
    (["verify", "bad.py:small", "net.onnx"], "is given alone"),
    (["verify", "net.onnx", "net.onnx", "--rounds=2"], "two ONNX files with --benchmark"),
    (["verify", "net.onnx", "net.onnx", "--all"], "--all has no effect on ONNX files"),
    (["verify", "bad.py:small", "--benchmark"], "--benchmark times two ONNX files"),
    (["verify", "net.onnx", "net.onnx", "--benchmark", "--rounds=0"], "0 is not in the range"),
]  # fmt: skip
NAMED = [
    ("nowhere.onnx", "nowhere.onnx does not exist"),
    ("nett.onnx", "did you mean 'net.onnx'"),
    ("text.onnx", "text.onnx is no ONNX file"),
    ("cut.onnx", "cut.onnx is no"),
    ("net.onx", "did you mean 'net.onnx'?"),
    ("bad", "give file.onnx, package.module:function or file.py:function"),
    ("bad.py", "as in bad.py:small (bad.py has small, number, raises"),
    ("bdd.py:small", "bdd.py is not a file (did you mean 'bad.py'?)"),
    ("gone/bad.py:small", "there is no folder gone"),
    ("other.pt", "give its function, and --weights FILE"),
    ("net.tflite", ".tflite files are not read, see docs/deploy.md"),
    ("torch.nn.ReLU", "did you mean torch.nn:ReLU?"),
    ("bad.py:", "nothing after the colon is no function's name"),
    ("bad.py:a b", "a b after the colon is no function's name"),
    ("nett.pkl:f", "no module named 'nett'"),
    ("other.pt:f", "other.pt cannot be imported"),
    ("/etc/passwd:f", "/etc/passwd is neither FILE.py nor a module"),
    ("bad.py:smal", "bad.py has no smal (did you mean 'small'?)"),
    ("nowhere.there:f", "nowhere.there cannot be imported: ModuleNotFoundError"),
    ("broken.py:f", "broken.py cannot be imported: SyntaxError"),
    ("leaves.py:f", "leaves.py:f called sys.exit(0) (it printed: set UP first)"),
    ("bad.py:number", "bad.py:number gives int, not a torch.nn.Module"),
    ("bad.py:network", "bad.py:network is a Sequential, not a function"),
    ("bad.py:raises", "bad.py:raises failed: RuntimeError: out of order; its arguments"),
    ("bad.py:raises_more", "bad.py:raises_more failed: BaseException: anything"),
    ("bad.py:leaves", "bad.py:leaves called sys.exit(0) (it printed: no data here)"),
    ("bad.py:leaves_at_once", "bad.py:leaves_at_once called os._exit(0)"),
    ("bad.py:stops", "bad.py:stops failed: KeyboardInterrupt"),
    ("torch.nn:Conv2d", "torch.nn:Conv2d failed: TypeError"),
]


@pytest.mark.parametrize(("typed", "told"), TYPED, ids=lambda value: str(value)[:60])
def test_what_is_typed_wrongly_is_told_in_one_line(
    typed: list[str], told: str, folder: Path, cli: Cli
) -> None:
    before = files_in(folder)
    said = cli(*typed)
    assert said.code == 2
    assert said.line.startswith("error: ")
    assert told.lower() in said.line.lower()
    assert {*files_in(folder)} - {"__pycache__"} == {*before}


@pytest.mark.parametrize(("model", "told"), NAMED)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_model_that_is_none_is_told_in_one_line(
    command: str, model: str, told: str, folder: Path, cli: Cli
) -> None:
    before = files_in(folder)
    out = [*OUT, *SIZE] if command == "convert" and "onn" not in model else OUT
    said = cli(command, model, *(out if command == "convert" else []))
    assert said.code == 2
    assert told.lower() in said.line.lower()
    assert {*files_in(folder)} - {"__pycache__"} == {*before}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Leaves", "called sys.exit(0)"),
        ("Raises", "not now"),
        ("Closes", "called os._exit(0)"),
    ],
)
@pytest.mark.parametrize("command", [["verify"], ["convert", *OUT], ["convert", "-o", "out.pt2"],
                                     ["plan"]])  # fmt: skip
def test_a_forward_that_leaves_is_no_success(
    command: list[str], name: str, told: str, folder: Path, cli: Cli
) -> None:
    said = cli(*command, f"bad.py:{name}", *SIZE)
    assert said.code == 2
    assert told in said.line
    assert not [name for name in files_in(folder) if "out" in name]


def test_a_size_that_does_not_fit_is_told_with_the_option(folder: Path, cli: Cli) -> None:
    said = cli("verify", "bad.py:small", "--input-size", "4,9,9")
    assert "see that --input-size is what it takes" in said.line
    assert "map 4x9x9" in cli("verify", "bad.py:small", "--theorem=2", "--input-size=4,9,9").line


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("nowhere.pt", "--weights nowhere.pt is not a file"),
        ("text.pt", "--weights text.pt is not a whole file of tensors"),
        ("other.pt", "--weights other.pt is of another network: "),
        ("evil.pt", "--weights evil.pt is not a whole file of tensors"),
    ],
)
def test_weights_that_do_not_fit(weights: str, told: str, folder: Path, cli: Cli) -> None:
    torch.save(Unpickled(folder / "was_here"), folder / "evil.pt")
    said = cli("plan", "bad.py:small", "--weights", weights)
    assert (said.code, told in said.line) == (2, True)
    assert not (folder / "was_here").exists()


class Unpickled:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


# Where nothing can be written


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("net.onnx", "net.onnx would be written over net.onnx, which is read from"),
        ("./net.onnx", "which is read from"),
        ("hard.onnx", "hard.onnx would be written over net.onnx"),
        ("link.onnx", "link.onnx is a link to net.onnx"),
        ("elsewhere.onnx", "elsewhere.onnx is a link to /nowhere/net.onnx"),
        ("folder.onnx", "folder.onnx is a folder; name the file"),
        ("pipe.onnx", "pipe.onnx is a pipe, which no file replaces"),
        ("/dev/null", "/dev/null must end in .onnx"),
        ("gone/out.onnx", "there is no folder gone for out.onnx: mkdir -p gone"),
        ("bad.py/out.onnx", "bad.py/out.onnx: part of this path is a file"),
        ("out.onx", "did you mean out.onnx?"),
        ("out.pt", "out.pt must end in .onnx"),
        ("out", "out must end in .onnx"),
    ],
)
def test_an_output_that_cannot_be(output: str, told: str, folder: Path, cli: Cli) -> None:
    os.link("net.onnx", "hard.onnx")
    (folder / "link.onnx").symlink_to("net.onnx")
    (folder / "elsewhere.onnx").symlink_to("/nowhere/net.onnx")
    (folder / "folder.onnx").mkdir()
    os.mkfifo("pipe.onnx")
    before, content = files_in(folder), (folder / "net.onnx").read_bytes()
    said = cli("convert", "net.onnx", "-o", output)
    assert (said.code, told in said.line) == (2, True)
    assert files_in(folder) == before
    assert (folder / "net.onnx").read_bytes() == content


def test_weights_and_external_data_are_not_written_over(folder: Path, cli: Cli) -> None:
    said = cli("convert", "bad.py:small", "--weights", "other.pt", "-o", "other.pt")
    assert "other.pt would be written over other.pt" in said.line
    model = onnx.load("net.onnx")
    onnx.save(model, "big.onnx", save_as_external_data=True, location="out.onnx.data",
              size_threshold=0)  # fmt: skip
    assert "out.onnx.data, which is read from" in cli("convert", "big.onnx", *OUT).line
    with pytest.raises(
        InputError, match=r"must end in \.onnx or \.pt2 or \.pt; did you mean a\.pt\?"
    ):
        checked_output("a.pt3", (".onnx", ".pt2", ".pt"), [])


LIMITED = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
from stridenet.cli.app import run
codes = [run(typed.split()) for typed in {typed}]
sys.exit(codes != [2] * len(codes))
"""


@pytest.mark.slow
def test_a_disk_without_room_is_told_and_nothing_is_left(folder: Path) -> None:
    """A limit on the size of files, which the system refuses as it does a full disk."""
    big = np.zeros((64, 16, 3, 3), np.float32)
    model = convolution([3, 3], [2, 2], channels=(16, 64))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(big, "weight"))
    onnx.save(model, "big.onnx")
    model = 'convert bad.py:small --args {"width":99} --input-size 3,9,9 -o'
    typed = ["convert big.onnx -o out.onnx", *(f"{model} out{e}" for e in (".onnx", ".pt2", ".pt"))]
    before = files_in(folder)
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED.format(typed=typed)], cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    ends = [".onnx", ".onnx", ".pt2", ".pt"]
    told = [f"error: out{e} cannot be written: File too large; write elsewhere" for e in ends]
    assert done.stderr.splitlines() == told
    assert files_in(folder) == before


def test_no_room_has_words_of_its_own(folder: Path, cli: Cli, monkeypatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = cli("convert", "bad.py:small", "-o", "out.pt")
    assert said.line == (
        "error: out.pt cannot be written: no room on its disk; free some, or write elsewhere"
    )
    assert not [name for name in files_in(folder) if "out" in name]


@pytest.mark.slow
def test_a_report_that_cannot_be_printed_is_no_success(folder: Path) -> None:
    for place, code in (("/dev/full", 2), ("pipe", 141)):
        read, write = os.pipe()
        out = os.open(place, os.O_WRONLY) if place != "pipe" else write
        if place == "pipe":
            os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "stridenet", "plan", "net.onnx"], cwd=folder, stdout=out,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, timeout=100,
        )  # fmt: skip
        told = "error: No space left on device\n" if code == 2 else ""
        assert (done.returncode, done.stderr) == (code, told)


# How it is stopped, and what is not foreseen


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_conversion_that_is_stopped_leaves_nothing(
    sent: signal.Signals, code: int, folder: Path
) -> None:
    (folder / "slow.py").write_text(
        "import time\nfrom torch import nn\n\nclass Slow(nn.Conv2d):\n"
        "    def forward(self, x):\n        open('running', 'w').close()\n"
        "        time.sleep(60)\n\ndef net():\n    return Slow(3, 4, 3, stride=2)\n"
    )
    before = files_in(folder)
    running = subprocess.Popen(
        [sys.executable, "-B", "-m", "stridenet", "convert", "slow.py:net", *SIZE, *OUT, "--no-check"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (folder / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(sent)
    _, err = running.communicate(timeout=90)
    assert (running.returncode, err) == (code, "stopped: nothing was written\n")
    assert {*files_in(folder)} - {"running"} == {*before}


def test_a_traceback_is_shown_only_if_asked_for(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" not in cli("plan", "bad.py:raises").err
    monkeypatch.setenv("STRIDENET_TRACEBACK", "1")
    err = cli("plan", "bad.py:raises").err
    assert 'raise RuntimeError("out of\\n  order")' in err
    assert err.splitlines()[-1].startswith("error: bad.py:raises failed")


def test_an_error_of_ours_is_one_line_too(folder: Path, cli: Cli, monkeypatch) -> None:
    from stridenet.cli import planning

    def wrong(*_: object) -> str:
        raise KeyError("a\nbug")

    monkeypatch.setattr(planning, "show", wrong)
    said = cli("plan", "net.onnx")
    assert (said.code, said.line) == (
        2, r"error: KeyError: 'a\nbug' (STRIDENET_TRACEBACK=1 shows where)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("pooling=True takes MaxPool", "--pooling takes MaxPool"),
        ("or take it as it is, with check=False", "or take it as it is, with --no-check"),
        ("more than max_parameters=9;", "more than --max-parameters 9;"),
        ("rearrange='two-step' does it", "--rearrange two-step does it"),
        ("leave it out with only=[…]", "leave it out with --only NAME"),
        ("by convert_layers(model)", "by --theorem 1"),
        ("sizes=… gives the inputs'", "--sizes … gives the inputs'"),
        ("has kernel_size=3", "has kernel_size=3"),
    ],
)
def test_messages_name_options_as_they_are_typed(text: str, typed: str) -> None:
    assert with_options(text) == typed
