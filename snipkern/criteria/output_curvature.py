"""How a loss is curved in a model's outputs, as factors: the middle of a Gauss-Newton matrix."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipkern.criteria.batches import only_output, outputs_seen
from snipkern.scoring.gradients import LossFn, describe

__all__ = ["drawn_factors", "exact_factors", "loss_gradients"]

# Exact factors are made for at most so many outputs of a sample: each costs a backward pass.
MOST_OUTPUTS = 128
# Labels that cross entropy leaves out.
IGNORED = -100
# A loss may be so much concave, in units of its largest curvature, and be taken for convex.
CONCAVE = 1e-4


def exact_factors(op: str, model: nn.Module, loss_fn: LossFn, batch: Any) -> Tensor:
    """Rows ``v`` for each sample with ``sum(v v^T)`` = Hessian of the batch's loss in that sample's outputs.

    Args:
        loss_fn: Any twice differentiable loss that is convex in the outputs of the one call that it makes of the model,
            whose samples do not mix in the loss.

    Returns:
        float64 ``[samples, rows, outputs]``, outputs of a sample flattened. Cross entropy of C classes has C - 1 rows.

    Raises:
        ValueError: For another loss, or more than 128 outputs.

    Cost: one forward pass, and one backward pass of the loss alone for each output.
    """
    outputs, loss = _outputs(op, model, loss_fn, batch)
    numel = outputs[0].numel()
    if numel > MOST_OUTPUTS:
        raise ValueError(
            f"{op}: curvature='gauss-newton' is exact for at most {MOST_OUTPUTS} outputs of a sample; pass samples=..."
            f" to draw, or curvature='hutchinson' or 'fisher' (got {numel} outputs)"
        )
    gradient = _gradient(loss, outputs, create_graph=True)
    if gradient is None or not gradient.requires_grad:
        raise ValueError(
            f"{op}: curvature='gauss-newton' needs a loss that is made of the model's outputs, and curved in them;"
            f" else take 'hutchinson' or 'fisher' (got a loss of {describe(outputs)} that is not)"
        )
    columns = gradient.flatten(1).sum(0)
    hessian = torch.stack([torch.autograd.grad(c, outputs, retain_graph=True)[0].flatten(1) for c in columns], 1)
    return _factored(op, hessian.double())


def loss_gradients(op: str, model: nn.Module, loss_fn: LossFn, batch: Any, samples: int) -> Tensor:
    """The gradients of a batch's loss in each sample's outputs.

    Returns:
        ``[samples, 1, outputs]``, outputs of a sample flattened.

    Raises:
        ValueError: For a loss that depends on the model's weights in another way than through one tensor of outputs,
            with the samples along its first dimension.
    """
    outputs, loss = _outputs(op, model, loss_fn, batch)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: Any = torch.autograd.grad(loss, [outputs, *weights], allow_unused=True) if loss.requires_grad else [None]
    if found[0] is None or any(other is not None for other in found[1:]) or outputs.shape[0] != samples:
        raise ValueError(f"{op}: the loss must be made of outputs of {samples} samples (got {describe(outputs)})")
    return found[0].reshape(samples, 1, -1)


def _outputs(op: str, model: nn.Module, loss_fn: LossFn, batch: Any) -> tuple[Tensor, Any]:
    """A model's outputs, cut off from its weights, and the loss as a function of them."""

    def cut_off(output: Any) -> Tensor:
        return only_output(op, [output]).detach().requires_grad_()

    with outputs_seen(model, cut_off) as seen, torch.enable_grad():
        loss = loss_fn(model, batch)
    return only_output(op, seen), loss


def _gradient(loss: Any, outputs: Tensor, create_graph: bool = False) -> Tensor | None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        return None
    return torch.autograd.grad(loss.reshape(()), outputs, create_graph=create_graph, allow_unused=True)[0]


def _factored(op: str, hessian: Tensor) -> Tensor:
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError(
            f"{op}: the loss must be finite, and finitely curved in the model's outputs (got one that is not)"
        )
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    largest = float(values.abs().max())
    if float(values.min()) < -CONCAVE * largest:
        raise ValueError(
            f"{op}: curvature='gauss-newton' needs a loss that is convex in the model's outputs; else take 'hutchinson'"
            f" or 'fisher' (got curvatures from {float(values.min()):.3g} to {float(values.max()):.3g})"
        )
    # Directions along which no sample is curved, such as a shift of all class scores, need no backward pass.
    noise = largest * hessian.shape[-1] * 1e-12
    curved = values.amax(0) > noise
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(1)).mT[:, curved]


def drawn_factors(
    op: str, model: nn.Module, loss_fn: LossFn, batch: Any, draws: int, generator: torch.Generator
) -> Tensor:
    """Random rows ``v`` for each sample, whose ``v v^T`` have that Hessian as their mean: for cross entropy.

    With class probabilities p and random signs e, ``v = sqrt(p) e - p (sqrt(p) . e)``, at each position of a sample
    independently; the mean is ``diag(p) - p p^T``, that of gradients for labels drawn from p as well.

    Args:
        loss_fn: Mean cross entropy of the model's outputs, classes in their second or last dimension.
        batch: ``(inputs, integer labels)``.
        draws: Rows for each sample.

    Returns:
        float64 ``[samples, draws, outputs]``, divided by the square root of the number of draws.

    Raises:
        ValueError: For another loss or batch.
    """
    outputs, loss = _outputs(op, model, loss_fn, batch)
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    classes = None if labels is None else _class_dimension(outputs, labels, loss)
    if labels is None or classes is None:
        raise ValueError(
            f"{op}: samples of curvature='gauss-newton' are for mean cross entropy of (inputs, integer labels) alone;"
            f" take samples=None, or curvature='hutchinson' or 'fisher' (got another loss, or {describe(batch)})"
        )
    outputs = outputs.detach().double().movedim(classes, 1)
    chances = outputs.softmax(1).unsqueeze(1)  # [samples, 1, classes, *positions]
    shape = (outputs.shape[0], draws, *outputs.shape[1:])
    roots = chances.sqrt() * torch.randint(0, 2, shape, generator=generator).to(chances).mul_(2).sub_(1)
    rows = roots - chances * roots.sum(2, keepdim=True)
    counted = (labels.to(outputs.device) != IGNORED).to(outputs).view(outputs.shape[0], 1, 1, *outputs.shape[2:])
    rows = rows * (counted / (draws * counted.sum().clamp(min=1)).sqrt())
    return rows.movedim(2, classes if classes < 0 else classes + 1).flatten(2)


def _class_dimension(outputs: Tensor, labels: Any, loss: Any) -> int | None:
    """The dimension over which a loss is mean cross entropy, or None if it is not."""
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        return None
    theirs = _gradient(loss, outputs)
    for dimension in (1, -1) if theirs is not None else ():
        if outputs.dim() < 2 or outputs.movedim(dimension, 1).select(1, 0).shape != labels.shape:
            continue
        with torch.enable_grad():
            expected = F.cross_entropy(outputs.movedim(dimension, 1), labels.to(outputs.device).long())
        (ours,) = torch.autograd.grad(expected, outputs)
        # Rounding, of 16-bit outputs as well.
        close = torch.finfo(outputs.dtype).eps ** 0.5 * float(ours.abs().max())
        if torch.allclose(ours, cast(Tensor, theirs), rtol=0, atol=close):
            return dimension
    return None
