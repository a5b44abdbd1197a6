"""A backbone of your own: dilated convolutions, which see far without losing the places of small items."""

from torch import Tensor, nn


class DilatedCNN(nn.Module):
    """Convolutions with growing dilation, and the mean of each channel over the photo.

    Args:
        width: channels of every layer.
        layers: number of layers; each doubles the dilation.
    """

    def __init__(self, width: int = 32, layers: int = 4) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for number in range(layers):
            stride, dilation = (2, 1) if number == 0 else (1, 2**number)
            convolution = nn.Conv2d(width if number else 3, width, 3, stride, dilation, dilation, bias=False)
            modules += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*modules)

    def forward(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S] -> float[B, width]``."""
        return self.layers(image).mean((2, 3))
