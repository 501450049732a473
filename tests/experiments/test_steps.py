"""The step account beside the runs of experiment=sharing, on runs whose numbers were chosen."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from experiments.runs.networks import build_strided
from experiments.runs.published import Published
from experiments.studies.claims import FREE, claims_table
from experiments.studies.sharing import ARMS
from experiments.studies.steps import (
    expected,
    factors,
    rho_figure,
    rho_section,
    rho_table,
    steps_section,
    steps_table,
)
from stridenet import eliminate_stride
from stridenet.errors import InputError
from tests.experiments.results import LENET

LAYERS = ("conv1", "conv2", "conv3", "conv4")
KEYS = {arm: key for key, arm in ARMS.items() if arm != "pooling"}
TWINS = [arm for arm in KEYS if arm not in ("strided", "tied")]
SEEDS = range(5000, 5004)
STEPS = (0, 50, 100, 800, 1700)
# Of each arm, the mean difference of its loss from the strided network's; the gap of C2 is 0.2.
DIFFERENCES = {
    "strided": 0.0, "tied": 0.0, "masked": 0.3, "free": 0.2, "masked by copies": -0.06,
    "free by copies": -0.1, "free effective": 0.0,
}  # fmt: skip
NOISE = (-1e-3, 0.0, 3e-3, -2e-3)  # by seed; its mean is 0


@pytest.fixture(scope="module")
def about(composed: Callable[..., Any]) -> dict[str, Any]:
    config = composed("recipe=sgd", "model=unit_stride")
    return {"model": asdict(config.model), "data": asdict(config.data)}


def published(about: dict[str, Any], **changes: float) -> Published:
    """Runs of every arm and start. ρ of conv1 is 1 + its seed's place + the step / 100."""
    runs, epochs, rho = [], [], []
    for weights in ("scratch", "fine_tune"):
        for arm, difference in {**DIFFERENCES, **changes}.items():
            network, _, variant = KEYS[arm].partition(" ")
            for place, seed in enumerate(SEEDS):
                run = f"{arm}-{weights}-{seed}"
                loss = 0.5 + place / 10 + difference + NOISE[place] * (arm != "strided")
                runs.append({
                    "run": run, "network": network, "variant": variant, "weights": weights,
                    "seed": seed, "validation_images": 5000, "validation_correct": 4900,
                    "test_correct": 9800, "test_images": 10_000, "test_loss": 0.1, "fit_loss": 0.1,
                    "training_cpu_seconds": 1.0, "diverged": False, "learning_rate": 0.04,
                })  # fmt: skip
                start = 2.3 + place + 1e-6 * (arm == "tied") - 0.5 * (arm == "masked") * place
                for epoch, training, validation in ((0, None, start), (1, loss, 1), (2, 0.01, 1)):
                    epochs.append({
                        "run": run, "epoch": epoch, "training_loss": training,
                        "validation_loss": validation, "validation_correct": 4900,
                        "zeros": None, "copies": None,
                    })  # fmt: skip
                if arm in TWINS:
                    rho += [
                        {"run": run, "step": step, "layer": f"{layer}.weight",
                         "rho": 1 + place + step / 100 if layer == "conv1" else 1.0}
                        for step in STEPS for layer in LAYERS
                    ]  # fmt: skip
    return Published(pd.DataFrame(runs), pd.DataFrame(epochs), pd.DataFrame(rho), {}, about)


def table_of(about: dict[str, Any], **changes: float) -> pd.DataFrame:
    found = published(about, **changes)
    return steps_table(found, claims_table({"sharing": found}, {"sharing": 0}))


