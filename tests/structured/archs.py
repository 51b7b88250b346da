"""Networks whose channels feed each other in every way that structured pruning follows, in float64."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, width, out, norm=True):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(out) if norm else nn.Identity()
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Dense(nn.Module):
    """Concatenations, one of them read twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 3, padding=1)
        self.third = nn.Conv2d(11, 4, 1)
        self.norm = nn.BatchNorm2d(15)
        self.head = nn.Linear(15, 5)

    def forward(self, x):
        a = F.relu(self.first(x))
        b = torch.cat([a, F.relu(self.second(a))], 1)
        c = torch.cat([b, F.relu(self.third(b))], dim=1)
        return self.head(F.adaptive_avg_pool2d(self.norm(c), 1).flatten(1))


def make_lenet300():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64, 30), nn.Tanh(), nn.Linear(30, 20), nn.PReLU(20), nn.Linear(20, 5)
    )


def make_lenet5():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 10, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(10 * 4, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 5),
    )  # fmt: skip


def make_vgg():
    layers, width = [], 3
    for out in (8, 8, 12, 12):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    return nn.Sequential(
        *layers[:6],
        nn.MaxPool2d(2),
        *layers[6:],
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 9),
        nn.BatchNorm1d(9, affine=False),
        nn.ReLU(),
        nn.Linear(9, 5),
    )


def make_resnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        Residual(6, 6), Residual(6, 9), Residual(9, 9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 5),
    )  # fmt: skip


def make_mobilenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 12, 1), nn.InstanceNorm2d(12, affine=True), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


ARCHITECTURES = {
    "lenet-300": make_lenet300,
    "lenet-5": make_lenet5,
    "vgg": make_vgg,
    "resnet": make_resnet,
    "mobilenet": make_mobilenet,
    "dense": Dense,
}


def make(name, seed=0):
    """An architecture with norms that have seen something, in training mode."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    return model


def make_batches(count=3, size=8):
    return [(torch.randn(size, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (size,))) for _ in range(count)]


def masked_copy(model, masks):
    """A dense copy with zeros where pruned."""
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in masks:
                parameter.mul_(masks[name].to_dense())
    return other
