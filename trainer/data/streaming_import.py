"""The one door to mosaicml-streaming: every module that needs it imports its names from here.

`import streaming` pulls in torchvision. On a CPU build of torch the package index's torchvision (a CUDA build) cannot
register its operators and fails with "operator torchvision::nms does not exist"; nothing here calls those operators, so
declaring them is enough. Where torchvision imports as it is, nothing is declared.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.base.hashing import get_hash
from streaming.base.world import World

__all__ = ["MDSWriter", "Stream", "StreamingDataLoader", "StreamingDataset", "World", "get_hash"]
