"""What a classifier's image processor does, as numbers that every runtime can follow; loads neither torch nor PIL."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ...errors import InputError

Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
CropRounding = Literal["zero", "down", "even"]
# By Pillow's number of each.
FILTERS: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Preprocessing:
    """From an upright RGB image, uint8 (H, W, 3), to `pixel_values`, float32 (3, height, width).

    In this order: the image is resized with Pillow's antialiased filter (the width, then the height, each rounded to
    uint8); its centre is cropped, black where it is smaller; levels become `level * scale + offset`; the statistics
    normalise; the channels are put into `channel_order`.

    Attributes:
        resize: "shortest": the shorter side becomes `size[0]` and the longer int(size[0] · longer / shorter);
            "exact": the image becomes `size`; None: it is left as it is.
        size: (height, width) in pixels; of "shortest" twice the same; None without `resize`.
        filter: Pillow's filter.
        crop: (height, width) of the centre crop in pixels; None for no crop.
        scale, offset: to floats.
        mean, std: of the three channels, in the order red, green, blue.
        channel_order: "RGB" or "BGR".
        input_size: (height, width) of the result.
        crop_rounding: where the crop begins if half the difference between the image's side and the crop's is none of
            whole pixels: towards "zero" (transformers with torchvision), "down" (with Pillow; the two differ where
            black is added), or "even": to the even pixel, and where black is added towards zero (torchvision).
    """

    resize: Literal["shortest", "exact"] | None
    size: tuple[int, int] | None
    filter: Filter
    crop: tuple[int, int] | None
    scale: float
    offset: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: Literal["RGB", "BGR"]
    input_size: tuple[int, int]
    crop_rounding: CropRounding = "zero"

    def to_dict(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """From what `to_dict` gave, after JSON."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def slope_and_intercept(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) float32 each, by channel of the RGB image: pixel_values = level * slope + intercept."""
        std = np.asarray(self.std, dtype=np.float64)
        slope = self.scale / std
        intercept = (self.offset - np.asarray(self.mean, dtype=np.float64)) / std
        return slope.astype(np.float32), intercept.astype(np.float32)

    @property
    def has_short_weights(self) -> bool:
        """Whether the processor resizes with PyTorch's kernel, whose weights have 16 bits, as fine as the largest of
        them allows; Pillow's have 22 behind the point."""
        return self.crop_rounding == "zero" and self.filter in ("bilinear", "bicubic", "lanczos")

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Prepares an image as every exported classifier does, with NumPy.

        Args:
            image: uint8 (H, W, 3), RGB and upright.

        Returns:
            float32 (3, height, width).

        Raises:
            InputError: the image is no such array; or nothing is resized or cropped, and it has another size.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"expected an image of uint8 and (H, W, 3), got {image.dtype} and {image.shape}")
        if self.crop is None and self.resize is None and image.shape[:2] != self.input_size:
            raise InputError(
                f"this classifier takes images as they are, with a height and width of {self.input_size} pixels, got "
                f"{image.shape[:2]}"
            )
        from .reference.preprocessing import pixel_values

        return pixel_values(image, self.to_dict())[0]
