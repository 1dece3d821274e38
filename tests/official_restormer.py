"""Restormer in PyTorch, with the official names: what checkpoints are made of.

It is only imported where torch is installed.
"""

import sys

import torch
from torch import nn
from torch.nn.functional import gelu, normalize


class LayerNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        self.body.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        mean = x.mean(dim=1, keepdim=True)
        variance = x.var(dim=1, keepdim=True, unbiased=False)
        weight, bias = self.body.weight[:, None, None], self.body.bias[:, None, None]
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


class Attention(nn.Module):
    def __init__(self, channels, heads, bias):
        super().__init__()
        threefold = 3 * channels
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, threefold, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(
            threefold, threefold, 3, padding=1, groups=threefold, bias=bias
        )
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x):
        b, c, h, w = x.shape
        heads = self.temperature.shape[0]
        qkv = self.qkv_dwconv(self.qkv(x))
        q, k, v = (y.reshape(b, heads, c // heads, h * w) for y in qkv.chunk(3, dim=1))
        scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-2, -1)
        mixed = (scores * self.temperature).softmax(dim=-1) @ v
        return self.project_out(mixed.reshape(b, c, h, w))


class FeedForward(nn.Module):
    def __init__(self, channels, expansion, bias):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(
            2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias
        )
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x):
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(gelu(gate) * value)


class TransformerBlock(nn.Module):
    def __init__(self, channels, heads, expansion, bias):
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn = Attention(channels, heads, bias)
        self.norm2 = LayerNorm(channels)
        self.ffn = FeedForward(channels, expansion, bias)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Resized(nn.Module):
    """A convolution and a shuffle: half or twice the resolution."""

    def __init__(self, channels, outputs, shuffle):
        super().__init__()
        conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, shuffle)

    def forward(self, x):
        return self.body(x)


class Embedding(nn.Module):
    def __init__(self, channels, dim, bias):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, padding=1, bias=bias)

    def forward(self, x):
        return self.proj(x)


class Restormer(nn.Module):
    def __init__(
        self,
        inp_channels=3,
        out_channels=3,
        dim=48,
        num_blocks=(4, 6, 6, 8),
        num_refinement_blocks=4,
        heads=(1, 2, 4, 8),
        ffn_expansion_factor=2.66,
        bias=False,
    ):
        super().__init__()

        def blocks(width, depth, level):
            shape = (width, heads[level - 1], ffn_expansion_factor, bias)
            return nn.Sequential(*(TransformerBlock(*shape) for _ in range(depth)))

        def down(width):
            return Resized(width, width // 2, nn.PixelUnshuffle(2))

        def up(width):
            return Resized(width, 2 * width, nn.PixelShuffle(2))

        one, two, three, four = num_blocks
        self.patch_embed = Embedding(inp_channels, dim, False)
        self.encoder_level1 = blocks(dim, one, 1)
        self.down1_2 = down(dim)
        self.encoder_level2 = blocks(2 * dim, two, 2)
        self.down2_3 = down(2 * dim)
        self.encoder_level3 = blocks(4 * dim, three, 3)
        self.down3_4 = down(4 * dim)
        self.latent = blocks(8 * dim, four, 4)

        self.up4_3 = up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = blocks(4 * dim, three, 3)
        self.up3_2 = up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = blocks(2 * dim, two, 2)
        self.up2_1 = up(2 * dim)
        self.decoder_level1 = blocks(2 * dim, one, 1)
        self.refinement = blocks(2 * dim, num_refinement_blocks, 1)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def forward(self, image):
        encoded1 = self.encoder_level1(self.patch_embed(image))
        encoded2 = self.encoder_level2(self.down1_2(encoded1))
        encoded3 = self.encoder_level3(self.down2_3(encoded2))
        x = self.latent(self.down3_4(encoded3))
        x = self.reduce_chan_level3(torch.cat([self.up4_3(x), encoded3], dim=1))
        x = self.decoder_level3(x)
        x = self.reduce_chan_level2(torch.cat([self.up3_2(x), encoded2], dim=1))
        x = self.decoder_level2(x)
        x = self.decoder_level1(torch.cat([self.up2_1(x), encoded1], dim=1))
        return self.output(self.refinement(x)) + image


class Changed(Restormer):
    """With one weight that is not the checkpoint's."""

    def load_state_dict(self, state_dict, strict=True):
        super().load_state_dict(state_dict, strict)
        with torch.no_grad():
            self.refinement[0].ffn.project_out.weight[0, 0] += 0.01


class Larger(Restormer):
    def forward(self, image):
        return nn.functional.pad(super().forward(image), (0, 1))


class Raising(Restormer):
    def __init__(self, message="no message"):
        raise RuntimeError(message)


class Leaving(Restormer):
    def __init__(self):
        sys.exit("usage: official_restormer.py")
