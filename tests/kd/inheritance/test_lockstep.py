"""All batches are halted at each module, in the order of execution, and errors end them all."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from torch import nn

from kd.inheritance.lockstep import in_lockstep


def test_what_a_visit_changes_is_what_runs():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    seen = []

    def visit(name, inputs):
        seen.append((name, [x.clone() for x in inputs]))
        with torch.no_grad():
            dict(model.named_modules())[name].weight.fill_(len(seen))

    batches = [torch.ones(1, 2), torch.full((3, 2), 2.0)]
    in_lockstep(model, {"0": model[0], "2": model[2]}, batches, visit)
    assert [name for name, _ in seen] == ["0", "2"]
    assert all(torch.equal(a, b) for a, b in zip(seen[0][1], batches, strict=True))
    assert [x[0].tolist() for x in seen[1][1]] == [[2.0, 2.0], [4.0, 4.0]]  # through the weight that visit gave
    assert all(not x.requires_grad for x in seen[1][1])


@pytest.mark.parametrize("where", ["visit", "model"])
def test_an_error_ends_every_run(where):
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    model = nn.Sequential(nn.Linear(2, 2), Fails() if where == "model" else nn.ReLU(), nn.Linear(2, 2))
    before = threading.active_count()

    def visit(name, inputs):
        if where == "visit":
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_lockstep(model, {"0": model[0], "2": model[2]}, [torch.ones(1, 2)] * 3, visit)
    assert threading.active_count() == before
    model[1] = nn.ReLU()
    model(torch.ones(1, 2))  # no hook is left behind
