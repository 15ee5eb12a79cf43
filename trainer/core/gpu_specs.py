"""Data sheets of GPUs: the planner computes with them, and MFU is relative to them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Bytes, and bytes or operations per second, as in the data sheet."""

    title: str
    driver_names: tuple[str, ...]  # the name that the driver reports contains one of them
    memory: float
    flops: float  # dense bf16 with tensor cores
    fp32: float  # without tensor cores: torch uses TF32 only if it is allowed to, and nothing here allows it
    memory_bandwidth: float
    link_bandwidth: float  # to the other GPUs of a node, in one direction
    node_bandwidth: float  # out of a usual node of eight, in one direction; not from the data sheet


G, T = 1e9, 1e12
IB400, IB200, ETHERNET = 400 * G, 200 * G, 12.5 * G  # per node 8 ports of 400 or 200 Gbit/s; one of 100 Gbit/s

GPUS = {
    # NVIDIA H100 Tensor Core GPU datasheet, SXM5: 1,979 TFLOP/s with sparsity, half without; NVLink 900 GB/s both ways.
    "h100": Gpu("H100 80 GB", ("H100",), 80 * G, 989.4 * T, 66.9 * T, 3350 * G, 450 * G, IB400),
    # NVIDIA H200 Tensor Core GPU datasheet, SXM.
    "h200": Gpu("H200 141 GB", ("H200",), 141 * G, 989.4 * T, 66.9 * T, 4800 * G, 450 * G, IB400),
    # NVIDIA H800 Tensor Core GPU datasheet, SXM: the H100 with NVLink of 400 GB/s both ways.
    "h800": Gpu("H800 80 GB", ("H800",), 80 * G, 989.4 * T, 66.9 * T, 3350 * G, 200 * G, IB400),
    # NVIDIA H100 Tensor Core GPU datasheet, PCIe and NVL: 1,513 and 1,671 TFLOP/s with sparsity, bridges of 600 GB/s.
    "h100-pcie": Gpu("H100 PCIe 80 GB", ("H100 PCIe",), 80 * G, 756.5 * T, 51 * T, 2000 * G, 300 * G, IB200),
    "h100-nvl": Gpu("H100 NVL 94 GB", ("H100 NVL",), 94 * G, 835.5 * T, 60 * T, 3900 * G, 300 * G, IB200),
    # NVIDIA A100 Tensor Core GPU datasheet, SXM4: NVLink 600 GB/s both ways.
    "a100-40": Gpu(
        "A100 40 GB", ("A100-SXM4-40GB", "A100-PCIE-40GB"), 40 * G, 312 * T, 19.5 * T, 1555 * G, 300 * G, IB200
    ),
    "a100-80": Gpu("A100 80 GB", ("A100",), 80 * G, 312 * T, 19.5 * T, 2039 * G, 300 * G, IB200),
    # NVIDIA A800 datasheet, SXM4: the A100 with NVLink of 400 GB/s both ways.
    "a800": Gpu("A800 80 GB", ("A800",), 80 * G, 312 * T, 19.5 * T, 2039 * G, 200 * G, IB200),
    # NVIDIA Ada GPU architecture whitepaper, table 2: FP16 with FP32 accumulation. PCIe 4.0 x16.
    "4090": Gpu("RTX 4090 24 GB", ("RTX 4090",), 24 * G, 165.2 * T, 82.6 * T, 1008 * G, 32 * G, ETHERNET),
    # NVIDIA L40S datasheet: 733 TFLOP/s with sparsity, 362.05 without. PCIe 4.0 x16.
    "l40s": Gpu("L40S 48 GB", ("L40S",), 48 * G, 362 * T, 91.6 * T, 864 * G, 32 * G, ETHERNET),
    # NVIDIA HGX B200 datasheet: a share of eight; 36 PFLOP/s of bf16 with sparsity; NVLink 1.8 TB/s both ways.
    "b200": Gpu("B200 180 GB", ("B200",), 180 * G, 2250 * T, 75 * T, 8000 * G, 900 * G, IB400),
    # AMD Instinct MI300X data sheet: Infinity Fabric, seven links of 128 GB/s both ways. Untested.
    "mi300x": Gpu("MI300X 192 GB", ("MI300X",), 192 * G, 1307.4 * T, 163.4 * T, 5300 * G, 448 * G, IB400),
}


def find_gpu(name: str) -> Gpu | None:
    """Look a GPU up by the name that its driver reports, as "NVIDIA H100 80GB HBM3". The longest match wins."""
    matches = [(len(part), gpu) for gpu in GPUS.values() for part in gpu.driver_names if part in name]
    return max(matches, key=lambda match: match[0])[1] if matches else None
