"""A quantized student as an int8 ONNX file, which onnxruntime computes with whole numbers.

The file has the QDQ form: before each rounded layer its inputs go through QuantizeLinear and DequantizeLinear, its weight is
int8 and its bias int32, each with a DequantizeLinear. onnxruntime turns such a layer into one with integer arithmetic if its
output is quantized too. Outputs that no next layer rounds, such as those before a sum, therefore get a range from calibration
images; the simulation in PyTorch does not round them, so both agree up to `TOLERANCE` only.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.compress.parts.quantized_layers import FixedInput, QuantizedLayer, numbers_of, quantized_layers
from stillhouse.compress.parts.rounding import scale_of_range
from stillhouse.data.images import ImageData
from stillhouse.distill.evaluation import evaluate
from stillhouse.errors import UsageError
from stillhouse.export import onnx, program
from stillhouse.export.agreement import Answer, Answering, latency_of
from stillhouse.models.layers import Shape
from stillhouse.models.modes import evaluating
from stillhouse.temporary_folders import temporary_folder

TOLERANCE = 0.02
"""How far the metric by onnxruntime may be from the simulated one, as a share of the metric or, below 1, as it is."""
FILE = "student.int8.onnx"
_BITS = 8
_COMPUTING = ("Conv", "Gemm")


class NotInt8Error(UsageError):
    """A layer that onnxruntime cannot compute in int8; the student's other forms are not affected."""


@dataclass(frozen=True, kw_only=True)
class Int8Layer:
    """The numbers of one layer.

    Attributes:
        numbers: the weight, int8.
        weight_scale: [O] float32.
        input_scale, input_zero_point: of the layer's inputs, uint8.
        output_scale, output_zero_point: of its outputs on the calibration images, uint8.
    """

    numbers: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    input_scale: float
    input_zero_point: int
    output_scale: float
    output_zero_point: int


def computes_in_int8(model: nn.Module) -> bool:
    """Whether the network has layers with rounded weights and inputs of 8 bits: onnxruntime has no kernels for fewer."""
    return any(True for _ in _int8_layers(model))


def save_int8(model: nn.Module, input_shape: Shape, images: Tensor, path: Path, output: str) -> None:
    """Writes a finalised network that `computes_in_int8` as ONNX with int8 layers; the others compute in float32.

    Args:
        model: on the CPU, in evaluation mode.
        images: normalised [N, C, H, W] for the ranges of outputs, from the training split.
        path: of the file, which is replaced.
        output: what the output is called, such as `logits`.

    Raises:
        UsageError: the network cannot be written as ONNX.
        NotInt8Error: a layer has another form in ONNX than Conv or Gemm.
    """
    layers = _numbers(model, images)
    plain = copy.deepcopy(model)
    for name, layer in quantized_layers(plain):
        if name in layers:
            layer.input_quantizer = nn.Identity()
    onnx.save_onnx(program.make_program(plain.eval(), input_shape), path, output)
    _insert(path, layers)
    onnx.check_onnx(path)


def latency_ms(model: nn.Module, input_shape: Shape) -> float:
    """Median time of one sample by onnxruntime on the CPU, of a network that `computes_in_int8`; its weights may be any.

    Raises:
        UsageError: the packages of the extra are not installed, or the network has no int8 file.
    """
    onnx.require_packages()
    with temporary_folder("int8") as folder:
        path = folder / FILE
        save_int8(model, input_shape, torch.zeros(2, *input_shape), path, "output")
        return latency_of(onnx.load_answer(path), input_shape, model)[1].p50_ms


