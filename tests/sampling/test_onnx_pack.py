"""Packed ONNX files: half the size, the same results to 15 bits of each column, and float32 for all that is small."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from gan_t2i.sampling.onnx_pack import pack

Array = np.ndarray[Any, Any]


def save(path: Path, **weights: Array) -> None:
    """Write a model: a row of the table, times the matrix, plus the bias, times the same table."""
    nodes = [
        helper.make_node("Gather", ["table", "id"], ["row"]),
        helper.make_node("MatMul", ["row", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "gain"], ["gained"]),
        helper.make_node("Gemm", ["gained", "table"], ["output"], transB=1),
    ]
    inputs, outputs = [helper.make_tensor_value_info("id", TensorProto.INT64, [1])], [helper.make_empty_tensor_value_info("output")]
    graph = helper.make_graph(nodes, "small", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def run(path: Path) -> Array:
    """Return the output for row 5."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    output: Array = session.run(None, {"id": np.array([5])})[0]
    return output


def test_pack(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, matrix = rng.normal(size=(400, 32)).astype(np.float32), rng.normal(size=(32, 32)).astype(np.float32)
    matrix *= np.geomspace(1e-6, 1e3, 32, dtype=np.float32)  # its columns differ in size
    matrix[:, 3] = 0
    bias, gain = rng.normal(size=32).astype(np.float32), np.float32(1) / np.abs(matrix).max(0, keepdims=True).clip(min=1)
    file = tmp_path / "model.onnx"
    save(file, table=table, matrix=matrix, bias=bias, gain=gain)
    exact, size = run(file), file.stat().st_size
    pack(file)
    assert file.stat().st_size < 0.55 * size
    difference = np.abs(run(file) - exact).max()
    assert 0 < difference < 1e-3 * exact.std()  # a scale for the whole matrix would not do

    graph = onnx.load(file).graph
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    np.testing.assert_array_equal(weights["bias"], bias)
    np.testing.assert_array_equal(weights["gain"], gain)
    unpacked = weights["matrix/packed"] * weights["matrix/scale"]
    assert weights["matrix/packed"].dtype == np.int16
    assert (np.abs(unpacked - matrix) <= 0.51 * weights["matrix/scale"]).all()
    assert np.abs(weights["matrix/packed"]).max(0).tolist() == [2**15 - 1 if column != 3 else 0 for column in range(32)]
    [lookup] = [node for node in graph.node if node.op_type == "Gather"]
    assert lookup.input[0] == "table/packed"  # in memory too, the table is packed
