"""Whether ONNX Runtime takes a model, asked before it gets any weights."""

from __future__ import annotations

import onnxruntime

from ort_qdq_plugin.ort.copies import throw_away_session
from ort_qdq_plugin.ort.extensions import register_extensions
from ort_qdq_plugin.ort.hook import available_providers
from ort_qdq_plugin.ort.providers import ON_CPU
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["refusal_of"]

_FATAL = 4  # OrtLoggingLevel

# The one optimizer that computes, and so may take any time and memory; and one that ends the process, in bodies of loops,
# where a weight is still computed by Split or Slice because that one has not run (ONNX Runtime 1.32.0).
_NOT_RUN = {"ConstantFolding", "QDQPropagationTransformer"}


def refusal_of(model: bytes, *, extensions: bool = False) -> str | None:
    """What ONNX Runtime has against a model whose large tensors are inputs instead; None: nothing.

    The model is loaded as in any session. If there are no providers but the CPU's, its kernels are made too. No kernel of
    the CPU provider's is known that wants a large tensor to be a constant.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    if extensions:
        register_extensions(options)
    # As for any error of ONNX Runtime's that is expected (`copies.supplies_initializers`).
    with fork_lock:
        try:
            session = throw_away_session(options, model)
            if ON_CPU.issuperset(available_providers()):
                session.initialize_session(["CPUExecutionProvider"], [{}], _NOT_RUN)
        except Exception as error:
            return str(error)
    return None
