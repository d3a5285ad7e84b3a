"""PyTorch modules whose tensors have timm's names: plain, and written from the papers."""

import torch
from torch import nn
from torch.nn import functional

from hmtl_jax.models import efficientnet, resnet


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        rows, count, dim = x.shape
        qkv = self.qkv(x).reshape(rows, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(*qkv)
        return self.proj(out.transpose(1, 2).reshape(rows, count, dim))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, dim, patch):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Images [B, 3, H, W] → tokens [B, 1 + N, D]."""

    def __init__(self, patch, dim, depth, heads, image_size):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (image_size // patch) ** 2, dim))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))


def conv(inputs, outputs, kernel, stride=1, groups=1):
    pad = (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)


class Residual(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        self.bottleneck, outputs = bottleneck, 4 * width if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = [inputs, width, width, outputs] if bottleneck else [inputs, width, width]
        for i, kernel in enumerate(kernels):
            step = stride if i == (1 if bottleneck else 0) else 1
            setattr(self, f"conv{i + 1}", conv(widths[i], widths[i + 1], kernel, step))
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(functional.relu(y)))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Images [B, 3, H, W] → the last map."""

    def __init__(self, depths, bottleneck, small):
        super().__init__()
        self.small = small
        self.conv1 = conv(3, 64, 3) if small else conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, depth in enumerate(depths):
            width, blocks = 64 * 2**stage, []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(Residual(inputs, width, stride, bottleneck))
                inputs = 4 * width if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = x if self.small else functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, middle):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, middle, 1)
        self.conv_expand = nn.Conv2d(middle, channels, 1)

    def forward(self, x):
        y = functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.conv_expand(y))


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, expansion, kernel, stride):
        super().__init__()
        inner = inputs * expansion
        self.expands, self.adds = expansion > 1, inputs == outputs and stride == 1
        if self.expands:
            self.conv_pw, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
            self.conv_dw = conv(inner, inner, kernel, stride, inner)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv_pwl, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv_dw = conv(inner, inner, kernel, stride, inner)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv_pw, self.bn2 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.se = SqueezeExcite(inner, inputs // 4)

    def forward(self, x):
        if self.expands:
            y = functional.silu(self.bn1(self.conv_pw(x)))
            y = self.se(functional.silu(self.bn2(self.conv_dw(y))))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = self.se(functional.silu(self.bn1(self.conv_dw(x))))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.adds else y


class EfficientNet(nn.Module):
    """Images [B, 3, H, W] → the last map.

    stages: (outputs, expansion, kernel, stride, repeats) each.
    """

    def __init__(self, stem, stem_stride, stages, last):
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, stem, 3, stem_stride), nn.BatchNorm2d(stem)
        inputs, all_blocks = stem, []
        for outputs, expansion, kernel, stride, repeats in stages:
            blocks = []
            for block in range(repeats):
                step = 1 if block else stride
                blocks.append(MBConv(inputs, outputs, expansion, kernel, step))
                inputs = outputs
            all_blocks.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*all_blocks)
        self.conv_head, self.bn2 = conv(inputs, last, 1), nn.BatchNorm2d(last)

    def forward(self, x):
        x = self.blocks(functional.silu(self.bn1(self.conv_stem(x))))
        return functional.silu(self.bn2(self.conv_head(x)))


# Outputs and repeats of the stages as the networks' published listings give them.
LISTED = {
    "efficientnet_b0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 1280),
    "efficientnet_b1": ((16, 24, 40, 80, 112, 192, 320), (2, 3, 3, 4, 4, 5, 2), 1280),
    "efficientnet_b2": ((16, 24, 48, 88, 120, 208, 352), (2, 3, 3, 4, 4, 5, 2), 1408),
}


def make(name):
    """The module of a convolutional encoder of ours."""
    size, small = name.removesuffix("-small"), name.endswith("-small")
    if size in resnet.SIZES:
        return ResNet(*resnet.SIZES[size], small)
    assert size in efficientnet.SIZES
    outputs, repeats, last = LISTED[size]
    strides = (1, 1 if small else 2, 2, 2, 1, 2, 1)
    parts = (outputs, (1, 6, 6, 6, 6, 6, 6), (3, 3, 5, 3, 5, 5, 3), strides, repeats)
    return EfficientNet(32, 1 if small else 2, list(zip(*parts, strict=True)), last)
