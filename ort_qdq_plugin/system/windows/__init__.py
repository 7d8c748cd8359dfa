"""The calls of Windows, where Python has none of its own: through ctypes."""