@pytest.fixture
def table(about: dict[str, Any]) -> pd.DataFrame:
    return table_of(about).set_index(["start", "arm"])


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage each time, which is most of these tests' seconds."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def counted(composed: Callable[..., Any]) -> dict[str, dict[str, float]]:
    """Steps by arm and layer, counted in the filters of a LeNet whose weights are numbered."""
    strided = build_strided(composed("recipe=sgd").model, LENET).double()
    with torch.no_grad():
        for parameter in strided.parameters():
            parameter.copy_(torch.arange(1, parameter.numel() + 1).reshape(parameter.shape))
    twin = eliminate_stride(strided, LENET, check=False).network
    steps: dict[str, dict[str, float]] = {arm: {} for arm in KEYS}
    for layer in LAYERS:
        before, after = (net.get_parameter(f"{layer}.weight") for net in (strided, twin))
        numbers = after.detach().numpy().ravel()
        (copies,) = {*np.unique(numbers[numbers > 0], return_counts=True)[1]}
        sizes = {"masked": int((after[0] > 0).sum()), "free": after[0].numel()}
        ratio = {sharing: many / before[0].numel() for sharing, many in sizes.items()}
        steps["strided"][layer] = steps["tied"][layer] = 1
        for sharing in sizes:
            steps[sharing][layer] = ratio[sharing] / copies
            steps[f"{sharing} by copies"][layer] = ratio[sharing]
        steps["free effective"][layer] = 1  # as it is defined
    return steps


def test_the_predicted_steps_are_those_of_a_count_in_lenets_filters(
    about: dict[str, Any], composed: Callable[..., Any]
) -> None:
    found = factors(about)
    for arm, steps in counted(composed).items():
        of = found[found.arm == arm].set_index("layer").step
        assert of.to_dict() == pytest.approx(steps), arm
    of = found.pivot(index="arm", columns="layer", values="step")
    assert of.loc["masked"].tolist() == [1 / 16, 1 / 4, 1 / 4, 1]
    assert of.loc["free"].tolist() == pytest.approx([0.16, 1, 0.36, 1])
    assert of.loc["free by copies"].tolist() == pytest.approx([2.56, 4, 1.44, 1])
    scales = found.pivot(index="arm", columns="layer", values="scale")
    assert scales.loc["free effective"].tolist() == pytest.approx([1 / 0.16, 1, 1 / 0.36, 1])


def test_without_the_networks_settings_there_is_no_account() -> None:
    with pytest.raises(InputError, match=r"about\.json .* restore it"):
        factors({})


@pytest.mark.parametrize(
    ("steps", "said"),
    [([1, 1 + 1e-12], "equal"), ([0.5, 1], "smaller steps"), ([1, 2], "larger steps"),
     ([0.5, 2], "mixed")],
)  # fmt: skip
def test_the_account_predicts_by_the_steps_of_all_layers(steps: list[float], said: str) -> None:
    assert expected(pd.Series(steps)) == said


def test_each_arm_has_the_paired_difference_of_the_first_epochs_loss(table: pd.DataFrame) -> None:
    assert {*table.n} == {4}
    for arm, mean in DIFFERENCES.items():
        row = table.loc["from scratch", arm]
        losses = 0.5 + np.arange(4) / 10 + mean + np.array(NOISE) * (arm != "strided")
        assert [row.loss_mean, row.loss_std] == pytest.approx([losses.mean(), losses.std(ddof=1)])
        if arm == "strided":
            assert pd.isna(row["mean"])
            continue
        values = mean + np.array(NOISE)
        interval = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
        assert [row["mean"], row.low, row.high] == pytest.approx([mean, *interval], abs=1e-9)
        assert row.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_equality_is_judged_within_a_quarter_of_the_gap_and_the_rest_by_its_sign(
    table: pd.DataFrame,
) -> None:
    scratch = table.loc["from scratch"]
    assert scratch.margin.dropna().to_dict() == {
        arm: pytest.approx(0.05) for arm in ("tied", "masked by copies", "free effective")
    }
    assert scratch.holds.to_dict() == {
        "strided": "",
        "tied": "yes",
        "masked": "yes",
        "free": "yes",
        "masked by copies": "no",  # 0.06 from zero
        "free by copies": "yes",
        "free effective": "yes",
    }
    assert scratch.claim[scratch.claim != ""].to_dict() == {
        "free": "C2", "masked by copies": "C6", "free effective": "C7",
    }  # fmt: skip
    assert {*table.loc["fine-tuned"].holds} == {""}
    assert table.loc["fine-tuned"].margin.isna().all()


def test_what_goes_against_the_account_does_not_hold(about: dict[str, Any]) -> None:
    changes = {"masked": -0.3, "free by copies": 0.1, "tied": 0.03, "free effective": 0.04}
    table = table_of(about, **changes).set_index(["start", "arm"]).loc["from scratch"]
    assert {*table.holds[[*changes]]} == {"no"}  # two of them within the margin, and yet not zero
    assert table.within[["tied", "free effective"]].tolist() == [True, True]


