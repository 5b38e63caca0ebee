"""A network whose forward pass waits: it holds the worker's thread and not the core."""

from __future__ import annotations

import time

from torch import Tensor, nn


class Waiting(nn.Module):
    """One dense layer that takes ``seconds`` a sample."""

    def __init__(self, n_inputs: int, n_classes: int, seconds: float) -> None:
        super().__init__()
        self.dense = nn.Linear(n_inputs, n_classes)
        self.seconds = seconds

    def forward(self, images: Tensor) -> Tensor:
        """(n, …) images → (n, n_classes) logits, after n · ``seconds``."""
        time.sleep(self.seconds * len(images))  # scripted, as a slower device would
        logits: Tensor = self.dense(images.flatten(1))
        return logits


def network(
    image_shape: tuple[int, int, int], n_classes: int, seconds: float
) -> Waiting:
    """Build it for a data set's images."""
    channels, height, width = image_shape
    return Waiting(channels * height * width, n_classes, seconds)
