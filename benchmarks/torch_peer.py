"""The step of train_step.py in PyTorch, written plainly and well: its peer.

A process of its own, because two frameworks in one would share thread pools and memory. It answers
lines on standard input: `METHOD STEPS`, METHOD being supervised or ssat, with the seconds that they
took and the peak memory in bytes; `check FILE.npz` with the loss and the gradient norm.

    python benchmarks/torch_peer.py --encoder=192x12x3/16 --image_size=224 --batch_size=32 \
        --dtype=bfloat16 --compile
"""

import argparse
import resource
import sys
import time

import numpy as np

# PyTorch is optional (requirements-bench.txt), so the type checker may not find it.
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

CLASSES, MASK_RATIO, LAM, SMOOTHING = 8, 0.75, 0.1, 0.1


class Block(nn.Module):
    """A pre-norm block with exact GELU, as ours."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def attention(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """ViT over patches [B, N, P], or over those that `keep` names."""

    def __init__(self, dim, depth, heads, *, values, patches):
        super().__init__()
        self.embed = nn.Linear(values, dim)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        # Fixed positions cost the same whatever they hold; a check loads the real ones.
        self.register_buffer("positions", torch.randn(1, patches, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, patches, keep=None):
        positions = self.positions.expand(len(patches), -1, -1)
        if keep is not None:
            patches, positions = (picked(x, keep) for x in (patches, positions))
        x = self.embed(patches)
        # Without the cast autocast would carry the residual stream in float32; ours is in bf16.
        x = x + positions.to(x.dtype)
        x = torch.cat([self.cls.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Decoder(nn.Module):
    """MAE's decoder: kept tokens and the order they came from → every patch."""

    def __init__(self, dim, *, patches, values, width=128, depth=2, heads=16):
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.register_buffer("positions", torch.randn(1, 1 + patches, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict_rgb = nn.Linear(width, values)

    def forward(self, tokens, restore):
        x = self.embed(tokens)
        masks = self.mask_token.to(x.dtype).expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        full = picked(torch.cat([x[:, 1:], masks], dim=1), restore)
        x = torch.cat([x[:, :1], full], dim=1) + self.positions.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.predict_rgb(self.norm(x)[:, 1:])


class Hybrid(nn.Module):
    """The loss of a step: images [B, H, W, 3] uint8 and labels, and noise [B, N] that masks."""

    def __init__(self, dim, depth, heads, *, patch, image_size):
        super().__init__()
        self.patch, self.patches, values = patch, (image_size // patch) ** 2, 3 * patch**2
        self.encoder = Encoder(dim, depth, heads, values=values, patches=self.patches)
        self.head = nn.Linear(dim, CLASSES)
        self.decoder = Decoder(dim, values=values, patches=self.patches)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]), persistent=False)

    def patchify(self, images):
        x, p = (images.float() / 255 - self.mean) / self.std, self.patch
        b, h, w, _ = x.shape
        x = x.view(b, h // p, p, w // p, p, 3).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(b, self.patches, 3 * p * p)

    def supervised_loss(self, patches, labels):
        logits = self.head(self.encoder(patches)[:, 0]).float()
        return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)

    def reconstruction_loss(self, patches, noise):
        kept = int(self.patches * (1 - MASK_RATIO))
        order = noise.argsort(1)
        restore = order.argsort(1)
        rebuilt = self.decoder(self.encoder(patches, order[:, :kept]), restore).float()
        error = (rebuilt - patches).square().mean(-1)
        hidden = (restore >= kept).float()
        return (error * hidden).sum() / hidden.sum()

    def forward(self, images, labels, noise):
        patches = self.patchify(images)
        if noise is None:
            return self.supervised_loss(patches, labels)
        rebuilt = self.reconstruction_loss(patches, noise)
        return LAM * self.supervised_loss(patches, labels) + (1 - LAM) * rebuilt


class Residual(nn.Module):
    """relu(shortcut(x) + branch(x)): two 3x3 convolutions, each normalised."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.branch(x))


class ResNet18(nn.Module):
    """The loss of a supervised step, with the stem of small images; channels last."""

    patches = 0

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        shapes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        shapes += [(128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
        self.blocks = nn.Sequential(*(Residual(*shape) for shape in shapes))
        self.head = nn.Linear(512, CLASSES)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]), persistent=False)

    def forward(self, images, labels, noise):
        x = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        logits = self.head(self.blocks(self.stem(x)).mean((2, 3))).float()
        return F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


def made(encoder, image_size):
    """The model by the name of its encoder."""
    if encoder == "resnet18-small":
        return ResNet18().to(memory_format=torch.channels_last)
    size, patch = encoder.split("/")
    dim, depth, heads = map(int, size.split("x"))
    return Hybrid(dim, depth, heads, patch=int(patch), image_size=image_size)


def picked(x_bnd, ids_bk):
    """Rows of each example by their ids."""
    return x_bnd.gather(1, ids_bk[:, :, None].expand(-1, -1, x_bnd.shape[2]))


class Trainer:
    """A model with its optimizer and one random batch on the device."""

    def __init__(self, args):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = made(args.encoder, args.image_size).to(self.device)
        self.loss = torch.compile(self.model) if args.compile else self.model
        # As ours: no decay on biases, norms and tokens.
        matrices = [p for p in self.model.parameters() if p.ndim in (2, 4)]
        others = [p for p in self.model.parameters() if p.ndim not in (2, 4)]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.05, fused=True)
        self.autocast = args.dtype == "bfloat16"
        shape = (args.batch_size, args.image_size, args.image_size, 3)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        self.labels = torch.randint(0, CLASSES, shape[:1], device=self.device)

    def step(self, method):
        """One step on the batch; returns the loss, on the device."""
        shape = (len(self.images), self.model.patches)
        noise = torch.rand(shape, device=self.device) if method == "ssat" else None
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(self.images, self.labels, noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def seconds(self, method, steps):
        """Wall time of `steps` steps."""
        started = time.perf_counter()
        for _ in range(steps):
            loss = self.step(method)
        loss.item()  # waits for the device
        return time.perf_counter() - started

    def peak_bytes(self):
        """Most memory held so far: the device's, or that of the process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def check(self, path):
        """SSAT loss and global gradient norm of the parameters and the batch in an .npz file."""
        arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        images, labels, noise = (
            arrays.pop(name).to(self.device) for name in ("images", "labels", "noise")
        )
        self.model.load_state_dict(arrays)
        loss = self.loss(images, labels, noise)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), norm.item()


def main():
    """Serves measurements until standard input ends."""
    trainer = Trainer(arguments())
    print("ready", flush=True)
    for line in sys.stdin:
        word, value = line.split(maxsplit=1)
        if word == "check":
            answer = trainer.check(value.strip())
        else:
            answer = trainer.seconds(word, int(value)), trainer.peak_bytes()
        print(*answer, flush=True)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description="The PyTorch peer of train_step.py.")
    parser.add_argument(
        "--encoder", required=True, help="WIDTHxDEPTHxHEADS/PATCH or resnet18-small"
    )
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
