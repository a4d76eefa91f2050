"""Contract: whatever a file does to its decoder, it is a bad image with its path, and nothing else.

Where only the metadata of a file are broken, its pixels are used, upright where that can be told. What cannot be used
and can be known from the header is known from it.
"""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from support.images import encoded, load, noise, refusal

from hf_deit.data import decoding
from hf_deit.data.decoding import PIXEL_LIMIT_VARIABLE, decode_image, fault_of_header
from hf_deit.errors import BadImageError, InputError

RATIONAL, SIGNED_RATIONAL = 5, 10


def exif(*, order: bytes = b"II", orientation: int = 6, more: Sequence[tuple[int, int, int, bytes]] = ()) -> bytes:
    """EXIF data with an orientation, and more tags of any content: number, type, count and value."""
    end = "<" if order == b"II" else ">"
    entries = sorted([(274, 3, 1, struct.pack(f"{end}H", orientation)), *more])
    table, values, start = struct.pack(f"{end}H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{end}L", start + len(values))
        values += value if len(value) > 4 else b""
        table += struct.pack(f"{end}HHL", tag, kind, count) + place
    return b"Exif\0\0" + order + struct.pack(f"{end}HL", 42, 8) + table + bytes(4) + values


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    image = decode_image({"bytes": content, "path": "photo.jpg"}, "row 3")
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """A chunk of a PNG file."""
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", checksum)


