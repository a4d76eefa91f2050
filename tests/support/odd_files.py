"""Image files as people have them: turned, grey, transparent, of four inks, with profiles, of odd sizes."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 274  # the tag of EXIF


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8 with coarse shapes, edges and a little noise, unlike when turned or mirrored."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    y, x = y / height, x / width
    first, second, third = random.uniform(2, 7, 3)
    shapes = [np.sin(first * x + 3 * y * y), np.cos(second * y - x), np.sin(third * x * y + seed)]
    picture = np.stack(shapes, axis=-1) * 110 + 128
    picture[(x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.03] = random.integers(0, 256, 3)
    picture[(x > 0.7) & (y < 0.25)] = random.integers(0, 256, 3)
    return np.clip(picture + random.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def write_odd_files(folder: Path, largest: tuple[int, int] = (3000, 4000)) -> list[Path]:
    """Writes 27 files that Pillow reads, each of another kind; the last is of `largest` (height, width) pixels."""
    files: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, **settings: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2]), **settings)
        files[name] = buffer.getvalue()

    def picture(seed: int, height: int = 120, width: int = 170) -> Image.Image:
        return Image.fromarray(scene(height, width, seed))

    def alpha(seed: int, mode: str = "RGBA") -> Image.Image:
        image = picture(seed).convert(mode[:-1])
        y, x = np.mgrid[0:120, 0:170]
        image.putalpha(Image.fromarray((np.sin(x / 20 + seed) * np.cos(y / 15) * 127 + 128).astype(np.uint8)))
        return image

    add("plain.jpg", picture(0), quality=90)
    add("progressive.jpg", picture(1), quality=60, progressive=True)
    add("full-colour.jpg", picture(2), quality=95, subsampling=0)
    add("grey.jpg", picture(3).convert("L"))
    add("inks.jpg", picture(4).convert("CMYK"), quality=92)
    for number in (2, 3, 5, 6, 8):
        exif = Image.Exif()
        exif[ORIENTATION] = number
        add(f"turned-{number}.jpg", picture(number + 5), exif=exif)
    add("profile.jpg", picture(14), icc_profile=swapped_profile(), quality=90)
    add("profile.png", picture(15), icc_profile=swapped_profile())
    add("palette.png", picture(16).quantize(60), transparency=7)
    add("alpha.png", alpha(17))
    add("grey-alpha.png", alpha(18, "LA"))
    add("two-levels.png", picture(19).convert("1"))
    files["sixteen.png"] = png(scene(90, 110, 20).astype(np.uint16) * 255 + 130, depth=16, colour=2)
    files["gamma.png"] = png(scene(90, 110, 21), depth=8, colour=2, chunks=[(b"gAMA", struct.pack(">I", 100_000))])
    add("lossless.webp", alpha(22), lossless=True, exact=True)
    add("lossy.webp", picture(23), quality=80)
    exif[ORIENTATION] = 5
    add("turned-5.webp", picture(30), exif=exif, lossless=True)
    add("plain.bmp", picture(24))
    add(
        "moving.gif", picture(25).quantize(40), save_all=True, append_images=[picture(26).quantize(40)], transparency=3
    )
    add("tall.png", picture(27, 500, 31))
    add("stripes.png", Image.fromarray(np.tile(np.uint8([[[250, 20, 60]], [[10, 200, 90]]]), (75, 140, 1))))
    add("tiny.png", picture(28, 1, 2))
    add("large.jpg", picture(29, *largest), quality=85)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def png(pixels: np.ndarray, *, depth: int, colour: int, chunks: list[tuple[bytes, bytes]] = ()) -> bytes:
    """A PNG file, with what Pillow does not write: (H, W) or (H, W, C), uint8 or uint16.

    Args:
        depth: bits of a sample.
        colour: PNG's type of colours: 0 is grey, 2 RGB, 4 grey with alpha, 6 RGBA.
        chunks: between its header and its pixels.
    """
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def swapped_profile() -> bytes:
    """A colour profile in which red is green: who follows it shows other colours."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for number in range(struct.unpack(">I", content[128:132])[0]):
        name, start, size = struct.unpack(">4sII", content[132 + 12 * number : 144 + 12 * number])
        places[name] = slice(start, start + size)
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    content[red], content[green] = content[green], content[red]
    return bytes(content)
