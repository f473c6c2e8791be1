import signal

import pytest

from engine.errors import LabError, RunCancelled, SpecError
from scripts.exit_code import command, stop_on_interrupt


def raising(error: BaseException):
    @command
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(("error", "code"), [(SpecError("'x' is wrong."), 1), (LabError("no."), 1), (RunCancelled("stopped."), 130)])
def test_an_error_of_ours_is_one_sentence_and_a_code(error: LabError, code: int, capsys: pytest.CaptureFixture[str]):
    assert raising(error)([]) == code
    captured = capsys.readouterr()
    assert captured.err == f"philab: {error}\n"
    assert captured.out == ""


def test_the_next_step_is_part_of_the_sentence(capsys: pytest.CaptureFixture[str]):
    raising(LabError("port 1 is taken.", next_step="Choose another one."))([])
    assert capsys.readouterr().err == "philab: port 1 is taken. Choose another one.\n"


def test_ctrl_c_is_130():
    assert raising(KeyboardInterrupt())([]) == 130


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())([])


def test_nothing_returned_is_success():
    assert command(lambda _: None)([]) == 0
    assert command(lambda _: 75)([]) == 75


def test_the_first_ctrl_c_asks_and_the_second_insists():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
