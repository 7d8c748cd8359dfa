"""The last stage of a load: what the process is left with once the session exists."""

from pathlib import Path

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL
from tests.support import python, save

AFTERWARDS = """
import sys
from ort_qdq_plugin import Options, create_session

def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

create_session(sys.argv[1])
before = anonymous()
session = create_session(sys.argv[2], options=Options(strict=True, dequantize_once="always"))
print(anonymous() - before)
"""


def convolutions(folder: Path, count: int, channels: int) -> str:
    """The path of a model of so many convolutions, one behind another."""
    draft = Draft("convolutions")
    value = draft.input("x", [1, channels, 8, 8])
    for number in range(count):
        draft.dequantize(f"w{number}", (channels, channels, 3, 3), axis=0, block=PER_CHANNEL, element="int8", zero="none")
        value = draft.node("Conv", [value, f"w{number}_d"], f"y{number}", pads=[1] * 4)
    draft.output(value, None)
    return str(save(draft.model(), folder, "external", f"{count}"))


def test_what_onnx_runtime_frees_goes_back_to_the_system(tmp_path: Path) -> None:
    """It copies the weights of convolutions twice. The values themselves are in a file, and the first copies are freed."""
    grown = int(python(AFTERWARDS, convolutions(tmp_path, 1, 16), convolutions(tmp_path, 16, 256)).stdout)
    assert grown < 1.4 * 16 * 256 * 256 * 9 * 4