def compare(model: nn.Module, answer: Answer, data: ImageData) -> dict[str, float]:
    """The task's metric, simulated by PyTorch and by onnxruntime, with the stated tolerance.

    Both are measured on the validation split, or on the training split if there is none.

    Args:
        answer: the int8 file, as onnxruntime runs it.

    Raises:
        UsageError: they differ by more than `TOLERANCE`.
    """
    simulated = evaluate(model, data, data.for_checks, "cpu")
    measured = evaluate(Answering(answer, model), data, data.for_checks, "cpu")
    if not abs(measured - simulated) <= TOLERANCE * max(1.0, abs(simulated)):
        raise UsageError(
            f"{FILE} does not do what the student does: on {len(data.for_checks)} images onnxruntime measures {measured:.4g} "
            f"and the simulation {simulated:.4g}, which differ by more than {TOLERANCE:g}"
        )
    return {"simulated": simulated, "onnxruntime": measured, "tolerance": TOLERANCE}


def _int8_layers(model: nn.Module) -> Any:
    for name, layer in quantized_layers(model):
        rounds_input = isinstance(layer.input_quantizer, FixedInput) and layer.input_quantizer.bits == _BITS
        if rounds_input and "weight_scale" in layer._buffers:
            yield name, layer


@torch.no_grad()
def _numbers(model: nn.Module, images: Tensor) -> dict[str, Int8Layer]:
    """The numbers of each int8 layer, by name."""
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    layers: dict[str, QuantizedLayer] = dict(_int8_layers(model))
    for name, layer in layers.items():

        def widen(_module: nn.Module, _inputs: Any, outputs: Tensor, name: str = name) -> None:
            low, high = ends.get(name, (torch.zeros(()), torch.zeros(())))
            ends[name] = torch.minimum(low, outputs.amin()), torch.maximum(high, outputs.amax())

        handles.append(layer.register_forward_hook(widen))
    try:
        with evaluating(model):
            for batch in images.split(64):
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, layer in layers.items():
        scale, zero_point = scale_of_range(*ends[name], _BITS)
        fixed = layer.input_quantizer
        assert isinstance(fixed, FixedInput)
        weight_scale = layer.get_buffer("weight_scale")
        found[name] = Int8Layer(
            numbers=numbers_of(layer.weight, weight_scale, _BITS).to(torch.int8).numpy(),
            # A channel of zeros has the scale 0, which ONNX does not know.
            weight_scale=torch.where(weight_scale == 0, 1.0, weight_scale).numpy(),
            input_scale=float(fixed.scale),
            input_zero_point=int(fixed.zero_point),
            output_scale=float(scale),
            output_zero_point=int(zero_point),
        )
    return found


def _insert(path: Path, layers: Mapping[str, Int8Layer]) -> None:
    """Puts QuantizeLinear and DequantizeLinear around the named layers of the file.

    Raises:
        NotInt8Error: a layer is no single Conv or Gemm with its weight as it is.
    """
    import onnx as library

    model = library.load(path)
    graph = _Graph(model.graph)
    for name, layer in layers.items():
        node = graph.node_of_weight(f"{name}.weight")
        if node is None:
            raise NotInt8Error(f"layer {name} cannot be written as int8: ONNX has it in another form than Conv or Gemm")
        graph.quantize_node(name, node, layer)
    for name, layer in layers.items():
        graph.quantize_output(name, layer)
    graph.finish()
    library.save(model, path)


