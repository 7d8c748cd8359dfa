"""Scripts that have a tool write models: each runs in an environment of the tool's own, `python SCRIPT NETWORKS FOLDER`.

NETWORKS has the float models of `conformance.tools.networks`. What the tool makes of network NAME in SETTING becomes
FOLDER/SETTING NAME.onnx.
"""
