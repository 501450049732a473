"""Packages whose classes have to be told every size: what they are given, class by class."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from experiments.surveying.sources import Example, images, imported


@dataclass(frozen=True)
class Entry:
    """Describes a network: its class and arguments, and its inputs' sizes without batch."""

    kind: str
    arguments: dict[str, Any]
    sizes: tuple[tuple[int, ...], ...]
    more: dict[str, Any] = field(default_factory=dict)  # further inputs, by name; sizes of tensors


class Catalogue:
    """Is a source that is a table, with a family for each entry.

    Classes that the installed version lacks are left out.
    """

    package: str
    distribution: str
    module: ClassVar[str]  # in which the classes are
    entries: ClassVar[dict[str, Entry]]

    def families(self) -> dict[str, list[str]]:
        """Return a family of its own for each entry."""
        module = imported(self.module)
        return {name: [name] for name, entry in self.entries.items() if hasattr(module, entry.kind)}

    def make(self, name: str) -> nn.Module:
        """Return the network of an entry."""
        entry = self.entries[name]
        network: nn.Module = getattr(imported(self.module), entry.kind)(**entry.arguments)
        return network

    def examples(self, name: str, model: nn.Module) -> Iterator[Example]:
        """Yield random tensors of the entry's sizes."""
        entry = self.entries[name]
        kwargs = {
            key: images(*value) if isinstance(value, tuple) else value
            for key, value in entry.more.items()
        }
        yield Example(tuple(images(*size) for size in entry.sizes), kwargs)


_ENCODER = {"channels": (8, 16, 32), "strides": (2, 2)}
_PLANAR = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
_SOLID = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_ATTENTION = {"channels": (16, 32), "attention_levels": (False, True), "norm_num_groups": 8}
_DYNAMIC = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
_SMALL_RESNET = {"block": "basic", "layers": (1, 1, 1, 1), "block_inplanes": (8, 16, 32, 64),
                 "n_input_channels": 1}  # fmt: skip


