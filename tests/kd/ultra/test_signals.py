"""The signal stack after OpenVINO has had it."""

import os
import signal
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from kd.device.int8 import quiet_log
from kd.ultra.session import silence
from kd.ultra.signals import signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux' stack_t")


@pytest.mark.parametrize("around", [silence, quiet_log])
def test_models_released_in_turn_leave_the_signal_stack_as_it_was(around):
    openvino = pytest.importorskip("openvino", reason="needs the extra device")
    from openvino import opset13

    def load():
        with around():
            x = opset13.parameter([1, 4])
            return openvino.Core().compile_model(openvino.Model([opset13.relu(x)], [x]), "CPU")

    before = signal_stack()
    models = [load(), load()]
    while models:
        models.pop(0)
    after = signal_stack()
    assert (after.address, after.flags, after.size) == (before.address, before.flags, before.size)
    handled = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert handled == [True]
