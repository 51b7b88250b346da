"""Tensors that claim to lie on a CUDA device and hold no numbers: shapes, dtypes and devices as on a GPU, without one."""

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def new_mode():
    """For one test; lengths that depend on data are symbols."""
    return FakeTensorMode(shape_env=ShapeEnv())


def faked(mode, values):
    """The same values (nested as they may be) with each tensor on the pretended device, strides and all."""
    return tree_map_only(Tensor, lambda tensor: FakeTensor(mode, tensor.detach().to("meta"), CUDA), values)


def moved_(model, mode):
    """What ``model.to("cuda")`` does, for parameters, buffers and index lists; without gradients."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(faked(mode, parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = faked(mode, buffer)
        if hasattr(module, "topology"):
            module.topology._by_device[CUDA] = faked(mode, module.topology.on(CPU))
    return model
