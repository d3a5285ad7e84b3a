"""Scale on paper: what devices send each other in a step, and what of it can't be hidden.

    python -m benchmarks.scale                       # 8, 64, 256 devices; a quarter of an hour
    python -m benchmarks.scale --devices 8 --encoders B/16

The bytes and the operations are read from the compiled step of affectnet_mae_lbp (ViT, 224 px, two
passes of the encoder), on so many pretended processors, for one batch a device; both kinds of mesh.
XLA's CPU backend sums the gradients of the clean and of the masked view apart: a GPU or TPU may
send half of that.

The model, each figure where it is stated: a chip reaches REACHED of its peak, a link LINK of its
rate. A ring over n devices moves 2 (n - 1) / n of the bytes of an all-reduce, (n - 1) / n of those
of a gather or scatter. Beyond a node of eight H100 the sum goes on over InfiniBand with an eighth
of the bytes each. Sums of gradients go on beside the backward pass, two thirds of a step's
operations, but for the last BUCKET bytes; gathers of weights, and what else is sent, beside all of
it, but for the first BUCKET. Efficiency is the time of the operations over that with what stays. It
can't say how well a compiler overlaps; it says whether it could.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping

OTHERS = ("all-gather", "all-to-all", "collective-permute")
REACHED, LINK, BUCKET = 0.45, 0.7, 128e6
WANTED = 0.95


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak of bf16 products a second, and bytes a second one way: near, and beyond `node` chips."""

    peak: float
    near: float
    far: float = 0.0
    node: int = 1 << 30


# NVIDIA's data sheet of the H100 SXM (dense), NVLink 900 GB/s both ways, one 400 Gb/s InfiniBand
# port a GPU; Google's pages of TPU v5e and v6e, ICI of 400 and 800 GB/s both ways.
CHIPS = {
    "H100": Chip(989e12, 450e9, 50e9, 8),
    "v5e": Chip(197e12, 200e9),
    "v6e": Chip(918e12, 400e9),
}


def seconds(kind: str, count: float, devices: int, chip: Chip) -> float:
    """How long a collective of `count` bytes takes."""
    passes = 2 if kind == "all-reduce" else 1
    near = min(devices, chip.node)
    spent = passes * count * (near - 1) / near / (LINK * chip.near)
    if devices > chip.node:
        nodes = devices // chip.node
        spent += passes * count / chip.node * (nodes - 1) / nodes / (LINK * chip.far)
    return spent


def exposed(sent: Mapping[str, float], work: float, devices: int, chip: Chip) -> float:
    """The seconds of communication that don't fit beside `work` seconds of operations."""
    left = 0.0
    for kinds, beside in ((("all-reduce", "reduce-scatter"), 2 / 3), (OTHERS, 1.0)):
        count = sum(sent.get(kind, 0.0) for kind in kinds)
        if count:
            rate = seconds(kinds[0], count, devices, chip) / count
            hidden = beside * work / rate
            left += rate * max(min(BUCKET, count), count - hidden)
    return left


def efficiency(
    sent: Mapping[str, float], operations: float, rows: float, devices: int, chip: Chip
) -> float:
    """The share of the time that operations take, for `rows` a device; `operations`: of one row."""
    work = rows * operations / (REACHED * chip.peak)
    return work / (work + exposed(sent, work, devices, chip))


def least_rows(
    sent: Mapping[str, float], operations: float, devices: int, chip: Chip
) -> int:  # fmt: skip
    """The fewest rows a device with an efficiency of WANTED."""
    rows = 1
    while efficiency(sent, operations, rows, devices, chip) < WANTED:
        rows += max(1, rows // 50)
    return rows


def planned(devices: int, encoder: str, fsdp: int, rows: int) -> dict:
    """Bytes by kind, and operations of a row, of the compiled step; in a process of its own."""
    from configs import affectnet_mae_lbp
    from hmtl_jax import plan, sharding

    config = affectnet_mae_lbp.get_config()
    config.model.encoder, config.batch_size = encoder, rows * devices
    config.mesh.fsdp = fsdp
    config.plan.labels, config.plan.examples = "expression=8", 287_651
    mesh = sharding.make_mesh(**config.mesh, devices=plan.pretended(devices))
    import jax

    data = plan.Data.of(config, plan.training_split(config))
    with jax.set_mesh(mesh):
        found = plan.Planned.of(config, data, mesh, rows * devices)
    return {"sent": dict(found.sent), "operations": found.operations / rows}


def main() -> None:
    """Prints the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", default="8,64,256")
    parser.add_argument("--encoders", default="B/16,H/14")
    parser.add_argument("--rows", type=int, default=8, help="a device, as compiled")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        devices, encoder, fsdp = args.one.split(",")
        print(json.dumps(planned(int(devices), encoder, int(fsdp), args.rows)))
        return
    heads = [f"{name}: {what}" for name in CHIPS for what in ("at 64 a device", "rows for 95 %")]
    print(f"| ViT | devices | mesh | sent, MB | {' | '.join(heads)} |")
    print(f"|{'---|' * (4 + len(heads))}")
    for encoder in args.encoders.split(","):
        for devices in map(int, args.devices.split(",")):
            for fsdp in (1, 8):
                one = [f"--one={devices},{encoder},{fsdp}", f"--rows={args.rows}"]
                command = [sys.executable, "-m", "benchmarks.scale", *one]
                told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found = json.loads(told.splitlines()[-1])
                cells = []
                for chip in CHIPS.values():
                    asked = (found["sent"], found["operations"])
                    cells.append(f"{100 * efficiency(*asked, 64, devices, chip):.0f} %")
                    cells.append(str(least_rows(*asked, devices, chip)))
                sent = ", ".join(f"{kind} {of / 1e6:,.0f}" for kind, of in found["sent"].items())
                mesh = f"{devices // fsdp} × {fsdp}"
                print(
                    f"| {encoder} | {devices} | {mesh} | {sent} | {' | '.join(cells)} |", flush=True
                )


if __name__ == "__main__":
    main()
