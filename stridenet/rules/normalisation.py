"""The rule of BatchNorm, whose statistics are over all positions of a channel."""

from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from stridenet.graph.nodes import channel
from stridenet.layers import PhantomMask
from stridenet.pixels import PhaseBatchNorm, Pixels, SharedBatchNorm, SharedSyncBatchNorm
from stridenet.plan import LayerPlan
from stridenet.rules.base import Call, Rule, device_of
from stridenet.rules.pointwise import repeated
from stridenet.sizes import Counts


class BatchNormalisation(Rule):
    """Normalises with statistics over all phases of a channel, or over each phase by itself.

    SyncBatchNorm stays one, with statistics of all devices, but for those of each phase of a map that
    has phantoms, which are of one device.
    """

    puts_channels_first = True

    @staticmethod
    def _kind(call: Call, layer: LayerPlan) -> type:
        own: type = call.operation  # of torch: a class of the user's may be made in another way
        if call.options.batch_norm == "shared":
            return SharedSyncBatchNorm if issubclass(own, nn.SyncBatchNorm) else SharedBatchNorm
        return PhaseBatchNorm if layer.output.ragged else own

    def applies(self, call: Call) -> bool:
        return super().applies(call) and channel(call.maps[0]) == 1

    def plan(self, call: Call, layer: LayerPlan) -> LayerPlan:
        own = layer.parameters.strided
        many = own if call.options.batch_norm == "shared" else own * layer.output.phases
        return replace(layer, parameters=Counts(own, many))

    def changes_weights(self, call: Call, layer: LayerPlan) -> bool:
        return call.options.batch_norm != "shared"

    def build(self, call: Call, layer: LayerPlan) -> nn.Module | None:
        module, phases = call.module, layer.output.phases
        shared = call.options.batch_norm == "shared"
        kind = self._kind(call, layer)
        features = module.num_features * (1 if shared else phases)
        with torch.device("meta"):
            twin = kind(
                features, module.eps, module.momentum, module.affine, module.track_running_stats
            )
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            many = phases if tensor.ndim and not shared else 1
            setattr(twin, name, repeated(tensor, many))
        if isinstance(module, nn.SyncBatchNorm):
            twin.process_group = module.process_group
        if shared:
            twin.pixels = Pixels(layer.output, device_of(call))
        elif layer.output.ragged:
            twin.mask = PhantomMask(layer.output, device_of(call))
        return twin.train(module.training)