class Monai(Catalogue):
    """Has networks for images and volumes."""

    package = distribution = "monai"
    module = "monai.networks.nets"
    entries: ClassVar[dict[str, Entry]] = {
        "UNet2d": Entry("UNet", {**_PLANAR, **_ENCODER, "num_res_units": 2}, ((1, 64, 64),)),
        "UNet3d": Entry("UNet", {**_SOLID, **_ENCODER}, ((1, 32, 32, 32),)),
        "AttentionUnet": Entry("AttentionUnet", {**_PLANAR, **_ENCODER}, ((1, 64, 64),)),
        "AutoEncoder": Entry("AutoEncoder", {**_PLANAR, "channels": (8, 16, 32), "strides": (2, 2, 2)},
                             ((1, 64, 64),)),
        "BasicUNet": Entry("BasicUNet", _SOLID, ((1, 32, 32, 32),)),
        "BasicUNetPlusPlus": Entry("BasicUNetPlusPlus", _PLANAR, ((1, 64, 64),)),
        "DynUNet": Entry("DynUNet", {**_SOLID, **_DYNAMIC}, ((1, 32, 32, 32),)),
        "DynUNet_odd": Entry(
            "DynUNet", {**_PLANAR, **_DYNAMIC, "strides": [1, [2, 1], [3, 2]],
                        "upsample_kernel_size": [[2, 1], [3, 2]]}, ((1, 72, 48),)
        ),
        "VNet": Entry("VNet", {"in_channels": 1, "out_channels": 1}, ((1, 32, 32, 32),)),
        "AHNet": Entry("AHNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1},
                       ((1, 128, 128),)),
        "SegResNet": Entry("SegResNet", _SOLID, ((1, 32, 32, 32),)),
        "SegResNetDS": Entry("SegResNetDS", {**_SOLID, "init_filters": 8}, ((1, 32, 32, 32),)),
        "SegResNetDS2": Entry("SegResNetDS2", {**_SOLID, "init_filters": 8}, ((1, 32, 32, 32),)),
        "SegResNetVAE": Entry("SegResNetVAE", {**_SOLID, "input_image_size": (32, 32, 32)},
                              ((1, 32, 32, 32),)),
        "DenseNet121": Entry("DenseNet121", _SOLID, ((1, 48, 48, 48),)),
        "ResNet3d": Entry("ResNet", _SMALL_RESNET, ((1, 32, 32, 32),)),
        "ResNet_shortcut_A": Entry("ResNet", {**_SMALL_RESNET, "shortcut_type": "A", "spatial_dims": 2},
                                   ((1, 64, 64),)),
        "SEResNet50": Entry("SEResNet50", {"spatial_dims": 2, "in_channels": 3, "num_classes": 3},
                            ((3, 64, 64),)),
        "EfficientNetBN": Entry("EfficientNetBN", {
            "model_name": "efficientnet-b0", "pretrained": False}, ((3, 64, 64),)),
        "FlexibleUNet": Entry("FlexibleUNet", {"in_channels": 3, "out_channels": 2,
                                               "backbone": "efficientnet-b0"}, ((3, 64, 64),)),
        "HighResNet": Entry("HighResNet", {**_PLANAR}, ((1, 48, 48),)),
        "HoVerNet": Entry("HoVerNet", {}, ((3, 256, 256),)),
        "UNETR": Entry("UNETR", {"in_channels": 1, "out_channels": 2, "img_size": (32, 32, 32),
                                 "hidden_size": 48, "mlp_dim": 96}, ((1, 32, 32, 32),)),
        "SwinUNETR": Entry("SwinUNETR", {"in_channels": 1, "out_channels": 2, "feature_size": 12,
                                         "spatial_dims": 2}, ((1, 64, 64),)),
        "ViT": Entry("ViT", {"in_channels": 1, "img_size": (32, 32, 32), "patch_size": (8, 8, 8),
                             "hidden_size": 48, "mlp_dim": 96}, ((1, 32, 32, 32),)),
        "ViTAutoEnc": Entry("ViTAutoEnc", {"in_channels": 1, "img_size": (32, 32, 32),
                                           "patch_size": (4, 4, 4), "hidden_size": 48, "mlp_dim": 96},
                            ((1, 32, 32, 32),)),
        "VoxelMorphUNet": Entry("VoxelMorphUNet", {
            "spatial_dims": 2, "in_channels": 2, "unet_out_channels": 16,
            "channels": (16, 16, 32, 32, 32, 32), "final_conv_channels": (16, 16)}, ((2, 64, 64),)),
        "LocalNet": Entry("LocalNet", {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 4,
                                       "extract_levels": (0, 1, 2)}, ((2, 64, 64),)),
        "GlobalNet": Entry("GlobalNet", {"image_size": [64, 64], "spatial_dims": 2, "in_channels": 2,
                                         "num_channel_initial": 4, "depth": 3}, ((2, 64, 64),)),
        "RegUNet": Entry("RegUNet", {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 4,
                                     "depth": 3}, ((2, 64, 64),)),
        "Classifier": Entry("Classifier", {"in_shape": (1, 64, 64), "classes": 3, **_ENCODER},
                            ((1, 64, 64),)),
        "Generator": Entry("Generator", {"latent_shape": (12,), "start_shape": (32, 8, 8),
                                         "channels": (16, 8, 1), "strides": (2, 2, 1)}, ((12,),)),
        "VarAutoEncoder": Entry("VarAutoEncoder", {
            "channels": (8, 16, 32), "strides": (2, 2, 2), "spatial_dims": 2,
            "in_shape": (1, 64, 64), "out_channels": 1, "latent_size": 4}, ((1, 64, 64),)),
        "AutoencoderKL": Entry("AutoencoderKL", {**_PLANAR, **_ATTENTION, "out_channels": 1,
                                                 "num_res_blocks": 1}, ((1, 64, 64),)),
        "VQVAE": Entry("VQVAE", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1,
                                 "channels": (16, 16, 32), "num_res_channels": (16, 16, 32)},
                       ((1, 64, 64),)),
        "DiffusionModelUNet": Entry("DiffusionModelUNet", {**_PLANAR, **_ATTENTION, "num_res_blocks": 1,
                                                           "num_head_channels": 8}, ((1, 32, 32),),
                                    {"timesteps": torch.tensor([3, 7])}),
        "PatchDiscriminator": Entry("PatchDiscriminator", {"spatial_dims": 2, "channels": 8,
                                                           "in_channels": 1}, ((1, 64, 64),)),
        "MultiScalePatchDiscriminator": Entry("MultiScalePatchDiscriminator", {
            "num_d": 2, "num_layers_d": 2, "spatial_dims": 2, "channels": 8, "in_channels": 1},
            ((1, 64, 64),)),
        "QuickNAT": Entry("QuickNAT", {"num_classes": 3, "num_channels": 1, "num_filters": 16},
                          ((1, 64, 64),)),
        "DAF3D": Entry("DAF3D", {"in_channels": 1, "out_channels": 1}, ((1, 64, 64, 64),)),
        "MedNeXt": Entry("MedNeXt", {"spatial_dims": 2, "init_filters": 8, "in_channels": 1,
                                     "out_channels": 2}, ((1, 64, 64),)),
        "TorchVisionFCModel": Entry("TorchVisionFCModel", {"pool": None}, ((3, 64, 64),)),
    }  # fmt: skip


_BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
_DOWN = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
_CONDITION = {"timestep": 3, "encoder_hidden_states": (5, 16)}
_CROSS = {
    **_BLOCKS, "cross_attention_dim": 16, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}  # fmt: skip


class Diffusers(Catalogue):
    """Has networks for images and videos."""

    package = distribution = module = "diffusers"
    entries: ClassVar[dict[str, Entry]] = {
        "UNet2DModel": Entry("UNet2DModel", {
            **_BLOCKS, "sample_size": 32, "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}, ((3, 32, 32),), {"timestep": 3}),
        "UNet2DModel_resnet": Entry("UNet2DModel", {
            **_BLOCKS, "sample_size": 32, "attention_head_dim": 8,
            "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D")}, ((3, 32, 32),),
            {"timestep": 3}),
        "UNet2DConditionModel": Entry("UNet2DConditionModel", {
            **_CROSS, "sample_size": 32, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
            ((4, 32, 32),), _CONDITION),
        "UNet3DConditionModel": Entry("UNet3DConditionModel", {
            **_CROSS, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}, ((4, 4, 32, 32),), _CONDITION),
        "UNet1DModel": Entry("UNet1DModel", {"sample_size": 128, "extra_in_channels": 64,
                                             "block_out_channels": (32, 32, 64)},
                             ((2, 128),), {"timestep": 3}),
        "ControlNetModel": Entry("ControlNetModel", {
            **_CROSS, "conditioning_embedding_out_channels": (8, 16)}, ((4, 32, 32),),
            {**_CONDITION, "controlnet_cond": (3, 64, 64)}),
        "AutoencoderKL": Entry("AutoencoderKL", {**_BLOCKS, **_DOWN}, ((3, 64, 64),)),
        "AutoencoderTiny": Entry("AutoencoderTiny", {
            "encoder_block_out_channels": (16, 16, 16, 16), "decoder_block_out_channels": (16,) * 4},
            ((3, 64, 64),)),
        "AsymmetricAutoencoderKL": Entry("AsymmetricAutoencoderKL", {
            **_DOWN, "down_block_out_channels": (16, 32), "up_block_out_channels": (16, 32),
            "norm_num_groups": 8}, ((3, 64, 64),)),
        "AutoencoderKLTemporalDecoder": Entry("AutoencoderKLTemporalDecoder", {
            "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2},
            ((3, 32, 32),), {"num_frames": 2}),
        "AutoencoderOobleck": Entry("AutoencoderOobleck", {
            "encoder_hidden_size": 16, "downsampling_ratios": [2, 4, 4], "channel_multiples": [1, 2, 4],
            "decoder_channels": 16, "decoder_input_channels": 8}, ((2, 256),)),
        "AutoencoderDC": Entry("AutoencoderDC", {
            "latent_channels": 8, "attention_head_dim": 8,
            "encoder_block_types": ("ResBlock",) * 3, "decoder_block_types": ("ResBlock",) * 3,
            "encoder_block_out_channels": (16, 32, 64), "decoder_block_out_channels": (16, 32, 64),
            "encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())},
            ((3, 64, 64),)),
        "AutoencoderKLCogVideoX": Entry("AutoencoderKLCogVideoX", {
            "block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1,
            "down_block_types": ("CogVideoXDownBlock3D",) * 2, "temporal_compression_ratio": 2,
            "up_block_types": ("CogVideoXUpBlock3D",) * 2}, ((3, 5, 32, 32),)),
        "AutoencoderKLWan": Entry("AutoencoderKLWan", {
            "base_dim": 16, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True],
            "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, ((3, 5, 32, 32),)),
        "AutoencoderKLHunyuanVideo": Entry("AutoencoderKLHunyuanVideo", {
            "block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8, "layers_per_block": 1},
            ((3, 5, 32, 32),)),
        "VQModel": Entry("VQModel", {**_BLOCKS, **_DOWN, "num_vq_embeddings": 32},
                                    ((3, 64, 64),)),
        "Transformer2DModel": Entry("Transformer2DModel", {
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "sample_size": 16,
            "patch_size": 2, "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero",
            "num_layers": 1}, ((4, 16, 16),),
            {"timestep": torch.tensor([3, 7]), "class_labels": torch.tensor([1, 2])}),
        "SD3Transformer2DModel": Entry("SD3Transformer2DModel", {
            "sample_size": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
            "joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 16,
            "in_channels": 4, "out_channels": 4}, ((4, 16, 16),),
            {"encoder_hidden_states": (5, 16), "pooled_projections": (16,),
             "timestep": torch.tensor([3, 7])}),
        "T2IAdapter": Entry("T2IAdapter", {"channels": [16, 32], "num_res_blocks": 1,
                                           "downscale_factor": 8}, ((3, 64, 64),)),
    }  # fmt: skip
