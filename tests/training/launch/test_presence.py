"""The notes of a run's processes say who lives, who left and why, and who ended without a note."""

import signal
import time

import pytest
from processes import PATIENCE

from clipseq.errors import ConfigError
from clipseq.training import RunFolder
from clipseq.training.launch.presence import Presence, remove_notes

ENTERS = """
import time
from pathlib import Path
from clipseq.training import RunFolder
from clipseq.training.launch.presence import Presence
presence = Presence(RunFolder(Path({folder!r})), {rank}, 4)
presence.enter()
if {rank} == 1:
    presence.leave("no signal 📡")
if {rank} == 2:
    presence.leave("rank 1 is gone", (1,))
if {rank} == 3:
    time.sleep(600)
"""


def enter(fork, folder, rank):
    return fork(ENTERS.format(folder=str(folder.root), rank=rank))


def wait_for(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_it_is_known_who_lives_and_why_the_others_do_not(fork, tmp_path):
    folder = RunFolder(tmp_path / "runs" / "mine")
    mine = Presence(folder, 0, 4)
    mine.enter()
    for rank in (1, 2):
        assert enter(fork, folder, rank).ended()[0] == 0
    lives = enter(fork, folder, 3)
    wait_for(lambda: (folder.processes / "rank-3.json").exists())
    assert [(n.rank, n.reason, n.missing) for n in mine.notes()] == [
        (1, "no signal 📡", ()),
        (2, "rank 1 is gone", (1,)),
    ]
    time.sleep(0.2)
    assert mine.ended() == []
    lives.send(signal.SIGKILL)
    wait_for(mine.ended)
    assert [(note.rank, note.pid) for note in mine.ended()] == [(3, lives.pid)]
    mine.leave()
    assert not folder.root.exists()  # nothing else was in it


def test_a_folder_of_the_user_stays_and_notes_of_an_earlier_start_go(fork, tmp_path):
    folder = RunFolder(tmp_path)
    left = folder.processes / "rank-1.json"
    enter(fork, folder, 1).ended()
    other = enter(fork, folder, 3)
    wait_for(lambda: (folder.processes / "rank-3.json").exists())
    mine = Presence(folder, 0, 4)
    assert [note.rank for note in mine.notes()] == [1]
    Presence(folder, 1, 4).enter()
    assert mine.notes() == []  # that was an earlier process of rank 1
    wait_for((folder.processes / "rank-3.json").read_text)
    remove_notes(folder)
    assert folder.processes.exists()  # rank 3 lives
    assert not left.exists()
    other.send(signal.SIGKILL)
    other.ended()
    mine.leave()
    assert tmp_path.is_dir()
    assert not folder.processes.exists()


def test_a_folder_in_use_is_refused(fork, tmp_path):
    folder = RunFolder(tmp_path)
    other = enter(fork, folder, 3)
    wait_for(lambda: (folder.processes / "rank-3.json").exists())
    wait_for((folder.processes / "rank-3.json").read_text)
    with pytest.raises(ConfigError, match=f"got .*, in which process {other.pid} on .* trains"):
        Presence(folder, 3, 4).enter(patience=0.3)


def test_a_disk_that_cannot_be_written_stops_nobody(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    presence = Presence(RunFolder(tmp_path / "file"), 0, 2)
    presence.enter()
    assert presence.notes() == presence.ended() == []
    presence.leave("an error")
    presence.leave()
