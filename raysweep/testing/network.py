"""A plain network, as a user may have one: it knows nothing of raysweep."""

from __future__ import annotations

import torch
from torch import nn


class PlainNet(nn.Module):
    """Two convolutions and a dense head."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.body = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(2 * width, num_classes))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        logits: torch.Tensor = self.classifier(self.pool(self.body(self.stem(images_BCHW)).relu()))
        return logits
