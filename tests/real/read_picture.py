"""RapidOCR, as its documentation has it: what it reads in a picture, where, and how sure it is, as JSON.

Arguments: the picture, and if another recognition model than its own is wanted, that model.
"""

import json
import sys

from rapidocr_onnxruntime import RapidOCR

picture, *model = sys.argv[1:]
engine = RapidOCR(rec_model_path=model[0]) if model else RapidOCR()
read, _seconds = engine(picture)
print(json.dumps(read))
