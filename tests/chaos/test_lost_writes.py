"""Row 2: the power goes off. What had not been synced is lost, in any combination.

A trace of a real save is played back on a model of a file system that keeps what POSIX says it
must: the bytes of a file as of its last fsync, the names of a folder as of the folder's last one.
Everything since may be there or not, name by name.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastrot.errors import StorageError
from fastrot.runs.checkpoint import newest_checkpoint
from tests.chaos.children import RUN_ID
from tests.conftest import FaultLog
from tests.program import Server, need_strace

CALLS = "openat,creat,mkdir,rename,renameat,renameat2,unlink,unlinkat,rmdir,write,pwrite64,fsync"
WHERE = re.compile(r"\d+<([^>]*)>")  # strace -y: a descriptor and its path


@dataclass
class Disk:
    """Names and contents, durable or not.

    Attributes:
        inodes: name now -> inode, for everything below the root.
        durable: the same as it is sure to be found after the power went off.
        synced: inodes of files whose bytes are sure.
        pending: changes of names that no fsync of their folder has made sure, in order.
    """

    root: str
    inodes: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    synced: set[int] = field(default_factory=set)
    folders: set[int] = field(default_factory=set)
    pending: list[tuple[str, str]] = field(default_factory=list)  # (name, what happened)
    count: int = 0

    def make(self, name: str, *, folder: bool = False) -> None:
        self.count += 1
        self.inodes[name] = self.count
        if folder:
            self.folders.add(self.count)

    def rename(self, old: str, new: str) -> None:
        moved = {k: v for k, v in self.inodes.items() if k == old or k.startswith(old + "/")}
        for name in moved:
            del self.inodes[name]
        self.inodes |= {new + name.removeprefix(old): inode for name, inode in moved.items()}

    def remove(self, name: str) -> None:
        self.inodes.pop(name, None)

    def sync(self, name: str) -> None:
        inode = self.inodes.get(name)
        if inode is None:
            return
        self.synced.add(inode)
        if inode in self.folders:
            self._sync_names(name)

    def _sync_names(self, folder: str) -> None:
        """The names in a folder are now sure; what is below them keeps what it had."""
        was = {inode: name for name, inode in self.durable.items()}
        for name in [k for k in self.durable if parent(k) == folder]:
            if name not in self.inodes:
                for below in [k for k in self.durable if k == name or k.startswith(name + "/")]:
                    del self.durable[below]
        for name, inode in list(self.inodes.items()):
            if parent(name) != folder:
                continue
            old = was.get(inode)
            self.durable[name] = inode
            if inode in self.folders and old is not None and old != name:
                for below, its in list(self.durable.items()):
                    if below.startswith(old + "/"):
                        self.durable[name + below.removeprefix(old)] = its
            # A folder synced before its own name was: its names are sure with it.
            if inode in self.folders and inode in self.synced:
                for below, its in self.inodes.items():
                    if below.startswith(name + "/"):
                        self.durable[below] = its

    def after_power_cut(self) -> Iterator[tuple[dict[str, int], bool]]:
        """States that may be found: names, and whether bytes that were not synced are there."""
        for bytes_there in (False, True):
            yield self.durable, bytes_there
            yield self.inodes, bytes_there
        # Each change of a name alone: the rename without the rest, or the rest without it.
        for name in set(self.inodes) ^ set(self.durable):
            single = dict(self.durable)
            if name in self.inodes:
                single |= {k: v for k, v in self.inodes.items()
                           if k == name or k.startswith(name + "/")}  # fmt: skip
            else:
                single = {k: v for k, v in single.items()
                          if k != name and not k.startswith(name + "/")}  # fmt: skip
            yield single, False


def parent(name: str) -> str:
    return name.rpartition("/")[0]


def played(trace: str, root: str) -> Iterator[tuple[str, Disk]]:
    """The disk after each call of a trace."""
    disk = Disk(root)
    disk.make(root, folder=True)
    disk.durable = dict(disk.inodes)
    for line in trace.splitlines():
        match = re.match(r"[\d.]+ (\w+)\((.*)\) += (-?\d+)", line)
        if match is None or int(match[3]) < 0:
            continue
        call, arguments = match[1], match[2]
        quoted = re.findall(r'"([^"]*)"', arguments)
        at = WHERE.match(arguments)
        if call in ("write", "pwrite64", "fsync"):
            name = at[1] if at else ""
        elif call == "unlinkat" or (call == "openat" and not quoted[0].startswith("/")):
            name = f"{at[1]}/{quoted[0]}" if at else quoted[0]
        else:
            name = quoted[0]
        if not (name == root or name.startswith(root + "/")):
            continue
        if call == "mkdir":
            disk.make(name, folder=True)
        elif call == "openat" and "O_CREAT" in arguments and name not in disk.inodes:
            disk.make(name)
        elif call in ("write", "pwrite64"):
            disk.synced.discard(disk.inodes[name])
        elif call == "fsync":
            disk.sync(name)
        elif call in ("rename", "renameat", "renameat2"):
            disk.rename(quoted[0], quoted[1])
        elif call in ("unlink", "unlinkat", "rmdir"):
            disk.remove(name)
        else:
            continue
        yield line, disk


@pytest.fixture(scope="module")
def saved(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The trace of two saves, and the folder they made."""
    need_strace()
    folder = tmp_path_factory.mktemp("power") / "checkpoints"
    done = server.run("tests.chaos.children:save_two", str(folder),
                      strace=["-y", "-s", "300", "-e", f"trace={CALLS}"])  # fmt: skip
    assert done.code == 0, done.text
    return done.trace, folder


