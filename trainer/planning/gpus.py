"""Kinds of GPUs: what they hold and how fast they are, as their makers say. Prices are those of instance types.

Sources: NVIDIA's data sheets of T4, A10 (the A10G is EC2's, AWS lists 24 GB), L4, L40S, A100, H100 SXM, H200 SXM and
DGX B200. Operations are dense: without the sparsity that the sheets of newer kinds count in. Memory is what the driver
reports where that was seen (H100 79.1 GiB, H200 139.8 GiB), else the sheet's number of gigabytes less 2%, which error
correction and the driver take.
"""

from __future__ import annotations

import dataclasses

_TERA = 1e12
_GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU, or the cores of a CPU.

    Attributes:
      memory: Bytes that programs can take.
      peak_16bit: Operations a second in BF16 or FP16 with FP32 sums.
      peak_32bit: The same in FP32, without TF32, which training does not use.
      bandwidth: Bytes a second between its memory and its cores.
      link: Bytes a second to the GPUs of its host, one way.
      names: What the driver's name of it holds.
    """

    name: str
    memory: int
    peak_16bit: float
    peak_32bit: float
    bandwidth: float
    link: float
    names: tuple[str, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Whether it is one."""
        return self.peak_16bit > self.peak_32bit


def _gpu(
    name: str, gib: float, peak_16bit: float, peak_32bit: float, bandwidth: float, link: float, *names: str
) -> Device:
    return Device(
        name,
        int(gib * 2**30),
        peak_16bit * _TERA,
        peak_32bit * _TERA,
        bandwidth * _GIGA,
        link * _GIGA,
        names or (name,),
    )


# name, GiB, tera-operations in 16 and in 32 bits, GB/s of memory, GB/s of the link (PCIe 3 or 4 x16, else NVLink).
# Kinds whose names begin alike stand from the longest.
GPUS = (
    _gpu("T4", 14.6, 65, 8.1, 320, 12),
    # EC2's own: half of an A10's tensor rate, which its GPUs reach in practice (AWS, "G5 instances": 70 of 125).
    _gpu("A10G", 22.1, 70, 31.2, 600, 24),
    _gpu("L40S", 44.4, 362, 91.6, 864, 24),
    _gpu("L4", 22.0, 121, 30.3, 300, 24),
    _gpu("A100-40GB", 39.4, 312, 19.5, 1_555, 300, "A100-SXM4-40GB", "A100-PCIE-40GB"),
    _gpu("A100-80GB", 79.1, 312, 19.5, 2_039, 300, "A100-SXM4-80GB", "A100 80GB", "A100"),
    _gpu("H100", 79.1, 989, 66.9, 3_350, 450),
    _gpu("H200", 139.8, 989, 66.9, 4_800, 450),
    _gpu("B200", 178.0, 2_250, 80, 8_000, 900),
)

# Of one core; measured on two virtual cores of an AMD EPYC that fine-tuned SmolLM2-135M in FP32 (docs/performance.md,
# "Quickstart": 160 to 240 tokens/s are 110 to 160 G operations a second).
_CORE_PEAK = 65e9
_CORE_BANDWIDTH = 5e9


def cpu(num_cores: int, memory: int) -> Device:
    """The cores of a host that one rank uses."""
    peak = num_cores * _CORE_PEAK
    return Device("CPU", memory, peak, peak, num_cores * _CORE_BANDWIDTH, _CORE_BANDWIDTH)


def by_name(name: str) -> Device | None:
    """The kind called that in this table."""
    return next((gpu for gpu in GPUS if gpu.name == name), None)


def of_driver_name(driver_name: str) -> Device | None:
    """The kind by the name that the driver gives it; None for one that is not in the table.

    Example: "NVIDIA H100 80GB HBM3". The table's H100 is the SXM board: those for PCIe and NVL are slower.
    """
    words = driver_name.replace("NVIDIA ", "").replace("Tesla ", "")
    if "PCIe" in words or "NVL" in words:
        return None
    return next((gpu for gpu in GPUS if any(f"{words} ".startswith((f"{n} ", f"{n}-")) for n in gpu.names)), None)


def of_driver(driver_name: str, memory: int) -> Device:
    """A GPU that is there, with the bytes that its driver reports.

    Ratios of an A100's rates stand for those of a kind that is not in the table.
    """
    known = of_driver_name(driver_name)
    if known is not None:
        return dataclasses.replace(known, memory=memory)
    stand_in = by_name("A100-80GB")
    assert stand_in is not None
    return dataclasses.replace(stand_in, name=driver_name, memory=memory)
