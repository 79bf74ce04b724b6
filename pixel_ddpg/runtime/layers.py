"""The layers of `agent.networks` made fast: oneDNN in one autograd node on a CPU, bfloat16 where that is faster.

torch's own matrix products are MKL's, which leaves half of an AMD processor unused, and where layers are small its
graph costs as much as they do. On an Intel processor torch's own stacks of products are faster.
experiments/benchmarks/results has the figures.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixel_ddpg.agent.networks import Layers
from pixel_ddpg.config import Agent

aten = torch.ops.aten
AVAILABLE = torch.backends.mkldnn.is_available()
SMALL = 2**19  # multiplications: a smaller matrix product ends before oneDNN's would begin
CHANNELS_OF_BFLOAT16 = 16  # a GPU's convolutions in bfloat16 want their input's channels in multiples of this


@functools.cache
def bfloat16_available() -> bool:
    """Whether this processor has what oneDNN needs for it; torch's own layers do without, slowly."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Stack(nn.Sequential):
    """nn.Sequential of Linear, Conv2d, LayerNorm, BatchNorm1d, Tanh, and ReLU after any but Tanh.

    Computes what nn.Sequential does, and falls back to it without oneDNN, as on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (AVAILABLE and x.device.type == "cpu") or (x.dtype == torch.bfloat16 and not bfloat16_available()):
            return super().forward(x)
        if x.ndim == 2:
            x = x.contiguous()  # a product with a part of wider rows takes oneDNN a hundred times as long
        return _Node.apply(x, self._blocks, *self._own) if self._blocks else x

    @functools.cached_property
    def _blocks(self) -> list["Block"]:
        layers = _flat(self)
        followed = zip(layers, [*layers[1:], None])
        return [
            Block(layer, isinstance(after, nn.ReLU), *next(KINDS[kind] for kind in KINDS if isinstance(layer, kind)))
            for layer, after in followed
            if not isinstance(layer, nn.ReLU)
        ]

    @functools.cached_property
    def _own(self) -> list[nn.Parameter]:
        return [parameter for block in self._blocks for parameter in block.layer.parameters()]


def _flat(layers: nn.Sequential) -> list[nn.Module]:
    return [leaf for layer in layers for leaf in (_flat(layer) if isinstance(layer, nn.Sequential) else [layer])]


class Block(NamedTuple):
    """A layer, and the ReLU after it if there is one."""

    layer: Any
    rectified: bool
    forward: Callable  # (block, x) to y and the tensors that backward takes
    backward: Callable  # (block, these, dy, is dx wanted, are the parameters' wanted) to dx and those of the parameters


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, blocks: list[Block], *parameters: Tensor) -> Tensor:
        ctx.blocks, ctx.ends = blocks, []
        kept: list[Tensor] = []
        for block in blocks:
            x, saved = block.forward(block, x)
            kept += [*saved, x] if block.rectified else saved
            ctx.ends.append(len(kept))
        ctx.save_for_backward(*kept)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, (of_input, _, *of_parameters) = list(ctx.saved_tensors), ctx.needs_input_grad
        if gradient.ndim == 4:
            gradient = gradient.contiguous(memory_format=torch.channels_last)  # as the maps are; else each step is slow
        below: list[Tensor | None] = []
        for number in reversed(range(len(ctx.blocks))):
            block = ctx.blocks[number]
            if block.rectified:
                gradient = aten.threshold_backward(gradient, kept.pop(), 0)
            begin = ctx.ends[number - 1] if number else 0
            saved, kept = kept[begin:], kept[:begin]
            gradient, *own = block.backward(block, saved, gradient, number > 0 or of_input, any(of_parameters))
            below = own + below
        return gradient, None, *below


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, rectified: bool = False) -> Tensor:
    """x (m, k) times the transposed weight (n, k)."""
    if x.shape[0] * weight.numel() >= SMALL:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if rectified else "none", [], "")
    y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return y.relu_() if rectified else y


def _linear(block: Block, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    layer = block.layer
    return product(x, layer.weight, layer.bias, block.rectified), (x, layer.weight)


def _linear_backward(block: Block, saved: list[Tensor], gradient: Tensor, of_input: bool, of_parameters: bool) -> tuple:
    x, weight = saved
    below = product(gradient, weight.t()) if of_input else None
    return below, *((product(gradient.t(), x.t()), gradient.sum(0)) if of_parameters else (None, None))


def _convolution(block: Block, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    layer, after = block.layer, "relu" if block.rectified else "none"
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    sizes = (layer.padding, layer.stride, layer.dilation, layer.groups)
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *sizes, after, [], ""), (x, weight)


def _convolution_backward(block: Block, saved, gradient, of_input, of_parameters) -> tuple:
    layer, wanted = block.layer, [of_input, of_parameters, of_parameters]
    sizes = (layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups)
    below, *own = aten.convolution_backward(gradient, *saved, [layer.out_channels], *sizes, wanted)
    return below, *(each.to(layer.weight.dtype) if of_parameters else None for each in own)


def _layer_norm(block: Block, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    layer = block.layer
    y, mean, scale = aten.native_layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return y.relu_() if block.rectified else y, (x, mean, scale, layer.weight, layer.bias)


def _layer_norm_backward(block: Block, saved, gradient, of_input, of_parameters) -> tuple:
    x, *rest = saved
    wanted = [of_input, of_parameters, of_parameters]
    return aten.native_layer_norm_backward(gradient, x, block.layer.normalized_shape, *rest, wanted)


def _batch_norm(block: Block, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    layer = block.layer
    if layer.training:
        layer.num_batches_tracked.add_(1)
    how = (layer.running_mean, layer.running_var, layer.training, layer.momentum, layer.eps)
    y, mean, scale = aten.native_batch_norm(x, layer.weight, layer.bias, *how)
    return y.relu_() if block.rectified else y, (x, layer.weight, mean, scale)


def _batch_norm_backward(block: Block, saved, gradient, of_input, of_parameters) -> tuple:
    x, weight, *statistics = saved
    layer, wanted = block.layer, [of_input, of_parameters, of_parameters]
    how = (layer.running_mean, layer.running_var, *statistics, layer.training, layer.eps)
    return aten.native_batch_norm_backward(gradient, x, weight, *how, wanted)


def _tanh(block: Block, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    y = x.tanh()
    return y, (y,)


def _tanh_backward(block: Block, saved, gradient, of_input, of_parameters) -> tuple:
    return (aten.tanh_backward(gradient, *saved),)


KINDS: dict[type, tuple[Callable, Callable]] = {
    nn.Linear: (_linear, _linear_backward),
    nn.Conv2d: (_convolution, _convolution_backward),
    nn.LayerNorm: (_layer_norm, _layer_norm_backward),
    nn.BatchNorm1d: (_batch_norm, _batch_norm_backward),
    nn.Tanh: (_tanh, _tanh_backward),
}


class Convolutions(Stack):
    """`agent.networks.Convolutions`, in float32 or, with precision bfloat16, in that.

    On a GPU the output stays bfloat16, which halves the next layer's time; beside a spatial softmax it becomes float32.
    """

    _offset: Tensor

    def __init__(self, layers: list[nn.Module], settings: Agent):
        super().__init__(*layers)
        self._half = settings.precision == "bfloat16"
        self._dtype = torch.bfloat16 if self._half else torch.float32
        self.register_buffer("_offset", torch.tensor(-settings.pixel_offset, dtype=self._dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        gpu = x.device.type != "cpu"
        more = -x.shape[1] % CHANNELS_OF_BFLOAT16 if self._half and gpu else 0
        if more:
            x = functional.pad(x, (0,) * 5 + (more,))
        pixels = x.contiguous(memory_format=torch.channels_last).to(self._dtype)  # reordered while they are bytes
        pixels = torch.add(self._offset, pixels, alpha=1 / 255, out=None if gpu else pixels)
        with torch.autocast(pixels.device.type, torch.bfloat16, self._half, cache_enabled=False):  # as a graph needs it
            maps = self._with_more_channels(pixels, more) if more else super().forward(pixels)
        return maps if gpu else maps.float()

    def _with_more_channels(self, pixels: Tensor, more: int) -> Tensor:
        """The first layer ignores channels that were added."""
        layers: list[Any] = list(self)
        first, *others = layers
        weight = functional.pad(first.weight, (0,) * 5 + (more,))
        x = functional.conv2d(pixels, weight, first.bias, first.stride, first.padding)
        for layer in others:
            x = layer(x)
        return x


class Linear(nn.Linear):
    """nn.Linear whose product is in its input's type; float32 comes out."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).float()


OPTIMIZED = Layers(Convolutions, Stack, Linear)
ON_INTEL = Layers(Convolutions, linear=Linear)  # where MKL, which is Intel's, is the faster one
