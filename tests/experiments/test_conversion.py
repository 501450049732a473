"""From settings to any network and its twin: what is accepted, what is refused in one line, verify."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.models import convert, input_size, load_model, random_inputs
from experiments.runs.networks import build_strided
from experiments.settings.conversions import ConversionConfig
from stridenet.by_layer.converted import converted_layers
from stridenet.errors import InputError, StrideEliminationError
from stridenet.twin import UnitStrideNetwork

ROOT = Path(__file__).resolve().parents[2]
Composed = Callable[..., ConversionConfig]
MODELS = """\
from torch import nn

def small(width=4, stride=2):
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=stride), nn.ReLU(), nn.Conv2d(width, 2, 2))

class Raises(nn.Module):
    def __init__(self):
        raise RuntimeError("out of\\n  order")

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with a file of models."""
    (tmp_path / "my_models.py").write_text(MODELS)
    return tmp_path


@pytest.fixture
def settings(folder: Path, composed: Composed, monkeypatch: pytest.MonkeyPatch) -> Composed:
    """Settings of experiments.zoo for a model of one's own, by default LeNet as a whole.

    The folder is the current one, as under `python -m`.
    """
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return lambda *overrides: composed(*LENET, *overrides, command="zoo")


LENET = ("model._target_=stridenet.zoo.lenet", "input_size=[1,28,28]")


def mine(name: str = "small", *overrides: str) -> list[str]:
    return [f"model._target_=my_models.{name}", "input_size=[3,9,9]", *overrides]


# Settings


def test_arguments_stand_beside_the_target_with_or_without_a_plus(settings: Composed) -> None:
    for override in ("model.width=7", "+model.width=7"):
        config = settings(*mine("small", override))
        assert config.model == {"_target_": "my_models.small", "width": 7}
        assert load_model(config)[0].out_channels == 7


def test_one_size_or_one_for_each_input(settings: Composed) -> None:
    one, two = settings("input_size=[3,8,9]"), settings("input_size=[[3,8,9],[5]]")
    assert (input_size(one), input_size(two)) == ((3, 8, 9), ((3, 8, 9), (5,)))
    assert [x.shape for x in random_inputs(one, 2)] == [(2, 3, 8, 9)]
    assert [x.shape for x in random_inputs(two, 4)] == [(4, 3, 8, 9), (4, 5)]
    assert torch.equal(random_inputs(one, 2)[0], random_inputs(one, 2)[0])


def test_the_settings_are_arguments_of_the_conversion_of_their_theorem(settings: Composed) -> None:
    whole = settings("output_factor=2", "batch_norm=per_phase")
    twin = convert(load_model(whole), whole)
    assert isinstance(twin, UnitStrideNetwork)
    assert twin.plan.input.factor == (8, 8)
    assert (twin.plan.options.output_factor, twin.plan.options.batch_norm) == (2, "per_phase")
    with pytest.raises(StrideEliminationError, match="more than max_parameters=9"):
        convert(load_model(whole), settings("max_parameters=9"))
    layers = settings("theorem=1", "only=conv2", "depthwise=grouped")
    same = convert(load_model(layers), layers)
    assert [*converted_layers(same)] == ["conv2"]
    assert same.conv2.depthwise == "grouped"
    assert type(same) is type(load_model(layers))
    assert settings("theorem=1", "only=[a,b]").only == ["a", "b"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("input_size=3", "input_size=3 must be"),
        ("input_size=null", "input_size=None must be"),
        ("input_size=[]", r"input_size=\[\] must be"),
        ("input_size=[3,0]", r"input_size=\[3, 0\] must be"),
        ("input_size=[3,1.5]", r"input_size=\[3, 1.5\] must be"),
        ("input_size=[3,true]", r"input_size=\[3, True\] must be"),
        ("input_size=[[3,8],4]", r"input_size=\[\[3, 8\], 4\] must be"),
        ("input_size=[[3,8],[]]", r"input_size=\[\[3, 8\], \[\]\] must be"),
        ("theorem=3", "theorem=3 is unknown; take one of 1, 2"),
        ("pooling=true", "pooling=True has no effect: it needs theorem=1"),
        ("only=conv2", r"only=\['conv2'\] has no effect: it needs theorem=1"),
        ("batch_norm=none", "batch_norm=none is unknown; take one of shared, per_phase"),
        ("only=3", "only=3 must be a name"),
        ("only=[a,3]", r"only=\['a', 3\] must be a name"),
        ("output_factor=0", "output_factor=0 must be"),
        ("output_factor=[2,x]", r"output_factor=\[2, 'x'\] must be"),
        ("max_parameters=0", "max_parameters=0 must be at least 1"),
        ("seed=-1", "seed=-1 must be from 0"),
        ("weights=nowhere.pt", "weights=nowhere.pt is not a file"),
        ("model._target_=3", "model._target_=3 must be package.function"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: Composed, override: str, told: str) -> None:
    with pytest.raises(InputError, match=f"^{told}"):
        settings(override)


# Networks


def test_the_seed_decides_the_weights_and_leaves_the_generator_alone(settings: Composed) -> None:
    before = torch.get_rng_state()
    first, again, other = (load_model(settings(f"seed={seed}")) for seed in (0, 0, 1))
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training


def test_the_default_network_is_the_one_that_is_trained(composed: Callable) -> None:
    trained = build_strided(composed().model, (1, 28, 28))
    ours = load_model(ConversionConfig())
    ours.load_state_dict(trained.state_dict())
    assert [*dict(ours.named_children())] == [*dict(trained.named_children())]
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(ours(images), trained(images))


def test_weights_of_a_file_are_taken(settings: Composed, folder: Path) -> None:
    source = load_model(settings(*mine("small", "seed=5")))
    torch.save(source.state_dict(), folder / "weights.pt")
    model = load_model(settings(*mine("small", f"weights={folder / 'weights.pt'}")))
    assert all(map(torch.equal, model.state_dict().values(), source.state_dict().values()))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not a whole file of weights"),
        (b"These are no weights.", "is not a whole file of weights"),
        (None, "are of another network"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    settings: Composed, folder: Path, content: bytes | None, told: str
) -> None:
    path = folder / "weights.pt"
    if content is None:
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=told) as raised:
        load_model(settings(*mine("small", f"weights={path}")))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (mine("smal"), "my_models.smal cannot be imported: AttributeError: .*no attribute 'smal'"),
        (["model._target_=nowhere.f"], "nowhere.f cannot be imported: ModuleNotFoundError"),
        (["model._target_=small"], "small cannot be imported: "),
        (["model._target_='no name'"], "no name cannot be imported: "),
        (
            mine("small", "model.depth=3"),
            "failed: TypeError: .*'depth'; its arguments stand beside",
        ),
        (mine("Raises"), "my_models.Raises failed: RuntimeError: out of order;"),
        (mine("number"), "my_models.number gives int, not a torch.nn.Module"),
        (["model._target_=torch.nn.Conv2d"], "torch.nn.Conv2d failed: TypeError: .*in_channels"),
    ],
)
def test_a_target_that_makes_no_network_is_one_line_with_the_cure(
    settings: Composed, overrides: list[str], told: str
) -> None:
    with pytest.raises(InputError, match=f"^model._target_={told}|{told}") as raised:
        load_model(settings(*overrides))
    assert str(raised.value).startswith("model._target_=")
    assert "\n" not in str(raised.value)


def test_the_twin_is_made_as_the_settings_say(settings: Composed) -> None:
    config = settings(*mine("small", "model.width=5"))
    model = load_model(config)
    twin = convert(model, config)
    (images,) = random_inputs(config, 2)
    torch.testing.assert_close(twin(images), model(images), rtol=1e-5, atol=1e-6)
    assert {m.stride for m in twin.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
