"""The only place that imports transformers and diffusers: it takes seconds and needs two corrections.

Every function imports when it is called. Nothing here depends on the libraries' optional packages.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def declare_torchvision() -> None:
    """On a CPU build of torch the package index's torchvision (a CUDA build) cannot register its operators and fails
    with "operator torchvision::nms does not exist". Nothing here calls those operators, so declaring them is enough;
    where torchvision imports, nothing is declared."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def transformers() -> Any:
    """The module; its names are loaded one by one."""
    declare_torchvision()
    import transformers

    return transformers


def diffusers() -> Any:
    """The module; its names are loaded one by one."""
    declare_torchvision()
    from diffusers.utils import import_utils

    # With torchao installed, diffusers imports it for quantized weights, which nobody asks for here. That takes seconds
    # and prints warnings about extensions for other GPUs.
    import_utils._torchao_available = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other models' modules complain about a missing GPU
        import diffusers
        from diffusers import AutoencoderOobleck  # noqa: F401

    return diffusers


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Hide the libraries' lists of weights that a file holds and the model does not use, and their attempts to reach a
    hub."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
