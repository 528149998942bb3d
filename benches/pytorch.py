"""The PyTorch side of a comparison, measured as `semgen bench` measures and written in its format (semgen-bench-1).

    python benches/pytorch.py conv3d --shape 1,32,64,32,32,32 --shape 1,192,64,32,32,32
    python benches/pytorch.py conv3d --suite ynet3d --batch 2 --device cuda --precision f32,tf32,amp
    python benches/pytorch.py step --base 32 --batch 1 --cube 64,64,32
    python benches/pytorch.py knn --shape 4096,4096,512,200
    python benches/pytorch.py copy

Shapes are N,C_in,C_out,D,H,W. Each case is run in both memory formats (contiguous and channels-last-3D) and, on a
CUDA device, in every precision asked for: f32 (TF32 off), tf32, amp (float16 with loss scaling). cuDNN may choose its
algorithms by measurement (cudnn.benchmark). With --best only the faster memory format of each case is kept. Several
commands can be given at once, separated by `+`: the process then starts once.

Times are medians over repetitions after a warm-up, repeated until the quartiles lie within 3 % of the median of each
other or the time limit is reached. `wall_s` is the host's clock around work that is waited for; `device_s` are CUDA events.
Nothing is written but JSON: one object on the standard output, or in --json FILE.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

SCHEMA = "semgen-bench-1"
SPREAD = 0.03


# ------------------------------------------------------------------------------------------------ measuring

class Clock:
    """Runs work on a device and says how long it took."""

    def __init__(self, device, limit, least):
        self.device, self.limit, self.least = device, limit, least
        self.cuda = device.type == "cuda"

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, work):
        """(wall seconds, device seconds or None) of one run."""
        self.wait()
        if self.cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
        begun = time.perf_counter()
        work()
        if self.cuda:
            last.record()
        self.wait()
        wall = time.perf_counter() - begun
        return wall, first.elapsed_time(last) * 1e-3 if self.cuda else None

    def measure(self, work):
        """Statistics of repeated runs: dict with `wall_s` and, on a CUDA device, `device_s`."""
        begun = time.perf_counter()
        warm = 0
        # The first runs choose algorithms and fill caches.
        while warm < 2 or (warm < 10 and time.perf_counter() - begun < 0.2 * self.limit):
            self.once(work)
            warm += 1
            if time.perf_counter() - begun > self.limit:
                break
        begun, walls, devices = time.perf_counter(), [], []
        while True:
            wall, device = self.once(work)
            walls.append(wall)
            if device is not None:
                devices.append(device)
            timed = devices or walls
            if time.perf_counter() - begun > self.limit:
                break
            if len(timed) >= self.least and spread(timed) <= SPREAD:
                break
        return {"wall_s": summary(walls), "device_s": summary(devices) if devices else None}


def quartiles(values):
    ordered = sorted(values)
    at = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))]
    return at(0.25), at(0.75)


def spread(values):
    low, high = quartiles(values)
    return (high - low) / max(statistics.median(values), 1e-12)


def summary(values):
    """Seconds: median with its 95 % interval, minimum, relative spread (distance of the quartiles over the median)."""
    ordered, n = sorted(values), len(values)
    # How many samples lie below the median is binomial.
    reach = 1.96 * (n ** 0.5) / 2
    low = ordered[max(0, int(n / 2 - reach))]
    high = ordered[min(n - 1, int(n / 2 + reach))]
    return {
        "median": statistics.median(ordered),
        "min": ordered[0],
        "low": low,
        "high": high,
        "spread": spread(ordered),
        "count": n,
    }


# ------------------------------------------------------------------------------------------------ networks

class Unit(nn.Module):
    """Convolution 3x3x3, batch norm, ReLU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Y-Net, U-Net (no class head) or classifier (no decoder) of a base width; four levels."""

    def __init__(self, kind, base, classes):
        super().__init__()
        widths = [base << level for level in range(5)]
        self.down = nn.ModuleList()
        inputs = 1
        for level in range(4):
            self.down.append(nn.Sequential(Unit(inputs, widths[level]), Unit(widths[level], widths[level + 1])))
            inputs = widths[level + 1]
        self.up, self.blocks, self.final = nn.ModuleList(), nn.ModuleList(), None
        if kind != "classifier":
            for level in (2, 1, 0):
                deep, out = widths[level + 2], widths[level + 1]
                self.up.append(nn.ConvTranspose3d(deep, deep, 2, stride=2))
                self.blocks.append(nn.Sequential(Unit(deep + out, out), Unit(out, out)))
            self.final = nn.Conv3d(2 * base, 1, 1)
        self.head, self.linear = None, None
        if kind != "unet":
            self.head, self.linear = Unit(16 * base, 32 * base), nn.Linear(32 * base, classes)

    def forward(self, x):
        maps = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool3d(x, 2))
            maps.append(x)
        logits = self.linear(self.head(x).mean(dim=(2, 3, 4))) if self.head is not None else None
        restored = None
        if self.final is not None:
            for up, block, skip in zip(self.up, self.blocks, (maps[2], maps[1], maps[0])):
                x = block(torch.cat((up(x), skip), dim=1))
            restored = torch.sigmoid(self.final(x))
        return restored, logits


def ynet_layers(base, cube):
    """(name, C_in, C_out, grid) of every 3x3x3 convolution of the Y-Net."""
    grid = lambda level: [side >> level for side in cube]
    w = [base << level for level in range(5)]
    layers = []
    for level in range(4):
        layers.append((f"down_tr{64 << level}.0", 1 if level == 0 else w[level], w[level], grid(level)))
        layers.append((f"down_tr{64 << level}.1", w[level], w[level + 1], grid(level)))
    for level in (2, 1, 0):
        layers.append((f"up_tr{64 << level}.0", w[level + 2] + w[level + 1], w[level + 1], grid(level)))
        layers.append((f"up_tr{64 << level}.1", w[level + 1], w[level + 1], grid(level)))
    layers.append(("clc_out", 16 * base, 32 * base, grid(3)))
    return layers


# ------------------------------------------------------------------------------------------------ cases

def precisions(options, device):
    asked = options.precision.split(",")
    return [p for p in asked if p == "f32" or device.type == "cuda"]


def set_precision(precision):
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


FORMATS = (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last_3d))


def seconds_of(timed):
    return (timed["device_s"] or timed["wall_s"])["median"]


def row(op, shape, which, precision, layout, flops, size, timed, layer="", extra=None):
    """One row of the format; `size` are the bytes of all operands, each counted once."""
    seconds = seconds_of(timed)
    out = {
        "op": op, "layer": layer, "shape": shape, "pass": which, "variant": f"torch/{precision}/{layout}",
        "dtype": "f16" if precision == "amp" else "f32", "times": 1, "flops": flops, "bytes": size,
    }
    out.update(timed)
    out.update({
        "gflop_s": flops / seconds * 1e-9 if flops else None,
        "gb_s": size / seconds * 1e-9 if size else None,
        "intensity": flops / size if size else 0.0,
        "extra": extra or {},
    })
    return out


def best_of(rows, keep_all):
    """The faster memory format of each (op, shape, pass, precision), or all rows."""
    if keep_all:
        return rows
    chosen = {}
    for r in rows:
        key = (r["op"], r["shape"], r["pass"], r["variant"].rsplit("/", 1)[0], r["layer"])
        if key not in chosen or seconds_of(r) < seconds_of(chosen[key]):
            chosen[key] = r
    return list(chosen.values())


def conv3d(options, clock):
    device, rows = clock.device, []
    cases = []
    for text in options.shape or []:
        n, ci, co, d, h, w = (int(v) for v in text.split(","))
        cases.append(("", n, ci, co, [d, h, w]))
    if options.suite == "ynet3d":
        cube = [int(v) for v in options.cube.split(",")]
        cases += [(name, options.batch, ci, co, grid) for name, ci, co, grid in ynet_layers(options.base, cube)]
    if options.suite == "judged":
        judged = ((32, 64, 32), (64, 64, 32), (128, 128, 16), (192, 64, 32))
        cases += [("", 1, ci, co, [side] * 3) for ci, co, side in judged]
    k = [int(v) for v in options.kernel.split(",")]
    pad = [v // 2 for v in k]
    passes = ("forward", "input-grad", "weight-grad") if options.which == "all" else (options.which,)
    for name, n, ci, co, grid in cases:
        taps = k[0] * k[1] * k[2]
        flops = 2 * n * grid[0] * grid[1] * grid[2] * taps * ci * co
        shape = ",".join(str(v) for v in (n, ci, co, *grid))
        for precision in precisions(options, device):
            set_precision(precision)
            kind = torch.float16 if precision == "amp" else torch.float32
            for label, layout in FORMATS:
                make = lambda *size: torch.randn(*size, device=device).to(kind).contiguous(memory_format=layout)
                x, weight, dy = make(n, ci, *grid), make(co, ci, *k), make(n, co, *grid)
                size = sum(t.numel() * t.element_size() for t in (x, weight, dy))

                def backward(mask):
                    return torch.ops.aten.convolution_backward(
                        dy, x, weight, None, [1, 1, 1], pad, [1, 1, 1], False, [0, 0, 0], 1, mask)

                work = {
                    "forward": lambda: F.conv3d(x, weight, padding=pad),
                    "input-grad": lambda: backward([True, False, False]),
                    "weight-grad": lambda: backward([False, True, False]),
                }
                with torch.no_grad():
                    for which in passes:
                        timed = clock.measure(work[which])
                        rows.append(row("conv3d", shape, which, precision, label, flops, size, timed, name))
    return best_of(rows, options.all)


def step(options, clock):
    device, rows = clock.device, []
    cube = [int(v) for v in options.cube.split(",")]
    for precision in precisions(options, device):
        set_precision(precision)
        for label, layout in FORMATS:
            torch.manual_seed(0)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            net = Net(options.model, options.base, options.classes).to(device, memory_format=layout).train()
            adam = torch.optim.Adam(net.parameters(), lr=1e-3)
            x = torch.rand(options.batch, 1, *cube, device=device).contiguous(memory_format=layout)
            target = torch.rand(options.batch, 1, *cube, device=device)
            labels = torch.arange(options.batch, device=device) % options.classes
            scaler = torch.amp.GradScaler(device.type, enabled=precision == "amp")

            def work():
                adam.zero_grad(set_to_none=True)
                with torch.autocast(device.type, dtype=torch.float16, enabled=precision == "amp"):
                    restored, logits = net(x)
                    loss = 0.0
                    if restored is not None:
                        loss = loss + F.mse_loss(restored.float(), target)
                    if logits is not None:
                        loss = loss + 0.01 * F.cross_entropy(logits.float(), labels)
                scaler.scale(loss).backward()
                scaler.step(adam)
                scaler.update()
                return loss

            timed = clock.measure(work)
            flops = 3 * forward_flops(options.model, options.base, cube) * options.batch
            shape = ",".join(str(v) for v in (options.batch, options.base, *cube))
            extra = {"samples_per_s": options.batch / timed["wall_s"]["median"]}
            extra["parameters"] = sum(p.numel() for p in net.parameters())
            if device.type == "cuda":
                extra["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            rows.append(row("step", shape, options.model, precision, label, flops, 0, timed, extra=extra))
            del net, adam, x, target
    return best_of(rows, options.all)


def forward_flops(kind, base, cube):
    """Multiply-adds x 2 of the convolutions of one forward pass of one cube."""
    total = 0
    voxels = lambda grid: grid[0] * grid[1] * grid[2]
    for name, ci, co, grid in ynet_layers(base, cube):
        if (kind == "classifier" and name.startswith("up_")) or (kind == "unet" and name == "clc_out"):
            continue
        total += 2 * 27 * ci * co * voxels(grid)
    if kind != "classifier":
        for level in (2, 1, 0):
            deep = base << (level + 2)
            total += 2 * deep * deep * voxels([side >> level for side in cube])
        total += 2 * 2 * base * voxels(cube)
    return total


def knn(options, clock):
    rows = []
    for text in options.shape or ["4096,4096,512,200"]:
        queries, base, width, k = (int(v) for v in text.split(","))
        a = torch.randn(queries, width, device=clock.device)
        b = a if queries == base else torch.randn(base, width, device=clock.device)
        flops = 2 * queries * base * width
        for precision in precisions(options, clock.device):
            if precision == "amp":
                continue
            set_precision(precision)
            with torch.no_grad():
                timed = clock.measure(lambda: torch.topk(torch.cdist(a, b), k, largest=False))
            size = 4 * (a.numel() + b.numel() + 2 * queries * k)
            rows.append(row("knn", text, "forward", precision, "contiguous", flops, size, timed))
    return rows


def copy(options, clock):
    """A copy of 256 MiB: bytes read and written in a second, the roof of what only moves data."""
    source = torch.rand(64 << 20, device=clock.device)
    target = torch.empty_like(source)
    timed = clock.measure(lambda: target.copy_(source))
    moved = 2 * source.numel() * 4
    return [row("copy", str(source.numel()), "forward", "f32", "contiguous", 0, moved, timed)]


# ------------------------------------------------------------------------------------------------ program

def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as text:
            names = [line.split(":", 1)[1].strip() for line in text if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def environment(device):
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    limits = {"threads": torch.get_num_threads(), "cudnn_benchmark": torch.backends.cudnn.benchmark}
    name, driver = processor(), ""
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        name, driver = about.name, f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        limits["memory_bytes"] = about.total_memory
    return {
        "engine": "torch",
        "adapter": name,
        "backend": device.type,
        "driver": driver,
        "versions": versions,
        "limits": limits,
        "os": f"{platform.system().lower()} {platform.machine()}",
        "cpu": f"{processor()} ({torch.get_num_threads()} of {os.cpu_count()} threads)",
        "time": int(time.time()),
        "command": sys.argv,
    }


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("conv3d", "step", "knn", "copy"))
    p.add_argument("--shape", action="append", help="N,C_in,C_out,D,H,W, or queries,base,width,k of knn; may be repeated")
    p.add_argument("--suite", choices=("ynet3d", "judged"), help="a set of convolutions")
    p.add_argument("--pass", dest="which", default="all", choices=("forward", "input-grad", "weight-grad", "all"))
    p.add_argument("--kernel", default="3,3,3")
    p.add_argument("--model", default="ynet", choices=("ynet", "unet", "classifier"))
    p.add_argument("--base", type=int, default=32)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--classes", type=int, default=44)
    p.add_argument("--cube", default="64,64,32")
    p.add_argument("--precision", default="f32,tf32,amp", help="on a CUDA device; elsewhere f32 alone")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    p.add_argument("--threads", type=int, help="threads of the processor [default: PyTorch's]")
    p.add_argument("--limit", type=float, default=3.0, help="seconds per case")
    p.add_argument("--least", type=int, default=5, help="fewest repetitions, if the limit allows")
    p.add_argument("--all", action="store_true", help="keep both memory formats")
    p.add_argument("--json", metavar="FILE", help="write there and not to the standard output")
    return p


def main():
    commands, current = [], []
    for word in sys.argv[1:]:
        if word == "+":
            commands.append(current)
            current = []
        else:
            current.append(word)
    commands.append(current)
    parsed = [parser().parse_args(c) for c in commands]
    first = parsed[0]
    if first.threads:
        torch.set_num_threads(first.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device, rows = torch.device(first.device), []
    for options in parsed:
        clock = Clock(device, options.limit, options.least)
        rows += {"conv3d": conv3d, "step": step, "knn": knn, "copy": copy}[options.what](options, clock)
        print(f"{options.what}: {len(rows)} rows", file=sys.stderr)
    text = json.dumps({"schema": SCHEMA, "environment": environment(device), "rows": rows}, indent=1)
    if first.json:
        with open(first.json, "w", encoding="utf-8") as out:
            out.write(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
