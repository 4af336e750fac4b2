"""The files through which the launching process and the workers communicate."""

from __future__ import annotations

from pathlib import Path

from smollm3_ray.folder import RunFolder, run_folder
from smollm3_ray.worker import HELD_OUT, RayObserver, Work, output_to

from smollm3_finetune.api import Launch


def test_a_launch_begins_with_an_empty_folder_and_leaves_none(tmp_path: Path) -> None:
    RunFolder(tmp_path).create()
    RunFolder(tmp_path).ask_to_stop()
    with run_folder(tmp_path) as folder:
        assert not folder.stop_asked()
        assert not folder.has_stepped()
        assert folder.measurements() == []
    assert not folder.path.exists()
    folder.ended(stopped=True)  # of a worker that outlives its launch: nothing is written
    assert not folder.path.exists()


def test_lines_are_returned_once_and_whole(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        with output_to(folder):
            print("one\n\ntwo")
            print("three", end="")
        assert folder.new_lines() == ["one", "two"]
        folder.say("")
        assert folder.new_lines() == ["three"]
        assert folder.new_lines() == []


def observer_of(folder: RunFolder, *, first: bool = True, every: int = 2) -> tuple[RayObserver, list[tuple[int, bool]]]:
    """An observer, and what it reports to Ray: the steps, and whether there is a checkpoint."""
    sent: list[tuple[int, bool]] = []
    work = Work(
        launch=Launch(run=folder.path.parents[1], command=("python",)), report_every=every, links=str(folder.path)
    )

    def send(values: dict[str, float], **more: object) -> None:
        sent.append((int(values["step"]), "checkpoint" in more))

    return RayObserver(work, folder, first, send), sent


def test_all_workers_report_after_the_same_steps(tmp_path: Path) -> None:
    """A report waits for all workers: one that reports more often would wait forever."""
    with run_folder(tmp_path) as folder:
        (one, of_one), (two, of_two) = observer_of(folder), observer_of(folder, first=False)
        for step, loss in enumerate([None, None, 3.5, None, None], start=1):
            values = {"loss": 1.0} | ({} if loss is None else {HELD_OUT: loss})
            assert one.measured(step, values)
            assert two.measured(step, values)
        assert [step for step, _ in of_one] == [step for step, _ in of_two] == [2, 3, 4]
        assert folder.measurements() == [{"step": 3, HELD_OUT: 3.5}]
        assert folder.has_stepped()


def test_a_request_to_stop_reaches_the_run_after_its_step(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        observer, _ = observer_of(folder)
        assert observer.measured(1, {"loss": 1.0})
        folder.ask_to_stop()
        assert not observer.measured(2, {"loss": 1.0})


def test_an_answer_keeps_a_request_to_stop(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        folder.ask_to_stop()
        folder.answer(2)
        assert folder.stop_asked()
        assert folder.answered() == 2


def test_an_unfinished_line_is_read_later(tmp_path: Path) -> None:
    with run_folder(tmp_path) as folder:
        assert folder.measured(1, {HELD_OUT: 2.0}) == 1
        with (folder.path / "measured.jsonl").open("a") as file:
            file.write('{"step": 2, "held')
            file.flush()
            assert folder.measurements() == [{"step": 1, HELD_OUT: 2.0}]
