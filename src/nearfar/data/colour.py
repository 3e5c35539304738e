"""Brightness, contrast, saturation, hue and grey of a batch of images as one small matrix and one shift an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Of red, green and blue in brightness: ITU-R BT.601, as Pillow and torchvision have it.
LUMA = (0.299, 0.587, 0.114)
# From red, green, blue to YIQ (NTSC 1953), in which hue is an angle.
YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


def factors(uniform: Float[Tensor, "b"], strength: float) -> Float[Tensor, "b"]:
    """Factors uniform in ``[max(0, 1 − strength), 1 + strength]``."""
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * uniform


def jitter(
    means: Float[Tensor, "b c"],
    uniform: Float[Tensor, "b 4"],
    strengths: Sequence[float],
    applied: Bool[Tensor, "b"],
    grey: Bool[Tensor, "b"],
) -> tuple[Float[Tensor, "b c c"], Float[Tensor, "b c"]]:
    """Matrices and shifts of random changes of colour, in SimCLR's order: brightness, contrast, saturation, hue, then grey.

    Images of other than three channels have no hue: their brightness and contrast change alone.

    Each is linear in an image's red, green and blue, so that all of them together are, too. Values are not cut between
    two changes, only after the last. Hue is turned in YIQ (a rotation), not in HSV.

    Args:
        means: The mean of each channel of each image, around which contrast is changed.
        uniform: Random numbers in [0, 1): of brightness, contrast, saturation, hue.
        strengths: How far each goes: factors from 1 − s to 1 + s; hue ± s of a full turn.
        applied: Which images are changed at all.
        grey: Which images end without colour.

    Returns:
        ``m`` and ``t``: the changed colours are ``m @ colours + t``.

    Reference: Chen et al. 2020, arXiv:2002.05709, appendix A.

    Example:
        >>> half = torch.full((1, 4), 0.5)
        >>> matrix, shift = jitter(torch.tensor([[0.5]]), half, (0.4, 0.4, 0.4, 0.1), torch.tensor([True]), torch.tensor([False]))
        >>> matrix.tolist(), shift.tolist()  # the middle of each range changes nothing
        ([[[1.0]]], [[0.0]])
    """
    channels = means.shape[1]
    brightness, contrast, saturation = (
        torch.where(applied, factors(uniform[:, i], strengths[i]), 1.0) for i in range(3)
    )
    eye = torch.eye(channels, device=means.device, dtype=means.dtype)
    if channels != 3:
        shift = (1 - contrast) * brightness * means.mean(1)
        return (brightness * contrast).view(-1, 1, 1) * eye, shift.unsqueeze(1).expand(-1, channels)
    luma = means.new_tensor(LUMA)
    flat = torch.ones_like(luma).unsqueeze(1) * luma  # every channel becomes the brightness
    shift = (1 - contrast) * brightness * (means @ luma)
    saturation = saturation.view(-1, 1, 1)
    after = saturation * eye + (1 - saturation) * flat
    if strengths[3] > 0:
        angle = 2 * math.pi * torch.where(applied, strengths[3] * (2 * uniform[:, 3] - 1), 0.0)
        after = turn(angle) @ after
    after = torch.where(grey.view(-1, 1, 1), flat @ after, after)
    # A shift by one number is a shift of brightness: neither saturation nor hue nor grey changes it.
    return after * (brightness * contrast).view(-1, 1, 1), shift.unsqueeze(1).expand(-1, channels)


def turn(angle: Float[Tensor, "b"]) -> Float[Tensor, "b 3 3"]:
    """Matrices that turn the hue of red, green and blue by angles, and leave brightness as it is."""
    to = torch.tensor(YIQ, device=angle.device, dtype=angle.dtype)
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    return torch.linalg.inv(to) @ rotation @ to


def recolour(
    images: Float[Tensor, "b c h w"], matrix: Float[Tensor, "b c c"], shift: Float[Tensor, "b c"]
) -> Float[Tensor, "b c h w"]:
    """The images with their colours changed."""
    if images.shape[1] == 1:
        return torch.addcmul(shift.view(-1, 1, 1, 1), images, matrix.unsqueeze(3))
    return torch.baddbmm(shift.unsqueeze(2), matrix, images.flatten(2)).view_as(images)
