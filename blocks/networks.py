"""Networks: a perceptron, LeNet-5, a plain convolutional and a residual network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

ImageShape = tuple[int, int, int]  # channels, height, width

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
}
MIN_SIDE = 8  # pixels; the convolutional models halve a map up to three times


def mlp(
    *,
    image_shape: ImageShape,
    n_classes: int,
    hidden: int | Sequence[int] = (32,),
    activation: str = "relu",
) -> nn.Module:
    """Return a perceptron: flatten, then linear layers with an activation between.

    With one hidden layer of 32 units on 28 × 28 images: 25,450 parameters.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`activation` must be one of {', '.join(ACTIVATIONS)}; got "
            f"{activation!r}. Choose one."
        )
    sizes = [hidden] if isinstance(hidden, int) else list(hidden)
    if any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(
            f"`hidden` must be positive layer sizes; got {hidden!r}. "
            "Write them as a list, such as [64, 32]."
        )
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    n_in = image_shape[0] * image_shape[1] * image_shape[2]
    for i, size in enumerate(sizes, start=1):
        layers[f"fc{i}"] = nn.Linear(n_in, size)
        layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
        n_in = size
    layers["out"] = nn.Linear(n_in, n_classes)
    return _sequential(layers)


def lenet(*, image_shape: ImageShape, n_classes: int) -> nn.Module:
    """Return LeNet-5 in its usual present form: ReLU and maximum pooling.

    Maps of 6 and 16 channels (5 × 5), then 120 and 84 units: 61,706 parameters on
    1 × 28 × 28. Images under 16 pixels a side have their second map padded.

    References
    ----------
    LeCun, Bottou, Bengio, Haffner (1998). Gradient-based learning applied to document
    recognition. Proceedings of the IEEE. doi 10.1109/5.726791.
    """
    _check_side("lenet", image_shape)
    channels, height, width = image_shape
    padding = 2 if min(height, width) < 16 else 0
    height, width = (((side // 2) + 2 * padding - 4) // 2 for side in (height, width))
    return _sequential(
        {
            "conv1": nn.Conv2d(channels, 6, 5, padding=2),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(6, 16, 5, padding=padding),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(16 * height * width, 120),
            "relu3": nn.ReLU(),
            "fc2": nn.Linear(120, 84),
            "relu4": nn.ReLU(),
            "out": nn.Linear(84, n_classes),
        }
    )


def cifar_cnn(*, image_shape: ImageShape, n_classes: int) -> nn.Module:
    """Return a plain network of three 3 × 3 convolutions (32, 64, 64) and two layers.

    Each convolution is padded, rectified and halved: 122,570 parameters on 3 × 32 × 32.
    """
    _check_side("cifar_cnn", image_shape)
    n_in, height, width = image_shape
    layers: dict[str, nn.Module] = {}
    for i, n_out in enumerate((32, 64, 64), start=1):
        layers[f"conv{i}"] = nn.Conv2d(n_in, n_out, 3, padding=1)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        n_in = n_out
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(64 * (height // 8) * (width // 8), 64)
    layers["relu4"] = nn.ReLU()
    layers["out"] = nn.Linear(64, n_classes)
    return _sequential(layers)


def resnet8(
    *, image_shape: ImageShape, n_classes: int, norm: str = "group"
) -> nn.Module:
    """Return a residual network of three stages of one block (16, 32, 64 channels).

    Group normalisation (8 groups) by default: it keeps no running statistics, so that a
    parameter vector alone determines the loss. ``norm="batch"`` brings float buffers,
    which ``blocks.layout.Layout`` keeps apart. 77,850 parameters on 3 × 32 × 32.

    References
    ----------
    He, Zhang, Ren, Sun (2016). Deep residual learning for image recognition. CVPR.
    arXiv 1512.03385. Section 4.2 with n = 1; shortcuts are 1 × 1 convolutions.
    """
    _check_side("resnet8", image_shape)
    if norm not in ("group", "batch"):
        raise ValueError(
            f'`norm` must be "group" or "batch"; got {norm!r}. Choose one.'
        )
    return _ResNet8(image_shape[0], n_classes, norm)


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(norm, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = _norm(norm, n_out)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and n_in == n_out
            else nn.Conv2d(n_in, n_out, 1, stride, bias=False)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        result: Tensor = self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
        return result


class _ResNet8(nn.Module):
    def __init__(self, n_channels: int, n_classes: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, 16, 3, padding=1, bias=False)
        self.norm = _norm(norm, 16)
        self.relu = nn.ReLU()
        self.stage1 = _Residual(16, 16, 1, norm)
        self.stage2 = _Residual(16, 32, 2, norm)
        self.stage3 = _Residual(32, 64, 2, norm)
        self.out = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.conv(x)))
        y = self.stage3(self.stage2(self.stage1(y)))
        # A mean, not adaptive pooling, whose CUDA gradient is not deterministic.
        result: Tensor = self.out(y.mean(dim=(2, 3)))
        return result


def _norm(kind: str, n_channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(8, n_channels)
    return nn.BatchNorm2d(n_channels)


def _sequential(layers: dict[str, nn.Module]) -> nn.Sequential:
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


def _check_side(name: str, image_shape: ImageShape) -> None:
    if min(image_shape[1:]) < MIN_SIDE:
        raise ValueError(
            f'`model` = "{name}" must have images of at least {MIN_SIDE} × {MIN_SIDE} '
            f"pixels; got {image_shape[1]} × {image_shape[2]}. "
            'Use "mlp", or larger images.'
        )
