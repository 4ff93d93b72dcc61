"""Halves an ONNX file: its matrices become whole numbers of 16 bits, with a float32 scale per column.

A number keeps up to 15 bits, where float16 keeps 11. Runtimes unpack a matrix once, when they load the file, and compute in float32. A table of
embeddings stays packed in memory; the rows that are looked up are unpacked.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

_LARGEST = np.float32(2**15 - 1)


def pack(path: Path) -> None:
    """Pack the matrices of the file at `path`."""
    model = onnx.load(path)
    graph = model.graph
    matrices: set[str] = set()
    weights: list[onnx.TensorProto] = []
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype != np.float32 or array.ndim < 2 or len(array) < 3:  # of fewer rows, scales take what numbers save
            weights.append(weight)
            continue
        matrices.add(weight.name)
        scale = np.abs(array).max(axis=0, keepdims=True).clip(min=np.finfo(np.float32).tiny) / _LARGEST
        numbers = np.round(array / scale).astype(np.int16)
        weights += [numpy_helper.from_array(numbers, f"{weight.name}/packed"), numpy_helper.from_array(scale, f"{weight.name}/scale")]

    nodes: list[onnx.NodeProto] = []
    packed = matrices.copy()
    for node in graph.node:
        if node.op_type in ("Gather", "GatherND") and node.input[0] in matrices:
            table, rows = node.input[0], node.output[0]
            node.input[0], node.output[0] = f"{table}/packed", f"{rows}/packed"
            nodes += [node, *_unpack(rows, table)]
        else:
            for name in sorted(packed.intersection(node.input)):
                nodes += _unpack(name, name)
                packed.remove(name)
            nodes.append(node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(weights)
    graph.node.extend(nodes)
    onnx.save(model, path)


def _unpack(result: str, matrix: str) -> list[onnx.NodeProto]:
    """Return the nodes that multiply ``result/packed`` by the scales of `matrix`."""
    cast = helper.make_node("Cast", [f"{result}/packed"], [f"{result}/numbers"], to=onnx.TensorProto.FLOAT)
    return [cast, helper.make_node("Mul", [f"{result}/numbers", f"{matrix}/scale"], [result])]