def contents_of(folder: Path) -> dict[int, tuple[str, bytes]]:
    return {
        int(path.parent.name.removeprefix("step-")): (path.name, path.read_bytes())
        for path in folder.rglob("*.json")
    }


def test_every_file_is_synced_before_the_rename_and_the_folder_after_it(
    saved: tuple[str, Path], fault_log: FaultLog
) -> None:
    trace, folder = saved
    with fault_log(2):
        renames = 0
        unsynced: set[str] = set()
        for line in trace.splitlines():
            at = WHERE.search(line)
            if "write" in line.split("(")[0] and at and str(folder) in at[1]:
                unsynced.add(at[1])
            elif " fsync(" in line and at:
                unsynced.discard(at[1])
            elif re.match(r"[\d.]+ rename", line):
                old, new = re.findall(r'"([^"]*)"', line)
                if old in unsynced:  # within the temporary folder: the same file
                    unsynced = unsynced - {old} | {new}
                    continue
                renames += 1
                assert unsynced == set(), line
                unsynced.add(str(folder))
        assert renames == 2 and unsynced == set()


def test_after_a_power_cut_the_old_or_the_new_one_is_there(
    saved: tuple[str, Path], tmp_path: Path, fault_log: FaultLog
) -> None:
    """At every call; whatever is lost, the newest step whose save had returned is found."""
    trace, folder = saved
    root = str(folder.parent)
    states = 0
    finished = 0
    tried: set[object] = set()
    for line, disk in played(trace, root):
        if " fsync(" in line and line.split("<")[1].startswith(str(folder) + ">"):
            finished += 1  # the last call of a save
        for names, bytes_there in disk.after_power_cut():
            state = (finished, bytes_there, frozenset(names.items()), frozenset(disk.synced))
            if state in tried:
                continue
            tried.add(state)
            states += 1
            with fault_log(2) as trial:
                found = mount(names, bytes_there, disk, folder, tmp_path / str(states))
                trial.lost = int(found < finished)
                assert found >= finished, f"after {line}: step {found}, {finished} had been saved"
    assert finished == 2 and states > 40


def mount(names: dict[str, int], bytes_there: bool, disk: Disk, folder: Path, out: Path) -> int:
    """Make a state real and return the step that is found in it; 0 for none."""
    root = Path(disk.root)
    for name, inode in sorted(names.items()):
        target = out / Path(name).relative_to(root)
        if not target.parent.is_dir() and name != disk.root:
            continue  # its folder is not there
        if inode in disk.folders:
            target.mkdir(exist_ok=True)
            continue
        step = re.search(r"step-(\d+)", name)
        source = folder / f"step-{step[1]}" / target.name if step else None
        whole = source is not None and (inode in disk.synced or bytes_there)
        target.write_bytes(source.read_bytes() if whole and source.exists() else b"")
    try:
        found = newest_checkpoint(out / "checkpoints", RUN_ID)
    except StorageError:
        return -1
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return 0 if found is None else found.step


def test_the_model_loses_what_is_not_synced(tmp_path: Path) -> None:
    """A save without its syncs is found out: the model can fail."""
    root = str(tmp_path)
    calls = [
        f'1.0 mkdir("{root}/checkpoints", 0777) = 0',
        f"1.0 fsync(3<{root}>) = 0",
        f'1.0 mkdir("{root}/checkpoints/.step-1.tmp", 0777) = 0',
        f'1.0 openat(AT_FDCWD</>, "{root}/checkpoints/.step-1.tmp/a", O_WRONLY|O_CREAT) = 4',
        f'1.0 write(4<{root}/checkpoints/.step-1.tmp/a>, "x", 1) = 1',
        f'1.0 rename("{root}/checkpoints/.step-1.tmp", "{root}/checkpoints/step-1") = 0',
    ]
    *_, (_, disk) = played("\n".join(calls), root)
    states = list(disk.after_power_cut())
    assert any(f"{root}/checkpoints/step-1" not in names for names, _ in states)
    file = disk.inodes[f"{root}/checkpoints/step-1/a"]
    assert file not in disk.synced
    assert any(f"{root}/checkpoints/step-1/a" in names for names, _ in states)
    assert len(list(itertools.islice(states, 3))) == 3
