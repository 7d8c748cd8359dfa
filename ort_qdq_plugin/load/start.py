"""Where the creation of a session starts: with a first look at its model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import onnxruntime

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import QdqPluginError
from ort_qdq_plugin.load.first_look import Nothing, first_look
from ort_qdq_plugin.load.state import SessionState
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.hook import CreateCall
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["create_native_session"]

_Create: TypeAlias = Callable[[Any, SessionState, CreateCall], None]


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
        with suppress(Exception):  # this error is the one to raise, whatever becomes of the note
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
    try:
        create = _way_of(session, state, call)
    except Exception as error:
        create = _left_to_stock(session, state, error)
    create(session, state, call)
    if log.informs():
        # The session is there, whatever becomes of this line.
        with suppress(Exception):
            log.info("%s: %s", model if isinstance(model, str) else "<bytes>", state.report.summary())


def _way_of(session: Any, state: SessionState, call: CreateCall) -> _Create:
    """What creates the native session, by a first look at its model. What it needs to begin is imported then."""
    model, session_options = hook.constructor_arguments(session)
    seen = first_look(model, session_options, call, state.given) if state.prepared is None else None
    if not isinstance(seen, Nothing):
        state.copied = seen
        with fork_lock:
            from ort_qdq_plugin.load.journey import create_after_first_look
        return create_after_first_look
    state.found_nothing(seen, session)
    create = _create_stock if session_options is None else _reading(session_options)
    return create if state.given is None or state.given.progress is None else _shown(create)


def _create_stock(session: Any, _state: SessionState, call: CreateCall) -> None:
    hook.create_stock(session, call)


def _reading(session_options: Any) -> _Create:
    with fork_lock:
        from ort_qdq_plugin.ort.options_lock import reading

    def create(session: Any, _state: SessionState, call: CreateCall) -> None:
        with reading(session_options):
            hook.create_stock(session, call)

    return create


def _shown(create: _Create) -> _Create:
    with fork_lock:
        from ort_qdq_plugin.load.journal import shown, tell_stage

    def create_shown(session: Any, state: SessionState, call: CreateCall) -> None:
        with shown(state.options.progress, hook.constructor_arguments(session)[0]) as progress:
            # The caller's own code must not keep ONNX Runtime from a model.
            with suppress(Exception):
                tell_stage(progress, "create session")
            create(session, state, call)

    return create_shown


def _left_to_stock(session: Any, state: SessionState, error: Exception) -> _Create:
    """What creates the native session where the way to it cannot be imported: no descriptor may be left to read it with.

    In strict mode the error is raised, as by `journey`.
    """
    problem = f"{type(error).__name__}: {error}"
    if state.given is not None and state.given.strict:
        raise QdqPluginError(problem) from error
    state.found_nothing(Nothing("ERROR", problem), session)
    with suppress(Exception):  # `logging` may be what cannot be imported
        log.warning("loading with stock ONNX Runtime, without ort-qdq-plugin: %s", problem)
    return _create_stock
