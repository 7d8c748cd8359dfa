"""Where the creation of a session starts: with a first look at its model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import onnxruntime

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import QdqPluginError
from ort_qdq_plugin.load.first_look import Nothing, first_look
from ort_qdq_plugin.load.state import SessionState
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.hook import CreateCall
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["create_native_session"]


def create_native_session(session: Any, state: SessionState, call: CreateCall) -> None:
    """Create the native session of an InferenceSession. Replaces its method ``_create_inference_session``.

    Errors of ONNX Runtime are raised as they are, with a note (`BaseException.add_note`) where they do not say what is wrong
    with the model.
    """
    try:
        _create_native_session(session, state, call)
    except QdqPluginError:
        raise
    except Exception as error:
        with fork_lock:
            from ort_qdq_plugin.load.request import LoadRequest
            from ort_qdq_plugin.load.unloadable import what_is_wrong
        if problem := what_is_wrong(LoadRequest(*hook.constructor_arguments(session), state.options)):
            error.add_note(f"ort-qdq-plugin: {problem}")
        raise


def _create_native_session(session: Any, state: SessionState, call: CreateCall) -> None:
    model, session_options = hook.constructor_arguments(session)
    if session_options is not None and not isinstance(session_options, onnxruntime.SessionOptions):
        # ONNX Runtime has an error for this.
        hook.create_stock(session, call)
        return
    seen = first_look(model, session_options, call, state.given) if state.prepared is None else None
    if isinstance(seen, Nothing):
        state.found_nothing(seen, session)
        if state.given is None or state.given.progress is None:
            _create_stock(session, call)
        else:
            _create_stock_shown(session, state, call)
    else:
        state.copied = seen
        with fork_lock:
            from ort_qdq_plugin.load.journey import create_after_first_look
        create_after_first_look(session, state, call)
    if log.informs():
        log.info("%s: %s", model if isinstance(model, str) else "<bytes>", state.report.summary())


def _create_stock_shown(session: Any, state: SessionState, call: CreateCall) -> None:
    with fork_lock:
        from ort_qdq_plugin.load.journal import shown, tell_stage
    with shown(state.options.progress, hook.constructor_arguments(session)[0]) as progress:
        # The caller's own code must not keep ONNX Runtime from a model.
        with suppress(Exception):
            tell_stage(progress, "create session")
        _create_stock(session, call)


def _create_stock(session: Any, call: CreateCall) -> None:
    session_options = hook.constructor_arguments(session)[1]
    if session_options is None:
        hook.create_stock(session, call)
        return
    with fork_lock:
        from ort_qdq_plugin.ort.options_lock import reading
    with reading(session_options):
        hook.create_stock(session, call)
