"""The zoo: networks on which the conversion is tried, and at which sizes and settings.

It has three small networks as they were published, with weights as torch's layers start, and names
networks of torchvision.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Output channels, kernel, stride and padding of All-CNN-C's convolutions, but for the last.
ALL_CNN_C = (
    (96, 3, 1, 1),
    (96, 3, 1, 1),
    (96, 3, 2, 1),
    (192, 3, 1, 1),
    (192, 3, 1, 1),
    (192, 3, 2, 1),
    (192, 3, 1, 0),
    (192, 1, 1, 0),
)


def lenet(num_classes: int = 10) -> nn.Sequential:
    """Return the strided LeNet of Kong & Lucey (2017), Table 1.

    It takes images (n, 1, 28, 28), and returns scores (n, classes). Its layers have the names that they
    have in conf/model/strided.yaml, so that the weights.pt of a training run fits.
    """
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 20, 5),
        "conv2": nn.Conv2d(20, 20, 2, stride=2),
        "conv3": nn.Conv2d(20, 50, 5),
        "conv4": nn.Conv2d(50, 50, 2, stride=2),
        "fc1": nn.Linear(800, 500),
    }
    network = nn.Sequential()
    for name, layer in layers.items():
        if name == "fc1":
            network.add_module("flatten", nn.Flatten())
        network.add_module(name, layer)
        network.add_module(f"{name}_relu", nn.ReLU())
    network.add_module("fc2", nn.Linear(500, num_classes))
    return network


def all_cnn_c(num_classes: int = 10) -> nn.Sequential:
    """Return All-CNN-C of Springenberg et al. (2015), Tables 1 and 2.

    It takes images (n, 3, 32, 32), and returns scores (n, classes). The 3x3 layer after the second
    stride is not padded, so that the average is over 6x6 positions.
    """
    network, channels = nn.Sequential(OrderedDict(dropout=nn.Dropout(0.2))), 3
    for number, (width, kernel, stride, padding) in enumerate(
        (*ALL_CNN_C, (num_classes, 1, 1, 0)), 1
    ):
        network.add_module(f"conv{number}", nn.Conv2d(channels, width, kernel, stride, padding))
        network.add_module(f"relu{number}", nn.ReLU())
        if stride == 2:
            network.add_module(f"dropout{number}", nn.Dropout(0.5))
        channels = width
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    return network


class Block(nn.Module):
    """Has two 3x3 convolutions and a shortcut without weights (option A of He et al. 2016).

    Maps (n, c, h, w) become (n, channels, h/stride, w/stride); the shortcut samples every stride-th
    position and fills new channels with zeros.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Take maps (n, c, h, w), and return maps (n, channels, h/stride, w/stride)."""
        shortcut = x
        if self.stride > 1 or self.new_channels:
            sampled = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(sampled, (0, 0, 0, 0, 0, self.new_channels))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet20(nn.Module):
    """Is the network that resnet20 returns."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Take images (n, 3, 32, 32), and return scores (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def resnet20(num_classes: int = 10) -> ResNet20:
    """Return ResNet-20 of He et al. (2016), section 4.2: it takes images (n, 3, 32, 32)."""
    return ResNet20(num_classes)


def _ours(name: str, *input_size: int) -> dict[str, Any]:
    model = {"_target_": f"stridenet.zoo.{name}"}
    return {"model": model, "input_size": [*input_size], "theorem": 2, "pooling": False}


def _torchvision(name: str, size: int = 224, **arguments: Any) -> dict[str, Any]:
    model = {"_target_": f"torchvision.models.{name}", "weights": None, **arguments}
    return {"model": model, "input_size": [3, size, size], "theorem": 1, "pooling": True}


# The settings of each network by its name, as ConversionConfig of the experiments has them.
ZOO: dict[str, dict[str, Any]] = {
    "lenet": _ours("lenet", 1, 28, 28),
    "all_cnn_c": _ours("all_cnn_c", 3, 32, 32),
    "resnet20": _ours("resnet20", 3, 32, 32),
    **{
        name: _torchvision(name)
        for name in (
            "alexnet",
            "vgg11_bn",
            "resnet18",
            "resnext50_32x4d",
            "densenet121",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "shufflenet_v2_x0_5",
            "efficientnet_b0",
            "regnet_y_400mf",
            "convnext_tiny",
        )
    },
    "googlenet": _torchvision("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": _torchvision("inception_v3", 299, aux_logits=False, init_weights=False),
}


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm2d the mean and variance that these images (n, c, h, w) have before it.

    With those that an untrained network starts with, its maps may vanish from layer to layer, and a
    comparison of two networks on them says little. Leaves the model in evaluation mode.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0  # the images' own statistics, nothing of those before
    with torch.random.fork_rng(devices=[]):  # of dropout
        torch.manual_seed(0)
        model.train()(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
