import subprocess
import sys

import pytest
import torch

from engine.device import detect_hardware, device_types, pick_device
from engine.errors import SpecError


def test_the_machine_s_best_device_is_picked() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == expected
    assert pick_device("auto") == pick_device()
    assert pick_device("cpu").type == "cpu"
    assert device_types()[0] == expected
    assert device_types()[-1] == "cpu"


@pytest.mark.parametrize("wanted", ["cuda:99", "warp", "meta", "1"])
def test_a_device_that_is_not_there_is_refused_with_what_is(wanted: str) -> None:
    with pytest.raises(SpecError, match=f"device '{wanted}' cannot be used here; expected one of: .*cpu"):
        pick_device(wanted)


def test_the_hardware_says_what_not_whose() -> None:
    hardware = detect_hardware(torch.device("cpu"))
    assert hardware.device == "cpu"
    assert hardware.name
    assert hardware.cores >= 1
    assert hardware.hardware_class.startswith("cpu/")
    assert hardware.vram_gb is None


def test_the_module_is_imported_without_torch() -> None:
    program = "import sys, engine.device; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