def with_chunk(png: bytes, new: bytes) -> bytes:
    return png[:33] + new + png[33:]  # after the header


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_tiff_that_lies_on_its_side_has_the_pixels_of_its_file_by_path_and_by_content(tmp_path, mode):
    """Pillow maps uncompressed ones into memory if it is given their path, and scrambled them."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    upright = Image.fromarray(pixels).convert(mode)
    colours = sorted(decoded(saved(upright, "TIFF")).astype(int).sum(-1).ravel())
    for orientation in range(1, 9):
        image = upright.copy()
        image.getexif()[274] = orientation
        content = saved(image, "TIFF", exif=image.getexif())
        path = tmp_path / f"{orientation}.tiff"
        path.write_bytes(content)
        by_path = np.asarray(decode_image({"bytes": None, "path": str(path)}, "row 3"))
        assert np.array_equal(by_path, decoded(content))
        assert sorted(by_path.astype(int).sum(-1).ravel()) == colours  # a transposition moves pixels, and changes none


# Broken metadata


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", [282, 33434])  # the resolution and the exposure
@pytest.mark.parametrize(
    ("type_", "value"),
    [(RATIONAL, (72, 0)), (SIGNED_RATIONAL, (2**32 - 1, 0)), (RATIONAL, (0, 0)), (2, (65, 66)), (9, (1,))],
)
def test_exif_with_values_that_are_none_turns_the_pixels_upright(order, kind, tag, type_, value):
    packed = struct.pack(f"{'<' if order == b'II' else '>'}{len(value)}L", *value)
    broken = exif(order=order, more=[(tag, type_, 1, packed)])
    options = {"lossless": True} if kind == "WEBP" else {}
    image = noise(24, 40)
    content = saved(image, kind, exif=broken, **options)
    whole = decoded(saved(image, kind, **options))
    assert np.array_equal(decoded(content), np.rot90(whole, -1))
    assert fault_of_header(io.BytesIO(content)) is None


@pytest.mark.parametrize(
    "broken", [b"Exif\0\0", b"Exif\0\0no TIFF header at all", exif()[:20], exif(orientation=77), b"no EXIF"]
)
def test_exif_that_cannot_be_read_leaves_the_pixels_as_they_are(broken):
    image = noise(24, 40)
    whole = decoded(saved(image, "JPEG"))
    assert np.array_equal(decoded(with_segment(saved(image, "JPEG"), 0xE1, broken)), whole)


def test_the_pixels_of_a_png_do_not_hang_on_its_ancillary_chunks():
    image = noise(24, 40).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    png = saved(image, "PNG", exif=exif()[6:])
    whole = decoded(png)
    assert whole.shape[:2] == (40, 24)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "x" * 2_000_000, zip=True)  # more than Pillow unpacks
    broken = [
        with_chunk(png, chunk(b"iCCP", b"sRGB\0\7nothing")),
        with_chunk(png, chunk(b"tEXt", b"a\0b", checksum=7)),
        with_chunk(png, chunk(b"pHYs", b"\0")),
        with_chunk(png, chunk(b"gAMA", b"")),
        png[:-12] + chunk(b"zTXt", b"a\0\7b") + png[-12:],  # behind the pixels
        saved(image, "PNG", exif=exif()[6:], pnginfo=texts),
    ]
    for content in broken:
        assert np.array_equal(decoded(content), whole)
        assert fault_of_header(io.BytesIO(content)) is None
    upside = bytearray(png)
    upside[png.index(b"eXIf") + 8] ^= 255  # nobody knows how it lay
    assert np.array_equal(decoded(bytes(upside)), np.rot90(whole))


def test_the_transparency_of_a_png_counts_also_where_other_chunks_are_broken():
    image = Image.fromarray(np.zeros((4, 6), np.uint8)).convert("P")
    png = with_chunk(saved(image, "PNG", transparency=0), chunk(b"tIME", b"", checksum=1))
    assert (decoded(png) == 255).all()


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed"),  # cut off in a resource
        (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x02\xb0\x07\0\x10\0\0\0\xff\xff\xff\0"),  # an index of further pictures
        (0xE2, b"ICC_PROFILE\0\x01\x01no profile"),
        (0xE0, b"JFIF\0"),
    ],
)
def test_the_pixels_of_a_jpeg_do_not_hang_on_its_application_segments(marker, content):
    jpeg = saved(noise(24, 40), "JPEG", exif=exif())
    broken = with_segment(jpeg, marker, content)
    assert np.array_equal(decoded(broken), decoded(jpeg))
    assert fault_of_header(io.BytesIO(broken)) is None


# Whatever a decoder raises


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        KeyError(0),
        struct.error("argument out of range"),
        NotImplementedError("no such filter"),
        RuntimeError("could not create decoder"),
        RecursionError(),
        ZeroDivisionError(),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["open", "load", "convert"])
def test_whatever_a_decoder_raises_is_a_bad_image(monkeypatch, tmp_path, error, where):
    def fail(*args, **kwargs):
        raise error

    path = tmp_path / "photo.png"
    noise(9, 9).convert("RGBA").save(path)
    owner = {"open": Image, "load": PngImagePlugin.PngImageFile, "convert": Image.Image}[where]
    monkeypatch.setattr(owner, where, fail)
    with pytest.raises(BadImageError, match=r"row 3 \(.*photo\.png\) cannot be decoded") as raised:
        decode_image({"path": str(path), "bytes": None}, "row 3")
    assert type(error).__name__ in str(raised.value)
    assert (fault_of_header(str(path)) is None) == (where != "open")


def test_ctrl_c_is_none_of_the_images(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_image(encoded(noise(9, 9)), "row 3")


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Cut off, or with bits, bytes or whole stretches that are others."""
    spoilt, place = bytearray(content), generator.randrange(len(content))
    kind = generator.randrange(5)
    if kind == 0:
        del spoilt[place:]
    elif kind == 1:
        spoilt[place] ^= 1 << generator.randrange(8)
    elif kind == 2:
        for _ in range(generator.choice([1, 2, 8])):
            spoilt[generator.randrange(min(len(spoilt), 200))] = generator.choice([0, 1, 127, 255])
    elif kind == 3:
        del spoilt[place : place + generator.choice([1, 4, 64])]
    else:
        spoilt[place:place] = generator.randbytes(generator.choice([1, 4, 32]))
    return bytes(spoilt)


def test_of_damaged_files_of_all_kinds_only_bad_images_come(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    generator, image, whole, bad = random.Random(0), noise(15, 22), 0, 0
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "MPO", "DDS"):
        options = {"exif": exif()} if kind in ("JPEG", "PNG", "WEBP", "AVIF", "MPO") else {}
        for mode in ("RGB", "P", "RGBA") if kind in ("PNG", "TIFF", "GIF") else ("RGB",):
            content = saved(image.convert(mode), kind, **options)
            for _ in range(40):
                spoilt = damaged(content, generator)
                fault = fault_of_header(io.BytesIO(spoilt))
                try:
                    assert decode_image({"bytes": spoilt, "path": f"photo.{kind}"}, "row 3").mode == "RGB"
                    assert fault is None
                    whole += 1
                except BadImageError as error:
                    assert f"photo.{kind}" in str(error)
                    bad += 1
    assert min(whole, bad) > 150


