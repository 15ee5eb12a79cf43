"""Run networks that anybody exported to a file, in TorchScript or ONNX."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Network = Callable[..., Tensor]  # of one or more tensors
GPU_FAULTS = "CUDA error", "CUDA out of memory", "CUDA failure"  # in what TorchScript and onnxruntime raise


@cache
def load_network(file: str, device: torch.device) -> Network:
    """A function from CPU tensors, one for each input of the network, to another, computed on `device`.

    Raises ValueError if the file is missing, is not in the format of its ending, or refuses its input; the function
    raises torch.OutOfMemoryError or torch.AcceleratorError where the device is at fault.
    """
    kind, load = ("ONNX", _onnx) if file.endswith(".onnx") else ("TorchScript", _torch_script)
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file; give the TorchScript or ONNX file of the network")
    try:
        network = load(file, device)
    except ImportError as error:
        raise ValueError(f"{file}: needs onnxruntime ({error}); pip install 'audiox-trainer[onnx]'") from error
    except Exception as error:  # every library has its own kinds
        raise ValueError(f"{file}: not a network in {kind} ({_brief(error)})") from error

    def run(*inputs: Tensor) -> Tensor:
        try:
            return network(*inputs)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # the file is not to blame
            raise
        except Exception as error:
            if any(fault in str(error) for fault in GPU_FAULTS):
                raise torch.AcceleratorError(_brief(error)) from error
            shapes = " and ".join(str(tuple(x.shape)) for x in inputs)
            raise ValueError(f"{file}: does not accept float32 {shapes} ({_brief(error)})") from error

    return run


def _brief(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)


def _torch_script(file: str, device: torch.device) -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch recommends torch.export instead
        module = torch.jit.load(file, map_location=device).eval()

    def run(*inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            answer: Tensor = module(*(x.to(device) for x in inputs))
            return answer.float().cpu()

    return run


def _onnx(file: str, device: torch.device) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if device.type == "cpu":  # there is already one process per core
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    wanted = ["CUDAExecutionProvider"] * (device.type == "cuda") + ["CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(file, options, providers=providers)
    names = [tensor.name for tensor in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(np.asarray(session.run(None, feed)[0])).float()

    return run
