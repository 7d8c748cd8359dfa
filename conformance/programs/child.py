"""One run of a program, in its own environment: CODE from stdin, what comes out into a file as JSON.

It is run by path, by an interpreter that has nothing of this repository but the installed package, and so imports nothing of
it. The code has the functions below, and leaves what came out in `result`.
"""

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

_RATE = 16000


def picture(*lines: str, size: tuple[int, int] = (320, 160), text_size: int = 28) -> Any:
    """A white picture with lines of text, a frame and a disc, as PIL's image."""
    from PIL import Image, ImageDraw, ImageFont

    made = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(size=text_size)
    for at, line in enumerate(lines):
        pen.text((text_size // 2, text_size // 2 + at * text_size * 3 // 2), line, fill="black", font=font)
    right, bottom = size[0] - 1, size[1] - 1
    pen.rectangle((0, 0, right, bottom), outline="gray")
    pen.ellipse((right - bottom // 3, bottom - bottom // 3, right, bottom), fill=(200, 120, 90))
    return made


def png(image: Any) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def bgr(image: Any) -> Any:
    """A picture as OpenCV has it."""
    import numpy

    return numpy.ascontiguousarray(numpy.asarray(image)[:, :, ::-1])


def sound(seconds: float) -> Any:
    """A buzz that swells and fades like syllables, between silences, with a little noise: float32, 16 kHz, from -1 to 1."""
    import numpy

    at = numpy.arange(int(seconds * _RATE)) / _RATE
    buzz = sum(numpy.sin(2 * numpy.pi * 140 * tone * at) / tone for tone in range(1, 25))
    syllables = numpy.clip(numpy.sin(2 * numpy.pi * 3 * at), 0, 1) * (numpy.sin(2 * numpy.pi * at / 3) > -0.3)
    noise = numpy.random.default_rng(1).standard_normal(len(at))
    return (0.25 * buzz * syllables + 0.002 * noise).clip(-1, 1).astype(numpy.float32)


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's arrays and numbers. A float's text has all of its digits."""
    return value.tolist()


def _peak_bytes() -> int:
    """The highest resident memory so far, where Linux says it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), default=0)


def _main() -> None:
    names: dict[str, Any] = {"picture": picture, "png": png, "bgr": bgr, "sound": sound}
    exec(compile(sys.stdin.read(), "program", "exec"), names)
    figures = {"cpu": time.process_time(), "peak": _peak_bytes(), "result": names["result"]}
    Path(sys.argv[1]).write_text(json.dumps(figures, default=_plain), encoding="utf-8")


if __name__ == "__main__":
    _main()
