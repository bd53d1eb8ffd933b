from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serve.coarse_graph import product_graph


@pytest.mark.parametrize(("n_items", "width"), [(1, 1), (300, 70)])
def test_the_bytes_are_the_graph_that_they_should_be(n_items, width):
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(n_items, 3, 32), dtype=np.uint8)
    scales = rng.random((n_items, 3), dtype=np.float32)
    model = onnx.load_from_string(product_graph(codes, scales, width))
    onnx.checker.check_model(model)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, [*node.input], [*node.output]) == (
        "MatMulNBits",
        "com.microsoft",
        ["users", "codes", "scales"],
        ["products"],
    )
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    assert attributes == {"K": width, "N": n_items, "bits": 8, "block_size": 32, "accuracy_level": 4}
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert np.array_equal(stored["codes"], codes)
    assert np.array_equal(stored["scales"], scales)
    shapes = {one.name: one.type.tensor_type.shape.dim for one in (*model.graph.input, *model.graph.output)}
    assert {name: (dims[0].dim_param, dims[1].dim_value) for name, dims in shapes.items()} == {
        "users": ("requests", width),
        "products": ("requests", n_items),
    }