def test_what_pillow_says_of_odd_files_is_not_told_for_each(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # the photograph passes it, but not twice
    Image.fromarray(np.zeros((4, 6), np.uint8)).convert("P").save(tmp_path / "palette.png", transparency=b"\0\1\2")
    (tmp_path / "cut.jpg").write_bytes(saved(noise(24, 40), "JPEG", exif=exif(more=[(271, 2, 5000, b"Maker")])))
    many_channels = saved(noise(9, 9), "TIFF").replace(b"\x15\1\3\0\1\0\0\0\3", b"\x15\1\3\0\1\0\0\0\xff")
    (tmp_path / "odd.tif").write_bytes(many_channels)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        decoding._silence_pillow.cache_clear()
        for path in map(str, sorted(tmp_path.iterdir())):
            assert (fault_of_header(path) is None) == (not path.endswith("odd.tif"))
            if not path.endswith("odd.tif"):
                decode_image({"path": path, "bytes": None}, "row 3")
        warnings.warn("of something else", stacklevel=1)
    assert [str(warning.message) for warning in told] == ["of something else"]
    assert capsys.readouterr() == ("", "")


# What the header tells


def spoilt_header(content: bytes, chance: np.random.RandomState) -> bytes:
    """A JPEG's header with bytes changed, taken out, put in or cut off."""
    content = bytearray(content)
    for _ in range(chance.randint(4)):
        place = chance.randint(min(content.find(b"\xff\xda") + 14, len(content)))
        kind = chance.randint(8)
        if kind < 5:
            values = (0, 1, 2, 8, 12, 16, 255, 0xC0, 0xC2, 0xDB, 0xDA, 0xE0, 0xE1, chance.randint(256))
            content[place] = values[chance.randint(len(values))]
        elif kind == 5:
            del content[place : place + 1 + chance.randint(4)]
        elif kind == 6:
            content[place:place] = chance.bytes(1 + chance.randint(3))
        else:
            del content[max(place, 2) :]
    return bytes(content)


def test_what_is_known_of_a_jpeg_without_pillow_is_what_pillow_says():
    chance, plain, refused, image = np.random.RandomState(0), 0, 0, noise(24, 40)
    settings = [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}, {"comment": b"hi"}, {"dpi": (72, 72)}]
    settings += [{"restart_marker_rows": 1}, {"icc_profile": b"x" * 100}, {"exif": Image.Exif().tobytes()}]
    files = []
    for options in settings:
        for mode in ("RGB", "L", "CMYK"):
            file = io.BytesIO()
            image.convert(mode).save(file, "JPEG", **options)
            files.append(file.getvalue())
            is_usual = mode != "CMYK" and not {"icc_profile", "exif"} & {*options}
            assert decoding._is_plain_jpeg(io.BytesIO(files[-1])) == is_usual
    for number in range(3_000):
        content = spoilt_header(files[number % len(files)], chance)
        error = decoding._error_of(decoding._check_header, io.BytesIO(content))
        if decoding._is_plain_jpeg(io.BytesIO(content)):
            plain += 1
            assert error is None, content
        refused += error is not None
    assert plain > 500 and refused > 500


def test_large_images_are_refused_with_the_limit_which_the_environment_sets(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for number in range(4):
        for name in ("ape", "bee"):
            (tmp_path / name).mkdir(exist_ok=True)
            noise(20, 20, number).save(tmp_path / name / f"{number}.png")
    large = tmp_path / "bee" / "large.png"
    noise(50, 60).save(large)
    message = refusal(train_dir=tmp_path, validation_dir=tmp_path)
    assert "1 of more than 2,000 pixels" in message and str(large) in message and PIXEL_LIMIT_VARIABLE in message
    with pytest.raises(BadImageError, match=f"more than 2,000 pixels.*{PIXEL_LIMIT_VARIABLE}"):
        decode_image({"path": str(large), "bytes": None}, "row 3")
    monkeypatch.setenv(PIXEL_LIMIT_VARIABLE, "2999")
    assert "1 of more than 3,000 pixels" not in refusal(train_dir=tmp_path, validation_dir=str(tmp_path / "none"))
    monkeypatch.setenv(PIXEL_LIMIT_VARIABLE, "3000")
    assert len(load(train_dir=tmp_path, validation_dir=tmp_path).train) == 9
    assert decode_image({"path": str(large), "bytes": None}, "row 3").size == (60, 50)
    for wrong in ("2e9", "-1", "0", "many", "", "9" * 5000):
        monkeypatch.setenv(PIXEL_LIMIT_VARIABLE, wrong)
        with pytest.raises(InputError, match=f"{PIXEL_LIMIT_VARIABLE} must be a number of pixels.*{wrong!r}"):
            decode_image(encoded(noise(9, 9)), "row 3")


def test_a_name_with_a_colon_is_that_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise(9, 9).save("cat:1.png")
    assert decode_image({"path": "cat:1.png", "bytes": None}, "row 3").size == (9, 9)
