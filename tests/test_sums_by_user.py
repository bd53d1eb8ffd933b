from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models.export import Graph, export_graph
from models.memory import sum_by_user
from serve.tower import Tower


class Summing(nn.Module):
    def forward(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum_by_user(arrays["values"], arrays["users"], len(arrays["everybody"]))


def draw(n_rows: int, n_users: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_rows)
    users = torch.randint(n_users, (n_rows,), generator=generator).sort().values
    return torch.randn(n_rows, 64, generator=generator), users


def test_rows_are_summed_user_by_user_and_nobody_has_zeros():
    values, users = draw(50, 7)
    users[users == 3] = 4
    found = sum_by_user(values, users, 8)
    expected = np.stack([values.numpy()[users.numpy() == user].sum(axis=0) for user in range(8)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not found[3].any()
    assert not found[7].any()


def test_a_graph_sums_the_same_also_on_several_threads(tmp_path):
    def arrays_of(n_rows: int, n_users: int) -> dict[str, np.ndarray]:
        values, users = draw(n_rows, n_users)  # sums of whole numbers are exact
        return {"values": values.round().numpy(), "users": users.numpy(), "everybody": np.zeros(n_users, np.float32)}

    graph = Graph(Summing(), {"values": "E", "users": "E", "everybody": "B"}, ("sums",))
    export_graph(graph, arrays_of(9, 3), tmp_path / "sums.onnx", "space")
    tower = Tower("sums.onnx", (tmp_path / "sums.onnx").read_bytes(), n_threads=4)
    for shape in [(50_000, 1), (2_000, 9), (0, 2)]:
        arrays = arrays_of(*shape)
        expected = sum_by_user(torch.from_numpy(arrays["values"]), torch.from_numpy(arrays["users"]), shape[1])
        for _ in range(20):  # what threads take from each other they do not take each time
            assert np.array_equal(tower.run(arrays)["sums"], expected)
