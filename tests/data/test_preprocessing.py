import errno
import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from bincounter.data.photo_bounds import MAX_PIXELS, MAX_SCANS, PhotoError
from bincounter.data.preprocessing import Normalize, decode, photo_size

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")

RED, GREEN, BLUE, YELLOW, WHITE = (200, 30, 30), (30, 160, 40), (30, 40, 190), (220, 210, 40), (255, 255, 255)


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Four flat colours, one per quarter, so that every turn and every mirror image differs."""
    photo = Image.new("RGB", (width, height))
    for index, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        photo.paste(colour, (left, top, left + width // 2, top + height // 2))
    return photo


def encoded(photo: Image.Image, form: str = "JPEG", **options) -> bytes:
    if form == "JPEG":
        options = {"quality": 95, "subsampling": 0} | options
    buffer = io.BytesIO()
    photo.save(buffer, form, **options)
    return buffer.getvalue()


def colours(pixels: torch.Tensor) -> list[tuple[int, ...]]:
    """The colour in the middle of each quarter: top left, top right, bottom left, bottom right."""
    side = pixels.shape[1]
    near, far = side // 4, 3 * side // 4
    return [tuple(pixels[:, y, x].tolist()) for y in (near, far) for x in (near, far)]


def assert_colours(pixels: torch.Tensor, expected, tolerance: int = 4) -> None:
    assert torch.tensor(colours(pixels)).sub(torch.tensor(expected)).abs().max() <= tolerance, colours(pixels)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start_of_pixels = struct.pack(">I", 1000) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + header + struct.pack(">I", zlib.crc32(header)) + start_of_pixels


def with_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with further chunks in front of its pixels."""
    data = encoded(quarters(), "PNG")
    more = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"".join([data[:33], *more, data[33:]])


def padded(padding: bytes) -> bytes:
    """A JPEG with bytes in front of its first segment."""
    data = encoded(quarters())
    return data[:2] + padding + data[2:]


def claiming(width: int, height: int, data: bytes | None = None, **options) -> bytes:
    """A JPEG whose header claims another size."""
    data = data or encoded(quarters(), **options)
    place = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def noise(width: int = 200, height: int = 160) -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [1, 16, 64, 200])
def test_every_format_is_stretched_to_a_square(form, size):
    pixels = decode(encoded(quarters(), form), size)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    if size > 1:
        assert_colours(pixels, [RED, GREEN, BLUE, YELLOW], tolerance=20 if form == "WEBP" else 4)


def test_a_photo_of_the_asked_size_keeps_its_pixels():
    photo = noise(20, 20)
    assert torch.equal(decode(encoded(photo, "PNG"), 20), torch.from_numpy(np.array(photo)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [RED, GREEN, BLUE, YELLOW]),
        (2, [GREEN, RED, YELLOW, BLUE]),
        (3, [YELLOW, BLUE, GREEN, RED]),
        (4, [BLUE, YELLOW, RED, GREEN]),
        (5, [RED, BLUE, GREEN, YELLOW]),
        (6, [BLUE, RED, YELLOW, GREEN]),
        (7, [YELLOW, GREEN, BLUE, RED]),
        (8, [GREEN, YELLOW, RED, BLUE]),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_orientations_are_set_upright(orientation, upright, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_colours(decode(encoded(quarters(), form, exif=exif), 64), upright)


def test_a_broken_exif_block_does_not_cost_the_photo():
    data = encoded(quarters(), exif=b"Exif\x00\x00II*\x00" + b"\xff" * 40)
    assert_colours(decode(data, 64), [RED, GREEN, BLUE, YELLOW])


def test_cmyk_is_read_as_adobe_writes_it():
    data = encoded(quarters().convert("CMYK"))
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_colours(decode(data, 64), [RED, GREEN, BLUE, YELLOW], tolerance=6)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(form):
    pixels = decode(encoded(quarters().convert("L"), form), 64)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    assert pixels.unique().numel() >= 4


def test_sixteen_bit_grey_keeps_its_high_byte():
    values = torch.tensor([[0, 255], [100 << 8, 65535]], dtype=torch.int32).repeat_interleave(8, 0)
    photo = Image.fromarray(values.repeat_interleave(8, 1).numpy().astype("uint16"))
    assert_colours(decode(encoded(photo, "PNG"), 16), [(0,) * 3, (0,) * 3, (100,) * 3, (255,) * 3], tolerance=0)


def test_black_and_white_bits():
    photo = quarters().convert("L").point(lambda level: 255 if level > 100 else 0).convert("1")
    assert set(decode(encoded(photo, "PNG"), 96).unique().tolist()) >= {0, 255}


def test_palette():
    assert_colours(decode(encoded(quarters().quantize(8), "PNG"), 64), [RED, GREEN, BLUE, YELLOW])


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "RGB"])
def test_transparent_parts_are_white(mode):
    photo = quarters().convert("RGBA")
    photo.paste((0, 0, 0, 0), (0, 0, 48, 32))
    if mode == "P":
        data = encoded(photo.quantize(8), "PNG")
    elif mode == "RGB":  # one colour of an opaque photo named as transparent
        data = encoded(quarters(), "PNG", transparency=RED)
    else:
        data = encoded(photo.convert(mode), "PNG")
    shown = colours(decode(data, 96))
    assert shown[0] == WHITE
    assert WHITE not in shown[1:]


