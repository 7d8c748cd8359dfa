"""A program that generates tokens with onnxruntime-genai, and knows nothing of this package.

python generate.py FOLDER
"""

import sys

import onnxruntime_genai as og

model = og.Model(sys.argv[1])
params = og.GeneratorParams(model)
params.set_search_options(max_length=40, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens([3, 141, 59, 26, 5])
while not generator.is_done():
    generator.generate_next_token()
print(*generator.get_sequence(0))