def test_p_is_adjusted_in_the_verdicts_of_the_claims_alone(about: dict[str, Any]) -> None:
    """A difference that student's t sees at 5 % and Holm's method does not."""
    changes = {"free effective": 0.004, "tied": 0.004}
    table = table_of(about, **changes).set_index(["start", "arm"]).loc["from scratch"]
    assert 0.05 / 7 < table.p["free effective"] < 0.05
    assert (table.holds["tied"], table.holds["free effective"]) == ("no", "yes")


def test_seen_is_rho_times_the_factor_on_the_rate(table: pd.DataFrame) -> None:
    median = np.median([1 + place + step / 100 for place in range(4) for step in STEPS])
    for arm, scale in {"masked": 1, "masked by copies": 16, "free effective": 6.25}.items():
        assert table.seen_conv1["from scratch", arm] == pytest.approx(scale * median)
    assert table.seen_conv3["from scratch", "free by copies"] == pytest.approx(4)
    assert pd.isna(table.seen_conv1["from scratch", "tied"])


def test_apart_is_the_largest_difference_before_the_first_step(table: pd.DataFrame) -> None:
    assert table.apart["from scratch", "tied"] == pytest.approx(1e-6)
    assert table.apart["from scratch", "masked"] == pytest.approx(1.5)  # of the last seed
    assert table.apart["fine-tuned", "free"] == 0


def test_rho_is_the_median_and_quartiles_of_the_seeds_at_each_step(about: dict[str, Any]) -> None:
    rows = rho_table(published(about)).set_index(["start", "arm", "layer", "step"])
    assert len(rows) == 2 * len(TWINS) * len(LAYERS) * len(STEPS)
    row = rows.loc["fine-tuned", "free", "conv1", 100]
    assert row.tolist() == [4, 3.5, 2.75, 4.25]  # of 2, 3, 4 and 5
    assert [*rows.index.get_level_values("arm").unique()] == TWINS


def test_readers_get_rho_at_four_steps_and_the_bounds(about: dict[str, Any]) -> None:
    section = rho_section(published(about))
    shown = section.readable.set_index(["Arm", "Step"])
    assert [*shown.loc["masked"].index] == [0, 100, 800, 1700]
    assert shown.conv1["masked", 100] == "3.5 (2.8–4.2)"
    assert [*shown.columns] == ["conv1", "conv2", "conv3"]  # conv4 has one copy, and ρ of 1
    assert "Left out: conv4," in section.caption
    assert "conv1 1/16, conv2 1/4, conv3 1/4)" in section.caption
    assert "4 seeds, 5000 to 5003" in section.caption


def test_readers_get_the_account_with_its_seeds_and_margin(about: dict[str, Any]) -> None:
    found = published(about)
    section = steps_section(found, claims_table({"sharing": found}, {"sharing": 0}))
    assert "(4 seeds, 5000 to 5003)" in section.caption
    assert "within ±0.05, TOST" in section.caption
    row = section.readable.set_index(["Arm", "Start"]).loc["masked by copies", "from scratch"]
    assert (row.Step, row.Predicted, row.Holds) == ("1, 1, 1, 1", "equal", "no (C6)")
    assert row.Difference.startswith("-0.060 [-0.06")


def test_the_figure_has_a_panel_a_layer_with_medians_names_and_the_bound(
    about: dict[str, Any],
) -> None:
    figure = rho_figure(published(about), "from scratch")
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == [
        "conv1: 16 copies", "conv2: 4 copies", "conv3: 4 copies", "conv4: 1 copy",
    ]  # fmt: skip
    assert [axes.get_lines()[0].get_ydata()[0] for axes in panels] == [1 / 16, 1 / 4, 1 / 4, 1]
    curves = panels[0].get_lines()[1:]
    assert len(curves) == len(TWINS)
    assert [*curves[0].get_ydata()] == [2.5 + step / 100 for step in STEPS]
    names = [text for text in panels[0].texts if text.get_text() in TWINS]
    assert len(names) == len(TWINS)
    heights = np.diff(np.log([text.get_position()[1] for text in names]))
    assert (heights > 0.1).all()  # none over another, though all end at one number
    assert "4 seeds, 5000 to 5003" in figure.get_suptitle()