def test_the_name_says_nothing_only_the_content_does(tmp_path):
    disguised = tmp_path / "photo.jpg"
    disguised.write_bytes(encoded(quarters(), "PNG"))
    assert_colours(decode(disguised.read_bytes(), 64), [RED, GREEN, BLUE, YELLOW], tolerance=0)


def test_photo_size_is_the_stored_one():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert photo_size(encoded(quarters(96, 64), exif=exif)) == (96, 64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"these are only notes", "not a JPEG, PNG or WebP image"),
        (encoded(quarters(), "GIF"), "not a JPEG, PNG or WebP image"),
        (encoded(quarters())[:12], "damaged header"),
        (encoded(quarters(), "PNG")[:20], "damaged header"),
        (png_header(60_000, 60_000), "larger than 100 megapixels"),
        (png_header(10_001, 10_000), "larger than 100 megapixels"),
        (png_header(1, 65_536), "longer than 65,535 pixels on one side"),
        (padded(b"\xff" * 1_000_000), "damaged header"),
        (padded(b"\xff\x00" * 500_000), "damaged header"),
        (padded(b"\xff" + bytes(1_000_000)), "damaged header"),
        (padded(b"\xff\xff\xfe\x00\x02" * 3000), "stored in more than 2,000 segments"),
        (padded(b"\xff\xd0" * 3000), "stored in more than 2,000 segments"),
        (with_chunks(*[(b"IDAT", b"")] * 11_000), "stored in too many chunks"),
        (with_chunks(*[(b"teSt", b"")] * 11_000), "stored in too many chunks"),
        (claiming(10_000, 9_999), "truncated"),
        (claiming(10_000, 9_999, progressive=True), "truncated"),
    ],
)
def test_headers_that_are_refused(data, reason):
    for read in (photo_size, lambda data: decode(data, 32)):
        with pytest.raises(PhotoError) as caught:
            read(data)
        assert str(caught.value) == reason


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_photos_are_refused(form, share):
    data = encoded(noise(100, 100), form)
    with pytest.raises(PhotoError, match=r"^truncated$"):
        decode(data[: int(len(data) * share)], 32)


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_fewer_bits_than_pixels_are_truncated(progressive, subsampling, restarts):
    data = encoded(
        noise(), progressive=progressive, quality=75, subsampling=subsampling, restart_marker_blocks=restarts
    )
    decode(data, 32)
    scan = data.index(b"\xff\xda")
    end = data.index(b"\xff\xc4", scan) if progressive else len(data)  # of the scan of the mean colours
    short = data[: (scan + end) // 2].rstrip(b"\xff") + b"\xff\xd9"
    for broken in (short, claiming(200, 320, data)):
        for size in (8, 200):
            with pytest.raises(PhotoError, match=r"^truncated$"):
                decode(broken, size)


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(200, 200), (317, 205)])
def test_jpegs_that_end_in_their_last_blocks_are_truncated(size, mode, restarts):
    data = encoded(noise(*size).convert(mode), quality=75, restart_marker_blocks=restarts)
    decode(data, 32)
    for share in (0.005, 0.01, 0.03):  # between the last block and the last row of blocks
        short = data[: -int(share * len(data))].rstrip(b"\xff") + b"\xff\xd9"
        for side in (8, 64, 200):
            with pytest.raises(PhotoError, match=r"^truncated$"):
                decode(short, side)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.92])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_progressive_jpeg_that_was_cut_and_closed_is_truncated(mode, share):
    data = encoded(noise().convert(mode), progressive=True, quality=75, subsampling=2)
    decode(data, 32)
    short = data[: -int(share * len(data))].rstrip(b"\xff") + b"\xff\xd9"
    for size in (8, 200):
        with pytest.raises(PhotoError, match=r"^truncated$"):
            decode(short, size)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_size_decides_not_whether_a_photo_is_truncated(progressive):
    data = encoded(noise(60, 50).resize((600, 500)), subsampling=2, progressive=progressive)
    for cut in (*range(3, 60), 400, 800):
        verdicts = set()
        for size in (8, 64, 200, 400):
            try:
                decode(data[: -2 - cut].rstrip(b"\xff") + b"\xff\xd9", size)
                verdicts.add("whole")
            except PhotoError as error:
                verdicts.add(str(error))
        assert len(verdicts) == 1, cut
    assert verdicts == {"truncated"}


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 200), (300, 250)])
def test_flat_photos_are_whole(size, mode):
    for quality, subsampling, progressive, optimize, restarts in product((1, 95), (0, 2), *[(False, True)] * 3):
        options: dict[str, Any] = {"subsampling": subsampling, "progressive": progressive, "optimize": optimize}
        colour = 200 if optimize else 128  # what decoders make of missing blocks
        data = encoded(Image.new(mode, size, colour), quality=quality, restart_marker_blocks=int(restarts), **options)
        assert decode(data, 16).shape == (3, 16, 16)


