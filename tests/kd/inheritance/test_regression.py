"""Least squares and the choice of columns against NumPy and SciPy's own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from hypothesis import given
from hypothesis import strategies as st

from kd.inheritance.regression import solve, telling_columns


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_a_linear_map_is_found_again(seed, inputs, outputs):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(200, inputs, generator=generator) + 3
    weight, offset = torch.randn(inputs, outputs, generator=generator), torch.randn(outputs, generator=generator)
    fit = solve(zip(a.split(64), (a @ weight + offset).split(64), strict=True), ridge=0.0)
    assert torch.allclose(fit.weight.float(), weight, atol=1e-3)
    assert torch.allclose(fit.offset.float(), offset, atol=1e-2)
    assert float(fit.left.max()) < 1e-4


def test_what_the_ridge_leaves_is_what_the_residuals_are():
    generator = torch.Generator().manual_seed(0)
    a, y = torch.randn(300, 5, generator=generator), torch.randn(300, 2, generator=generator)
    y[:, 0] += a[:, 0]
    fit = solve([(a, y)], ridge=0.01)
    residual = y.double() - a.double() @ fit.weight - fit.offset
    assert torch.allclose(fit.left, residual.var(0, correction=0) / y.double().var(0, correction=0), atol=1e-6)
    damped = torch.cov(a.T, correction=0).double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(5)
    cross = (a - a.mean(0)).double().T @ (y - y.mean(0)).double() / 300
    assert torch.allclose(fit.weight, torch.linalg.solve(damped, cross), atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_the_columns_are_those_of_pivoted_qr(seed, count):
    scipy = pytest.importorskip("scipy.linalg")
    values = np.random.default_rng(seed).normal(size=(40, 8)) * np.arange(1, 9)
    pivots = scipy.qr(values - values.mean(0), mode="r", pivoting=True)[1]
    assert telling_columns(torch.from_numpy(values), count).tolist() == sorted(pivots[:count].tolist())


def test_columns_without_variance_are_chosen_last():
    values = torch.zeros(10, 4)
    values[:, 2] = torch.arange(10.0)
    assert 2 in telling_columns(values, 1)
    assert len(set(telling_columns(values, 3).tolist())) == 3