def test_findings_have_what_sharing_measured() -> None:
    """Computed from the rows by pandas and scipy alone."""
    root = Path(__file__).resolve().parents[2]
    folder = root / "outputs/reference/sharing"
    runs, epochs, rho = (pd.read_csv(folder / f"{name}.csv") for name in ("runs", "epochs", "rho"))
    runs = runs.assign(arm=(runs.network + " " + runs.variant.fillna("")).str.strip())
    assert len(runs) == 140
    runs["first"] = runs.run.map(epochs[epochs.epoch == 1].set_index("run").training_loss)
    runs["percent"] = runs.test_correct / 100
    scratch = runs[runs.weights == "scratch"].pivot(index="seed", columns="arm")

    def apart(quantity: str, arm: str) -> tuple[float, float, float]:
        values = scratch[quantity][arm] - scratch[quantity]["strided"]
        assert len(values.dropna()) == 10
        return (values.mean(), *stats.ttest_1samp(values, 0).confidence_interval(0.95))

    text = " ".join((root / "docs/findings.md").read_text().split())
    masked, by_copies = "unit_stride masked", "unit_stride masked by_copies"
    free = apart("first", FREE)
    p = stats.ttest_rel(scratch["first"][FREE], scratch["first"]["strided"]).pvalue
    said = (
        "higher by {:.3f} nats (95 % interval {:.3f} to {:.3f}, ten pairs). By itself that has p = "
    )
    assert f"{said.format(*free)}{p:.2g}" in text
    assert f"p = {7 * p:.2g}." in text  # the smallest of seven
    for arm in (by_copies, "unit_stride by_effective"):
        assert "is {:+.3f} ({:+.3f} to {:+.3f}).".format(*apart("first", arm)) in text
    assert f"a quarter of C2's gap, {free[0] / 4:.4f} nats" in text
    assert "masked by {:.3f} nats ({:.3f} to {:.3f})".format(*apart("first", masked)) in text
    mean, low, high = apart("first", "unit_stride by_copies")
    assert f"smaller loss, by {-mean:.3f} ({-high:.3f} to {-low:.3f})" in text
    for arm, words in ((masked, "strided network by {:.2f} points"), (FREE, "free by {:.2f}")):
        mean, low, high = apart("percent", arm)
        assert f"{words.format(-mean)} ({-high:.2f} to {-low:.2f})" in text
    both = [apart("percent", arm) for arm in (by_copies, "unit_stride by_copies")]
    shown = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*(round(x, 9) for x in one)) for one in both]
    assert f"differences are {shown[0]} and {shown[1]}" in text
    of_arm = rho.merge(runs[runs.weights == "scratch"][["run", "arm"]], on="run")
    medians = of_arm.groupby(["arm", "layer"]).rho.median()
    layers = [f"conv{n}.weight" for n in (1, 2, 3)]
    for arm, digits in ((masked, ".2f"), (FREE, ".1f")):
        one, two, three = (format(medians[arm, layer], digits) for layer in layers)
        assert f"{one}, {two} and {three} in" in text
    assert round(medians[masked, layers[0]] * 16) == 12  # "a twelfth"
    of_arm = rho.merge(runs[runs.weights == "fine_tune"][["run", "arm"]], on="run")
    medians = of_arm[of_arm.arm == masked].groupby("layer").rho.median()
    one, two, three = (f"{medians[layer]:.2f}" for layer in layers)
    assert f"lower bound there, {one}, {two} and {three} in the masked twin" in text
    readme = " ".join((root / "README.md").read_text().split())
    assert "higher by {:.3f} nats ({:.3f} to {:.3f}, ten pairs)".format(*free) in readme
    assert f"do not establish (p = {7 * p:.2g})" in readme
    hours = runs.training_cpu_seconds.sum() / 3600
    assert f"140 runs, {hours:.1f} CPU-hours" in text
    trained = runs[runs.weights == "fine_tune"].pivot(index="seed", columns="arm", values="first")
    for arm, words in (
        (by_copies, "masked by copies by"), ("unit_stride by_effective", "free effective by"),
        ("unit_stride by_copies", "larger steps, by"), (masked, "a smaller loss, by"),
    ):  # fmt: skip
        values = (trained[arm] - trained["strided"]) * (-1 if arm == masked else 1)
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert f"{words} {values.mean():.3f} ({low:.3f} to {high:.3f})" in text