def test_a_little_padding_costs_nothing():
    assert torch.equal(decode(padded(b"\xff" * 1000 + b"\xff\x00"), 32), decode(encoded(quarters()), 32))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2_000_000))),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000))),
        (b"tEXt", b"parameters\0" + b"x" * 2_000_000),
        (b"zTXt", b"parameters\0\0not packed"),
    ],
    ids=["text", "international text", "XMP", "EXIF in text", "colour profile", "plain text", "broken text"],
)
def test_metadata_does_not_cost_a_png(chunk):
    assert torch.equal(decode(with_chunks(chunk), 32), decode(encoded(quarters(), "PNG"), 32))


def test_an_orientation_in_xmp_sets_a_png_upright():
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="3"/>')
    assert_colours(decode(with_chunks((b"iTXt", xmp)), 64), [YELLOW, BLUE, GREEN, RED])


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (MemoryError(), MemoryError),
        (OSError("out of memory error when reading image file"), MemoryError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
    ],
)
@pytest.mark.parametrize("step", ["open", "load", "getexif"])
def test_failures_of_the_machine_are_no_verdict(monkeypatch, step, failure, raised):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr({"open": Image, "load": JpegImageFile, "getexif": JpegImageFile}[step], step, fail)
    with pytest.raises(raised) as caught:
        decode(encoded(quarters()), 32)
    assert not isinstance(caught.value, PhotoError)


