"""What was done with a whole model. What became of each weight is in `weights`, which only quantized models need."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ort_qdq_plugin.log import printable
from ort_qdq_plugin.values import ByFields, Sentence

if TYPE_CHECKING:
    from ort_qdq_plugin.report.weights import FusedWeight, UnfusedWeight

__all__ = ["CacheUse", "Report", "Route", "RouteReason", "StockReason"]

Route = Literal["borrowed", "by path", "copied", "shared", "stock", "export", "inspect"]
CacheUse = Literal["made", "used", "prepared", ""]

_MB = 1e6


class StockReason(Sentence):
    """Why a whole model was left to stock ONNX Runtime, untouched. ``str(reason)`` is the sentence."""

    ORT_FORMAT = "The model is loaded in ORT format, not in ONNX format."
    NOT_QUANTIZED = "Nothing in the model is quantized: it has no quantized operator, and no DequantizeLinear of a weight."
    OTHER_FORM = "The model is quantized in another way, which ONNX Runtime runs as it is."
    FUSION_DISABLED = "The session's options disable the fusion of QDQ nodes."
    NOT_FUSIBLE = "Nothing in the model can be fused."
    PROVIDER = "An execution provider of the session is not known to take fused nodes, so that it gets the QDQ form."
    ADDED_INITIALIZERS = "Initializers were added to the session's options (add_external_initializers)."
    OPTIMIZED_MODEL = "An optimized model is saved, or one compiled for a provider; its weights would be in temporary files."
    RELEASE = "This package does not know the installed ONNX Runtime."
    DRIVES = "ONNX Runtime would have to open files on several drives by path, and finds them below one folder only."
    OPTIONS_IN_MODEL = "The model contains session options, and ORT_LOAD_CONFIG_FROM_MODEL=1 is set."
    NOT_COMPUTED = "A weight is computed from what has no definite result, as no number or integers out of range."
    PACKED_SIZE = "The model's weights would be far larger when packed than they are stored."
    UNREADABLE = "The model cannot be opened."
    REFUSED = "ONNX Runtime refuses the model."
    ERROR = "This package failed to load the model."
    GENAI_MODEL_DATA = "The configuration was given models as bytes (Config.add_model_data)."
    GENAI_OVERLAY = "An overlay of the configuration (Config.overlay) changes the model's files."
    GENAI_CUSTOM_OPS = "The configuration names a custom_ops_library, which has to be below the model's own folder."

    def message(self, detail: str) -> str:
        """The sentence, followed by what varies: a provider's name, an error's text, sizes."""
        return f"{str(self).rstrip('.')}: {detail}" if detail else str(self)


class RouteReason(Sentence):
    """Why ONNX Runtime does not borrow this package's buffers. ``str(reason)`` is the sentence."""

    OPTIONS = "A copy of the session's options would lose providers that were added to them, or a library of operators."
    GENAI = "onnxruntime-genai creates the session, and opens the model and its weights as files."
    COPIES = "The installed ONNX Runtime copies what it is given in memory, as all do before 1.31."


