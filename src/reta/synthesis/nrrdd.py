"""NRR-DD: what a teacher looks at in a real crop is kept, the rest is optimised.

Source: "Enhancing Dataset Distillation via Non-Critical Region Refinement" (CVPR 2025, arXiv
2503.18267). The repository it names (tmtuan1307/NRR-DD) was not to be had, so this is a reading of
the paper, in three stages:

1. **Start** (`CriticalPatches`): of random crops of real images, those that are mostly critical,
   yet recognised with little confidence; stitched together as RDED does.
2. **Refinement** (`CriticalRegions`): with the class activation map of the start image,

       critical(u) = [ CAM(u) ≥ τ ],  x ← x − (1 − critical) ⊙ step(∇_x L)

   where L is SRe2L's objective: the critical pixels keep what is particular to the image, the
   others take up what is general to the class.
3. **Labels**: the paper stores two numbers for each image in place of soft labels (DBR): how far a
   teacher's answer is from the one-hot label, for the image as it is and for an augmented mix;
   students are to be as far from it. Left out: which distance, weights and mix are not in what we
   have of the paper, and it changes the labels, not the images. Every method here has the same.

Ours: the map is Grad-CAM (Selvaraju et al., ICCV 2017) at the last layer of the trunk with a plane,
which for a network that ends in global pooling and one linear layer is CAM; it is resized
bilinearly and brought to [0, 1] by its own range; τ = 0.5. A crop's score is the share of its
critical pixels; of each image the crop with the highest is kept; crops that are recognised come
before those that are not, the least confident first. Steps, rate and objective are FADRM's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from reta.errors import UsageError
from reta.memory import Passes
from reta.models import Classifier
from reta.synthesis.cost import Extent, Forwards
from reta.synthesis.start import Mosaic


@torch.enable_grad()
def activation_maps(
    teacher: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Grad-CAM of the true class, and the logits, without a graph.

        CAM(u) = relu( Σ_k α_k A_k(u) ),  α_k = mean_u ∂ logit_y / ∂ A_k(u)

    Args:
        teacher: frozen.
        images: ``(n, 3, s, s)`` in [0, 1].
        labels: ``(n,)``.

    Returns:
        maps ``(n, s, s)`` in [0, 1], all 0 where nothing speaks for the class; logits.
    """
    planes: list[torch.Tensor] = []

    def keep(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            planes[:] = [output]

    hooks = [part.register_forward_hook(keep) for part in teacher.trunk.modules()]
    try:
        logits = teacher(images.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    if not planes:
        raise UsageError(f"{teacher.name} has no plane of features: no class activation map")
    (plane,) = planes
    chosen = logits.gather(1, labels[:, None]).sum()
    (slope,) = torch.autograd.grad(chosen, plane)
    with torch.no_grad():
        cam = (slope.mean(dim=(2, 3), keepdim=True) * plane).sum(dim=1, keepdim=True).relu()
        cam = F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
        return (cam - low) / (high - low).clamp(min=1e-12), logits.detach()


@dataclass(frozen=True)
class CriticalPatches(Mosaic):
    """Mosaics of real crops that are mostly critical and not yet well recognised.

    Attributes:
        threshold: τ, from which on a pixel is critical.
    """

    threshold: float = 0.5

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that the activation maps of the crops take."""
        return replace(super().looks(extent), kind="learned")

    def judge(
        self, teacher: Classifier, crops: torch.Tensor, label: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what decides between crops of an image, and between images; less is better."""

        def judged(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            images = part.to(teacher.mean)
            targets = torch.full((len(images),), label, device=images.device)
            maps, logits = activation_maps(teacher, images, targets)
            critical = (maps >= self.threshold).float().mean(dim=(1, 2))
            confidence = logits.softmax(dim=1)[:, label]
            missed = logits.argmax(dim=1) != label
            return -critical.cpu(), (confidence + 2 * missed).cpu()

        within, between = zip(*Passes(crops.shape[-1]).of(judged, crops), strict=True)
        return torch.cat(within), torch.cat(between)


@dataclass(frozen=True)
class CriticalRegions:
    """Leaves the critical pixels of the start images as they are.

    Attributes:
        threshold: τ, from which on a pixel is critical.
    """

    threshold: float = 0.5

    def looks(self, extent: Extent) -> Forwards:
        """Return the passes that the activation maps of the start images take."""
        return Forwards("learned", extent.classes * extent.ipc)

    def free(self, teacher: Classifier, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return where images ``(ipc, classes, 3, s, s)`` may change: ``(ipc, classes, 1, s, s)``.

        Args:
            teacher: frozen.
            images: the start images, in [0, 1].
            labels: ``(classes,)``.
        """
        every, passes = images.flatten(0, 1), Passes(images.shape[-1])
        targets = labels.repeat(len(images))
        maps = passes.of(
            lambda part: activation_maps(teacher, every[part], targets[part])[0],
            torch.arange(len(every), device=every.device),
        )
        uncritical = torch.cat(maps) < self.threshold
        return uncritical.view(*images.shape[:2], 1, *images.shape[-2:]).to(images)
