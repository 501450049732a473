"""Packages whose models take images and are listed by name.

Names, makers and inputs are those of the packages.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.surveying.sources import Example, images, imported, small_first, square_images


class Timm:
    """Has a family for each module of the package."""

    package = distribution = "timm"

    def families(self) -> dict[str, list[str]]:
        """Return the names of models by module."""
        timm = imported("timm")
        return {name: small_first(timm.list_models(module=name)) for name in timm.list_modules()}

    def make(self, name: str) -> nn.Module:
        """Return a model with random weights."""
        return imported("timm").create_model(name, pretrained=False)

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Make images of a small size, unless the model has a fixed one."""
        config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        channels, side, _ = config.get("input_size", (3, 224, 224))
        if not config.get("fixed_input_size"):
            yield from square_images(channels, *(s for s in (96, 128) if s < side))
        yield from square_images(channels, side)


class Torchvision:
    """Has a family for each module of torchvision.models."""

    package = distribution = "torchvision"

    def families(self) -> dict[str, list[str]]:
        """Return the names of models by module."""
        models = imported("torchvision.models")
        found: dict[str, list[str]] = {}
        for name in models.list_models():
            module = models.get_model_builder(name).__module__
            found.setdefault(module.removeprefix("torchvision.models."), []).append(name)
        return {family: small_first(names) for family, names in found.items()}

    def make(self, name: str) -> nn.Module:
        """Return a model with random weights, in its backbone, too."""
        options: dict[str, Any] = {"weights": None}
        module = imported("torchvision.models").get_model_builder(name).__module__
        if ".detection" in module or ".segmentation" in module:
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        if ".detection" in module and not name.startswith("ssd"):  # those have a size of their own
            options |= {"min_size": 96, "max_size": 128}
        return imported("torchvision.models").get_model(name, **options)

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield images: a list for detection, clips for video, two at once for optical flow."""
        module = type(model).__module__
        if ".detection" in module:
            yield Example(([torch.rand(3, 96, 128), torch.rand(3, 128, 96)],))
        elif ".video" in module:
            yield from (Example((images(3, 16, s, s, batch=1),)) for s in (64, 112, 224))
        elif ".optical_flow" in module:
            yield Example((images(3, 128, 128, batch=1), images(3, 128, 128, batch=1)))
        else:
            yield from square_images(3, 96, 128, 224, 299)


class Pytorchcv:
    """Has a family for each module of the package."""

    package = distribution = "pytorchcv"

    def families(self) -> dict[str, list[str]]:
        """Return the names of models by module."""
        found: dict[str, list[str]] = {}
        for name, maker in imported("pytorchcv.model_provider")._models.items():
            found.setdefault(maker.__module__.rpartition(".")[2], []).append(name)
        return {family: small_first(names) for family, names in found.items()}

    def make(self, name: str) -> nn.Module:
        """Return a model with random weights."""
        return imported("pytorchcv.model_provider").get_model(name, pretrained=False)

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield images of a small size, then of the model's own; then sounds."""
        size = getattr(model, "in_size", (224, 224))
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        channels = getattr(model, "in_channels", 3)
        yield from square_images(channels, *(s for s in (96, 128) if s < min(height, width)))
        yield Example((images(channels, height, width),))
        sound = images(getattr(model, "in_channels", 64), 128)
        yield Example((sound, torch.tensor([128, 96])))
        yield Example((images(1, 1600),))


class SegmentationModels:
    """Has families of networks by decoder, or by encoder below a U-Net."""

    package = "segmentation_models_pytorch"
    distribution = "segmentation-models-pytorch"

    def families(self) -> dict[str, list[str]]:
        """Return names DECODER-ENCODER by decoder, and by encoder."""
        smp = imported(self.package)
        kinds = {name: kind for name, kind in vars(smp).items() if isinstance(kind, type)}
        decoders = [name for name, kind in kinds.items() if issubclass(kind, nn.Module)]
        found = {decoder: [f"{decoder}-default", f"{decoder}-resnet18"] for decoder in decoders}
        for encoder in smp.encoders.get_encoder_names():
            family = encoder.rpartition("-")[0] or encoder.rstrip("0123456789")
            found.setdefault(f"Unet of {family}", []).append(f"Unet-{encoder}")
        return {family: names if family in decoders else small_first(names)
                for family, names in found.items()}  # fmt: skip

    def make(self, name: str) -> nn.Module:
        """Return a model with random weights."""
        decoder, _, encoder = name.partition("-")
        given = {} if encoder == "default" else {"encoder_name": encoder}
        return getattr(imported(self.package), decoder)(encoder_weights=None, **given)

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield images of a small size."""
        yield from square_images(3, 64, 128, 224)


class Ultralytics:
    """Has families by generation or purpose; each model has a file of its own there."""

    package = distribution = "ultralytics"

    def families(self) -> dict[str, list[str]]:
        """Return the names of model files by folder, or by the purpose that stands in the name."""
        folder = Path(imported("ultralytics").__file__).parent / "cfg" / "models"
        found: dict[str, list[str]] = {}
        for path in sorted(folder.rglob("*.yaml"), reverse=True):  # the newest first
            generation, purpose = path.parent.name, path.stem.partition("-")[2]
            name = path.relative_to(folder).as_posix()
            found.setdefault(purpose or generation, []).append(name)
        return {family: small_first(names) if family.startswith(("v", "rt")) else names
                for family, names in found.items()}  # fmt: skip

    def make(self, name: str) -> nn.Module:
        """Return a model with random weights."""
        ultralytics = imported("ultralytics")
        kind = ultralytics.RTDETR if "rtdetr" in name else ultralytics.YOLO
        folder = Path(ultralytics.__file__).parent / "cfg" / "models"
        network: nn.Module = kind(str(folder / name)).model
        return network

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield images of a small size."""
        yield from square_images(3, 96, 128, 224, 640)