class _Graph:
    """An ONNX graph that nodes are inserted into."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._nodes: list[Any] = list(graph.node)
        self._by_layer: dict[str, Any] = {}
        self._initializers = {each.name: each for each in graph.initializer}

    def node_of_weight(self, weight: str) -> Any | None:
        found = [node for node in self._nodes if weight in node.input]
        if len(found) != 1 or found[0].op_type not in _COMPUTING or weight not in self._initializers:
            return None
        transposed = {attribute.name: attribute.i for attribute in found[0].attribute}.get("transB", 1)
        return found[0] if found[0].op_type == "Conv" or transposed == 1 else None

    def quantize_node(self, name: str, node: Any, layer: Int8Layer) -> None:
        """Quantizes inputs, weight and bias of the layer's node."""
        self._by_layer[name] = node
        rounded = self._quantized_pair(f"{name}.input", node.input[0], layer.input_scale, layer.input_zero_point, before=node)
        node.input[0] = rounded
        del self._initializers[f"{name}.weight"]
        node.input[1] = self._constant(f"{name}.weight", layer.numbers, layer.weight_scale, np.int8, before=node)
        if len(node.input) > 2 and node.input[2] in self._initializers:
            import onnx as library

            bias = library.numpy_helper.to_array(self._initializers.pop(node.input[2]))
            scale = (np.float32(layer.input_scale) * layer.weight_scale).astype(np.float32)
            numbers = np.clip(np.rint(bias.astype(np.float64) / scale), -(2**31), 2**31 - 1).astype(np.int32)
            node.input[2] = self._constant(f"{name}.bias", numbers, scale, np.int32, before=node)

    def quantize_output(self, name: str, layer: Int8Layer) -> None:
        """Rounds the layer's output, unless all that reads it rounds it, at once or after a ReLU, or it is the network's."""
        node = self._by_layer[name]
        output = node.output[0]
        if output in {each.name for each in self._graph.output} or self._is_rounded(output):
            return
        readers = self._readers(output)
        rounded = self._quantized_pair(f"{name}.output", output, layer.output_scale, layer.output_zero_point, after=node)
        for reader in readers:
            for place, value in enumerate(reader.input):
                if value == output:
                    reader.input[place] = rounded

    def finish(self) -> None:
        """Writes nodes and initializers back."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.initializer[:]
        self._graph.initializer.extend(self._initializers.values())

    def _readers(self, value: str) -> list[Any]:
        return [node for node in self._nodes if value in node.input]

    def _is_rounded(self, value: str) -> bool:
        readers = self._readers(value)
        return bool(readers) and all(
            reader.op_type == "QuantizeLinear" or (reader.op_type == "Relu" and self._is_rounded(reader.output[0]))
            for reader in readers
        )

    def _quantized_pair(
        self, name: str, value: str, scale: float, zero_point: int, *, before: Any = None, after: Any = None
    ) -> str:
        """Inserts QuantizeLinear and DequantizeLinear to uint8; returns the name of the rounded value."""
        self._add(f"{name}.scale", np.array(scale, np.float32))
        self._add(f"{name}.zero_point", np.array(zero_point, np.uint8))
        numbers = [f"{name}.scale", f"{name}.zero_point"]
        quantize = self._node("QuantizeLinear", [value, *numbers], f"{name}.quantized")
        dequantize = self._node("DequantizeLinear", [f"{name}.quantized", *numbers], f"{name}.rounded")
        at = _place(self._nodes, before) if after is None else _place(self._nodes, after) + 1
        self._nodes[at:at] = [quantize, dequantize]
        return f"{name}.rounded"

    def _constant(self, name: str, numbers: NDArray[Any], scale: NDArray[np.float32], dtype: Any, *, before: Any) -> str:
        """Adds whole numbers with a scale for each of the first axis; returns the name of their values."""
        self._add(f"{name}.numbers", numbers)
        self._add(f"{name}.scale", scale)
        self._add(f"{name}.zero_point", np.zeros(len(scale), dtype))
        inputs = [f"{name}.numbers", f"{name}.scale", f"{name}.zero_point"]
        at = _place(self._nodes, before)
        self._nodes.insert(at, self._node("DequantizeLinear", inputs, f"{name}.rounded", axis=0))
        return f"{name}.rounded"

    def _add(self, name: str, array: NDArray[Any]) -> None:
        import onnx as library

        self._initializers[name] = library.numpy_helper.from_array(array, name)

    @staticmethod
    def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        import onnx as library

        return library.helper.make_node(kind, inputs, [output], name=output, **attributes)


def _place(nodes: list[Any], node: Any) -> int:
    return next(place for place, each in enumerate(nodes) if each is node)
