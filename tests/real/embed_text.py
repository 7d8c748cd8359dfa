"""A program of the plainest kind: the embeddings of texts by a model that takes text, as JSON.

Arguments: the model, and the texts. Nothing is registered, nothing but onnxruntime is used.
"""

import json
import sys

import onnxruntime

path, *texts = sys.argv[1:]
session = onnxruntime.InferenceSession(path)
print(json.dumps([session.run(None, {"text": [text]})[0][0].tolist() for text in texts]))