_WITHOUT_MEMORY = """
import resource, sys
from bincounter.data.photo_decoder import decode_square
data = sys.stdin.buffer.read()
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + 20_000_000,) * 2)
try:
    decode_square(data, 32)
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
    ids=["progressive JPEG", "PNG", "WebP", "lossless WebP"],
)
def test_a_lack_of_memory_is_no_damage(form, options):
    data = encoded(Image.new("RGB", (4000, 4000)), form, **options)
    done = subprocess.run([sys.executable, "-c", _WITHOUT_MEMORY], input=data, stdout=subprocess.PIPE, check=False)
    assert done.stdout == b"MemoryError\n"


@pytest.mark.parametrize("container", ["JPEG", "MPO", "comments"])
def test_scans_beyond_any_encoders_are_refused(container):
    data = encoded(quarters(), progressive=True)
    if container == "MPO":
        pair = encoded(quarters(), "MPO", save_all=True, append_images=[quarters()])
        start = pair.index(b"\xff\xe2")
        data = data[:2] + pair[start : start + 2 + int.from_bytes(pair[start + 2 : start + 4])] + data[2:]
    last = data.rindex(b"\xff\xda")  # what it refines may be refined again and again
    scan, before = data[last:-2], data.count(b"\xff\xda")
    if container == "comments":  # which end with the byte that markers begin with
        scan = b"\xff\xfe\x00\x03\xff" + scan
    most = data[:-2] + scan * (MAX_SCANS - before) + b"\xff\xd9"
    decode(most, 32)
    with pytest.raises(PhotoError, match=r"^stored in more than 100 scans$"):
        decode(data[:-2] + scan * (MAX_SCANS - before + 1) + b"\xff\xd9", 32)


def test_scan_markers_in_metadata_or_after_the_photo_are_ignored():
    data, scans = encoded(quarters()), b"\xff\xda\x00\x02" * MAX_SCANS
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(scans)) + scans
    assert torch.equal(decode(data[:2] + comment + data[2:] + scans, 32), decode(data, 32))


def test_transparent_photos_of_many_strips_are_whole():
    photo = quarters(64, 1000).convert("RGBA")
    photo.putpixel((0, 0), (0, 0, 0, 0))
    assert_colours(decode(encoded(photo, "PNG"), 32), colours(decode(encoded(quarters(64, 1000), "PNG"), 32)), 0)


def test_the_largest_photo_allowed_is_read():
    side = int(MAX_PIXELS**0.5)
    data = encoded(Image.new("L", (side, side), 77), quality=50)
    assert_colours(decode(data, 32), [(77,) * 3] * 4, tolerance=1)


SAMPLES = [
    encoded(quarters(24, 16)),
    encoded(quarters(24, 16).convert("CMYK")),
    encoded(quarters(24, 16), progressive=True),
    encoded(quarters(24, 16), "PNG"),
    encoded(quarters(24, 16).quantize(4), "PNG"),
    encoded(quarters(24, 16), "WEBP"),
    encoded(quarters(24, 16), exif=Image.Exif()),
]


def refuses_or_reads(data: bytes) -> None:
    """Anything but pixels or a PhotoError with a reason escapes and fails the test."""
    try:
        pixels = decode(data, 8)
    except PhotoError as error:
        assert str(error)
    else:
        assert pixels.shape == (3, 8, 8)
        assert all(side > 0 for side in photo_size(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    refuses_or_reads(data)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_photos_are_read_or_refused(sample, data):
    damaged = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    refuses_or_reads(bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged))


def test_pixels_are_the_same_in_any_thread():
    data = encoded(noise(90, 120))
    alone = decode(data, 40)
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(alone, pixels) for pixels in pool.map(lambda _: decode(data, 40), range(64)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_normalize_by_hand(dtype):
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4).to(dtype)
    normalised = Normalize()(images)
    assert normalised.dtype == torch.float32
    expected = torch.tensor([(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(normalised[1, :, 2, 3], expected, rtol=1e-5, atol=1e-5)


def test_normalize_leaves_nothing_in_a_checkpoint():
    assert not Normalize().state_dict()