class Report(ByFields):
    """What became of a model.

    Attributes:
        route: How ONNX Runtime got the model. "borrowed": it uses this package's buffers in place. "by path": it maps the
            same files itself. "copied": it copies them from memory. "shared": it maps those files together with pre-packed
            weights. "stock": it loads the untouched model. "export": the fused model was written. "inspect": no session
            was created.
        stock_reason: Why the whole model was left to stock ONNX Runtime; None if it was not.
        stock_detail: What varies in that, or in `unchanged`: a provider's name, an error's text, sizes; "" if nothing does.
        fused: What was fused.
        unfused: What was not, and why. Some of these weights are dequantized once (`UnfusedWeight.bytes_added`).
        packed_bytes: Of what is in the packed buffer: operands of fused nodes, and values of weights that are dequantized
            once. What several nodes share counts once. Of an `unchanged` model, large tensors that are not aligned.
        borrowed_bytes: Of operands that are used where the model stores them, each counted once. Of an `unchanged` model, of
            large tensors.
        cache: "made" (the model was packed into an entry of the cache), "used" (it was found there), "prepared" (it
            was found in `Options.prepared`) or "" (none of these).
        shared_bytes: Of ONNX Runtime's pre-packed weights that this process shares with others by mapping them.
        copied_bytes: Of the model's own files, copied into the cache's entry when it was made.
        also: In which other ways the model is quantized, in words: "fused already (MatMulNBits): ...", for instance.
        route_reason: Why the route is "by path" or "copied"; None for other routes.
        unchanged: Why nothing was fused, if the model was handed over all the same: its graph as it is, large tensors in
            mappings of files. None if something was fused, or stock ONNX Runtime loads the model.
        stored_bytes: What the model stores of the weights in `fused` and `unfused`, with scales and zero points, each byte
            counted once.
        float_bytes: What the weights in `fused` would take in float, each counted once.
        seconds: By stage: "cache" (finding and writing an entry), "open", "match", "plan", "check" (asking ONNX Runtime
            whether it takes the model, for `inspect`), "pack", "assemble", "share" (pre-packing for other processes) and
            "create session", which is ONNX Runtime's own work.
    """

    route: Route
    stock_reason: StockReason | None = None
    stock_detail: str = ""
    fused: tuple[FusedWeight, ...] = ()
    unfused: tuple[UnfusedWeight, ...] = ()
    packed_bytes: int = 0
    borrowed_bytes: int = 0
    cache: CacheUse = ""
    shared_bytes: int = 0
    copied_bytes: int = 0
    also: str = ""
    route_reason: RouteReason | None = None
    unchanged: StockReason | None = None
    stored_bytes: int = 0
    float_bytes: int = 0
    seconds: Mapping[str, float] = MappingProxyType({})

    def __post_init__(self) -> None:
        vars(self)["seconds"] = dict(self.seconds)  # its own, which can be pickled

    @property
    def stock_message(self) -> str | None:
        """Why the whole model was left to stock ONNX Runtime, in words: the reason and its detail; None if it was not."""
        return None if self.stock_reason is None else self.stock_reason.message(self.stock_detail)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON; reasons as their sentences."""
        plain = {**vars(self), "seconds": dict(self.seconds)}
        for name in ("stock_reason", "route_reason", "unchanged"):
            plain[name] = None if plain[name] is None else str(plain[name])
        plain["fused"] = [dict(vars(fused)) for fused in self.fused]
        plain["unfused"] = [{**vars(left), "reason": str(left.reason), "hint": left.hint} for left in self.unfused]
        return plain

    def __str__(self) -> str:
        lines = [self.summary()]
        if self.route_reason is not None:
            lines.append(f"  {self.route}: {self.route_reason}")
        for fused in self.fused:
            where, bias = "packed" if fused.packed_bytes else "in place", ", with bias" if fused.has_bias else ""
            bits = f"{fused.bits} bits" + f" (stored {fused.stored_bits})" * (fused.bits != fused.stored_bits)
            size = f"K={fused.k} N={fused.n}, {bits}, block {fused.block_size}"
            form = f", from {fused.form}" if fused.form else ""
            lines.append(f"  fused   {fused.node}: {fused.kind} {size}, {fused.layout}, {where}{bias}{form}")
        for left in self.unfused:
            form = f"{left.form}: " if left.form else ""
            hint = f" {left.hint}" if left.hint and not left.bytes_added else ""
            which = "once   " if left.bytes_added else "unfused"
            lines.append(f"  {which} {left.dequantize}: {form}{left.reason} ({left.cost}){hint}")
        if self.also not in ("", self.stock_detail):
            lines.append(f"  also    {self.also}")
        return "\n".join(map(printable, lines))

    def summary(self) -> str:
        """One line: how it was loaded, what was fused, what that saves, bytes and seconds."""
        once = sum(1 for entry in self.unfused if entry.bytes_added)
        parts = [f"{once} dequantized once"] * bool(once) + [f"{len(self.unfused) - once} left"] * (len(self.unfused) > once)
        left = "".join(f", {part}" for part in parts)
        if self.stock_reason is not None:
            return f"stock ONNX Runtime{left}: {printable(self.stock_message)}"
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        ways = {"made": ", cached", "used": " from the cache", "prepared": ", prepared elsewhere", "": ""}
        route = f"{self.route}{ways[self.cache]}"
        if self.unchanged is not None:
            bytes_held = (
                f"{(self.packed_bytes + self.borrowed_bytes) / _MB:.1f} MB of tensors handed over, the graph as it is"
            )
            why = printable(self.unchanged.message(self.stock_detail))
            return f"{route}: {bytes_held}{left}. {why}" + (f" {stages}" if stages else "")
        bytes_held = f"{self.packed_bytes / _MB:.1f} MB packed and {self.borrowed_bytes / _MB:.1f} MB in place"
        if self.fused:
            bytes_held += f" instead of {self.float_bytes / _MB:.1f} MB in float"
        elif not once and self.route != "copied":
            bytes_held = "its own files handed over without a copy"
        return f"{route}: {len(self.fused)} fused{left}, {bytes_held}" + (f"; {stages}" if stages else "")
