"""
What a rank may run on, and how long a step takes there.

Peaks are those of the makers' data sheets, without sparsity. A step's parts follow one another, as its collectives
block: matrix products at a share of the peak, sparse products and updates at a share of the memory's bandwidth,
messages at a share of the network's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft_clt.sizing import Workload
from weft_common.errors import NotFoundError

GIB = 1 << 30
MATMUL_SHARE = 0.5
GATHER_SHARE = 0.5
"""Of the bandwidth, where rows are read that lie apart."""
STREAM_SHARE = 0.8
NETWORK_SHARE = 0.8


@dataclass(frozen=True)
class Device:
    """
    One rank's processor.

    Args:
        name: As `--device` has it.
        basis: Where its figures come from.
        memory_bytes: 0 where that is the machine's matter.
        float32_flops: A second, in matrix products (TF32 where there is one).
        bfloat16_flops: Likewise.
        bandwidth_bytes: Of its memory, a second.
    """

    name: str
    basis: str
    memory_bytes: int
    float32_flops: float
    bfloat16_flops: float
    bandwidth_bytes: float

    @property
    def measured(self) -> bool:
        """Whether its rate was measured with weft's own step."""
        return self.bandwidth_bytes == 0


def _gpu(name: str, memory_gb: float, tf32: float, bf16: float, bandwidth_gb: float) -> Device:
    basis = "estimate: roofline of the data sheet"
    return Device(name, basis, int(memory_gb * 1e9), tf32 * 1e12, bf16 * 1e12, bandwidth_gb * 1e9)


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("cpu-core", "estimate: carried over by FLOP from a measured step", 0, 13.1e9, 13.1e9, 0.0),
        _gpu("l4", 24, 60, 121, 300),
        _gpu("l40s", 48, 183, 362, 864),
        _gpu("a100-80gb", 80, 156, 312, 2039),
        _gpu("h100", 80, 494, 989, 3350),
        _gpu("h200", 141, 494, 989, 4800),
        _gpu("b200", 180, 1100, 2250, 8000),
    )
}
"""cpu-core: benchmarks/training/bench_step.py, 143 tokens a second at L 30, d 576, F 512, k 32, one thread."""


def find_device(name: str) -> Device:
    """A device by its name. NotFoundError lists them."""
    if name not in DEVICES:
        raise NotFoundError(f"there is no device {name!r}; give one of {', '.join(DEVICES)}", field="device")
    return DEVICES[name]


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they go to."""

    encode: float
    decode: float
    update: float
    network: float

    @property
    def total(self) -> float:
        """All of them, one after the other."""
        return self.encode + self.decode + self.update + self.network


def step_time(work: Workload, device: Device, network_gbit: float) -> StepTime:
    """
    Estimate a step.

    Args:
        network_gbit: What one rank can send, in gigabits a second.
    """
    flops, traffic = work.flops(), work.traffic()
    tokens = work.step_tokens / work.world_size
    peak = device.float32_flops if work.float_bytes >= 4 else device.bfloat16_flops
    network = work.network().total * 8 / (network_gbit * 1e9 * NETWORK_SHARE) if work.world_size > 1 else 0.0
    if device.measured:
        return StepTime(
            encode=tokens * flops.encode / peak,
            decode=tokens * (flops.decode + flops.encode_backward) / peak,
            update=tokens * (flops.update + flops.norms) / peak,
            network=network,
        )
    bandwidth = device.bandwidth_bytes
    # Where the pre-activation loss is on, the encoder's gradient is a matrix product too, but for JumpReLU.
    dense = flops.encode * (2 if work.preact_loss and not work.jumps else 1)
    norms = work.passes * work.rank_parameters_bytes if work.weighs else 0
    return StepTime(
        encode=tokens * dense / (peak * MATMUL_SHARE),
        decode=traffic.weights / (bandwidth * GATHER_SHARE),
        update=(traffic.update + norms) / (bandwidth * STREAM_SHARE),
        network=network,
    )
