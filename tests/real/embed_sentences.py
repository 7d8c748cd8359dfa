"""fastembed, as its documentation has it: the embeddings of sentences, as JSON.

Arguments: the model's folder, how many worker processes embed (0: none), and the sentences.
"""

import json
import sys

from fastembed import TextEmbedding

if __name__ == "__main__":  # workers import this file too
    folder, workers, *sentences = sys.argv[1:]
    model = TextEmbedding("sentence-transformers/all-MiniLM-L6-v2", specific_model_path=folder)
    vectors = model.embed(sentences, batch_size=2, parallel=int(workers) or None)
    print(json.dumps([vector.tolist() for vector in vectors]))
