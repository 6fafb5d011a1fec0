"""The memory that one more trial on a node takes for an in-memory data set: only its page table, since the images are shared.

    python benchmarks/bench_memory.py [--megabytes 300] [--workers 3] [--gpu SHARE] [--json FILE]

Several processes open the same data set from Ray's object store, as trials do, and read every pixel. USS is the memory that
would be free if the process ended; PSS adds its part of the shared memory. With `--gpu 0.25` each process has this share of a
GPU and holds its training split as a trial does; the table then also has what PyTorch's allocator holds there, and what all
processes take of the GPU, CUDA's contexts included. Prints one table and one JSON line.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import ray
import torch

from stillhouse.data.images import ImageData, Split, split_for, split_of
from stillhouse.device import limit_memory

MEGABYTE = 1 << 20


def memory() -> dict[str, float]:
    """USS, PSS and RSS of this process in MB."""
    kilobytes: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        name, _, rest = line.partition(":")
        kilobytes[name] = int(rest.split()[0])
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"uss": own / 1024, "pss": kilobytes["Pss"] / 1024, "rss": kilobytes["Rss"] / 1024}


def random_data(megabytes: int) -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (megabytes * MEGABYTE // (3 * 64 * 64), 3, 64, 64), np.uint8)
    labels = np.zeros(len(images), np.int64)
    few = images[:10], labels[:10]
    return ImageData(
        name="random",
        num_classes=2,
        input_shape=(3, 64, 64),
        class_names=("a", "b"),
        fingerprint="random",
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
        train=split_of((images, labels)),
        validation=split_of(few),
        read_test=lambda: few,
    )


@ray.remote(num_cpus=0)
class Trial:
    """Opens the data set as `DistillTrial` does."""

    def __init__(self, gpu_share: float) -> None:
        limit_memory(gpu_share)
        self._device = "cuda" if gpu_share else "cpu"
        self._before = memory()
        self._split: Split | None = None

    def open(self, reference: list[ray.ObjectRef]) -> int:
        self._split = split_for(ImageData.from_arrays(*ray.get(reference[0])).train, self._device)
        images = self._split.images
        return sum(int(images[start : start + 1000].sum(dtype=torch.int64)) for start in range(0, len(images), 1000))

    def gpu_memory(self) -> dict[str, float]:
        """MB that this process's allocator holds of the GPU, and that all processes take of it; empty without a GPU."""
        if self._device == "cpu":
            return {}
        free, total = torch.cuda.mem_get_info()
        return {"allocator_mb": torch.cuda.memory_reserved() / MEGABYTE, "gpu_mb": (total - free) / MEGABYTE}

    def growth(self) -> dict[str, float]:
        """The growth of the process since it opened the data set, in MB."""
        return {name: value - self._before[name] for name, value in memory().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300, help="size of the data set")
    parser.add_argument("--workers", type=int, default=3, help="trials on the node")
    parser.add_argument("--gpu", type=float, default=0.0, help="share of a GPU of each trial")
    parser.add_argument("--json", type=Path, help="a file that also receives the JSON line")
    arguments = parser.parse_args()
    data = random_data(arguments.megabytes)
    size = data.train.images.numel() / MEGABYTE
    store = int((2 * size + 200) * MEGABYTE)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=store)
    reference = ray.put(data.to_arrays())
    trials = [Trial.options(num_gpus=arguments.gpu).remote(arguments.gpu) for _ in range(arguments.workers)]
    sums = ray.get([trial.open.remote([reference]) for trial in trials])
    assert len(set(sums)) == 1, "all trials must see the same pixels"
    # Measured when all are open, so that shared memory is shared by all.
    growths = ray.get([trial.growth.remote() for trial in trials])
    on_gpu = ray.get([trial.gpu_memory.remote() for trial in trials])
    print(f"{size:.0f} MB of images, {arguments.workers} trials on one node; growth of each in MB")
    print(f"{'trial':>5} {'USS':>8} {'PSS':>8} {'RSS':>8}")
    for number, growth in enumerate(growths):
        print(f"{number:>5} {growth['uss']:8.1f} {growth['pss']:8.1f} {growth['rss']:8.1f}")
    for number, held in enumerate(on_gpu):
        if held:
            print(f"{number:>5} allocator {held['allocator_mb']:.0f} MB, all processes {held['gpu_mb']:.0f} MB of the GPU")
    worst = max(growth["uss"] for growth in growths)
    result = {
        "benchmark": "memory",
        "point": "P14",
        "data_mb": round(size, 1),
        "workers": arguments.workers,
        "uss_growth_mb": round(worst, 1),
        "pss_growth_mb": round(max(growth["pss"] for growth in growths), 1),
        "share_of_data_copied": round(worst / size, 4),
    }
    if arguments.gpu:
        result |= {"gpu": arguments.gpu, **{name: max(held[name] for held in on_gpu) for name in on_gpu[0]}}
    line = json.dumps(result)
    print(line)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    ray.shutdown()


if __name__ == "__main__":
    main()
