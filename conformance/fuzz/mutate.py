"""Structured mutations: valid models with something in them that a malicious or a careless writer could have put there.

Every choice is asked of a `random.Random`. Hypothesis supplies one whose choices it can replay and shrink, the
coverage-guided fuzzer one with the seed that it gives its mutators.
"""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from conformance.fuzz.byte_mutations import BYTE_MUTATIONS
from conformance.fuzz.message_mutations import MESSAGE_MUTATIONS, Random
from conformance.fuzz.seeds import seed_models

__all__ = ["mutate", "mutated_models"]


def mutate(rng: Random, data: bytes) -> bytes:
    """The serialized model `data` with up to four mutations; what cannot be parsed gets those of its bytes only."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            rng.choice(MESSAGE_MUTATIONS)(rng, model)
        data = bytes(model.SerializeToString())
        changes = rng.choice((0, 0, 0, 1))
    except (DecodeError, UnicodeError, ValueError):
        changes = 1
    for _ in range(changes):
        data = rng.choice(BYTE_MUTATIONS)(rng, data) if data else data
    return data


@st.composite
def mutated_models(draw: st.DrawFn) -> bytes:
    """A seed model, mutated."""
    seed = draw(st.sampled_from(seed_models()))
    return mutate(draw(st.randoms(use_true_random=False)), seed)
