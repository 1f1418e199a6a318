"""What the command writes, where it cannot, and how it ends: all of it or nothing, one line, the right code."""

import io
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redge_guidance.cli import main
from redge_guidance.cli.files import Target, check_targets, write_all
from tests.helpers import started
from tests.helpers.image_rewards import classifier
from tests.helpers.images import tiny_image_pipeline

FAST = ["generate", "--samples-per-prompt", "2", "--num-inference-steps", "2", "--label", "negative"]


def write(content, *names):
    targets = [Target("--json", str(name)) for name in names]
    check_targets(targets)
    write_all([(target, content) for target in targets])


@given(mode=st.sampled_from([0o600, 0o640, 0o644, 0o666, 0o755, 0o400 | 0o200]), umask=st.sampled_from([0o22, 0o77, 0]))
def test_a_file_keeps_its_permissions_and_a_new_one_has_the_usual(mode, umask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    (folder / "old").write_text("old")
    (folder / "old").chmod(mode)
    before = os.umask(umask)
    try:
        write(b"new", folder / "old", folder / "new")
        (folder / "usual").write_text("")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in os.listdir(folder)}
    assert modes == {"old": mode, "new": modes["usual"], "usual": 0o666 & ~umask}
    assert (folder / "old").read_bytes() == b"new"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("new")
    write(b"new", tmp_path / "link", tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "file").read_bytes() == (tmp_path / "new").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "link", "new"]


def test_a_device_stays_a_device(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root could replace one")
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        node.open("wb").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    assert main([*FAST, "--json", str(node)]) == 0
    assert stat.S_ISCHR(node.stat().st_mode)
    assert os.listdir(tmp_path) == ["null"]


def test_a_pipe_is_written_through(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write(b"x" * 200_000, pipe)
    reader.join(20)
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_that_is_a_file_gets_records_and_report(tmp_path):
    with (tmp_path / "all").open("wb") as stream:
        assert ending([*FAST, "--json", "/dev/stdout"], stream.fileno(), 2) == 0
    lines = (tmp_path / "all").read_text().splitlines()
    assert len(lines) == 4
    assert [json.loads(line)["text"] for line in lines[:2]] == lines[2:]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("",), "must name a file, got ''"),
        (("here/",), "must name a file"),
        ((".",), "must name a file"),
        (("no/file",), "must name a file in an existing folder"),
        (("n" * 300,), "File name too long"),
        (("loop",), "symbolic links"),
        (("socket",), "got the socket"),
        (("folder",), "got the folder"),
        (("a\0b",), "must name a file"),
        (("/proc/nothing",), "must name a file that can be written"),
        (("one", "./one"), "must name different files"),
        (("link", "old"), "must name different files"),
        (("hard", "old"), "must name different files"),
    ],
)
def test_what_cannot_be_written_is_known_before_the_work(names, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_text("old")
    os.link("old", "hard")
    os.symlink("old", "link")
    os.symlink("loop", "loop")
    os.mkdir("folder")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    before = sorted(os.listdir())
    with pytest.raises(ValueError, match=message) as error:
        check_targets([Target("--json", name) for name in names])
    assert "`--json`" in str(error.value)
    assert sorted(os.listdir()) == before


def test_a_write_protected_file_is_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("old")
    monkeypatch.setattr(os, "access", lambda *args: False)  # as for everybody but root
    with pytest.raises(ValueError, match="write-protected"):
        Target("--json", str(file))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_all_or_nothing(failing, tmp_path, monkeypatch):
    names = ["old", "new", "other"]
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o600)
    real, done = os.replace, []

    def replace(*args):
        done.append(args)
        if len(done) == failing + 1:
            raise OSError(5, "Input/output error")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output error"):
        write(b"x", *(tmp_path / name for name in names))
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o600


def test_nothing_is_replaced_where_a_device_is_full(tmp_path):
    (tmp_path / "old").write_text("old")
    with pytest.raises(OSError, match=r"`--json` /dev/full could not be written: No space left on device"):
        write(b"x", tmp_path / "old", "/dev/full")
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_the_records_stay_away_when_the_sheet_fails(tmp_path, monkeypatch, capsys):
    tiny_image_pipeline().save_pretrained(tmp_path / "masked")
    reward = classifier()
    for part in (reward.model, reward.processor):
        part.save_pretrained(tmp_path / "classifier")
    (tmp_path / "out").mkdir()
    models = ["--model", str(tmp_path / "masked"), "--reward", str(tmp_path / "classifier"), "--label", "cat"]
    files = ["--json", str(tmp_path / "out/a.jsonl"), "--out", str(tmp_path / "out/a.png")]

    def fail(*args):
        raise OSError("no font")

    monkeypatch.setattr("redge_guidance.cli.images._plot", fail)
    capsys.readouterr()
    assert main(["generate", *models, *FAST[1:5], *files]) == 2
    assert capsys.readouterr().err == "redge-guidance: error: no font\n"
    assert os.listdir(tmp_path / "out") == []
    assert main(["generate", *models, *FAST[1:5], "--json", files[3], "--out", files[3]]) == 2
    assert "must name different files" in capsys.readouterr().err


def ending(arguments, stdout, stderr, encoding="utf-8"):
    """Exit code of the command with these descriptors, in a child of this process, which has loaded everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child does not use
        child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)  # as in `tests.helpers.processes`
            os.dup2(stderr, 2)
            os.dup2(stdout, 1) if stdout is not None else os.close(1)
            sys.stdout = None if stdout is None else open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
            try:
                code = main(arguments)
            except SystemExit as stop:
                code = stop.code
            if sys.stdout is not None:
                sys.stdout.flush()  # as an interpreter does at its end
        finally:
            os._exit(code)
    return started.wait(child)


def gone():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def full():
    return os.open("/dev/full", os.O_WRONLY)


CAFE = "Café [MASK]"
FULL = "standard output could not be written: No space left on device"


@pytest.mark.parametrize(
    ("more", "opened", "code", "message"),
    [
        ([], gone, 141, None),
        (["--help"], gone, 141, None),
        ([], full, 2, FULL),
        (["--help"], full, 2, FULL),
        ([], lambda: None, 0, None),
        (["--prompt", CAFE], None, 0, None),
        (["--prompt", CAFE.encode().decode("ascii", "surrogateescape")], None, 0, None),  # as LC_ALL=C
        (["--prompt", "\udcff\udcfe"], None, 2, r"`--prompt` must be text in UTF-8, got b'\xff\xfe'"),
        (["--want", "\ud800"], None, 2, r"`--want` must be text in UTF-8"),
    ],
)
def test_how_it_ends(more, opened, code, message, tmp_path):
    stdout = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT) if opened is None else opened()
    with (tmp_path / "err").open("wb") as stderr:
        found = ending([*FAST, *more], stdout, stderr.fileno(), "utf-8" if opened else "ascii")
    if stdout is not None:
        os.close(stdout)
    err = (tmp_path / "err").read_text()
    assert (found, err.count("\n")) == (code, 0 if message is None else 1), err
    assert message is None or message in err
    if opened is None and code == 0:
        assert (tmp_path / "out").read_text("ascii").startswith("Caf\\xe9")


def test_nobody_can_be_told(tmp_path):
    stdout, stderr = os.open(os.devnull, os.O_WRONLY), full()
    assert ending(["generate", "--seed", "x"], stdout, stderr) == 2
    assert ending(["generate", "--model", "./nope"], stdout, stderr) == 2


def test_a_reader_that_goes_away_in_a_shell():
    line = f"{sys.executable} -m redge_guidance.cli --help | true; exit ${{PIPESTATUS[0]}}"
    done = started.run(["bash", "-c", line])
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interr")]
)
@pytest.mark.parametrize("where", ["images._plot", "files._write_part", "generating.say"])
def test_a_signal_leaves_nothing_half_done_and_says_what_is_true(
    number, code, word, where, tmp_path, capsys, monkeypatch
):
    """While plotting, while writing, and when all is written and is being said."""
    module, _, name = f"redge_guidance.cli.{where}".rpartition(".")
    real = getattr(sys.modules[module], name)

    def stopped(*args):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        return real(*args)

    monkeypatch.setattr(sys.modules[module], name, stopped)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    if where == "images._plot":
        more = ["--model", "builtin:mnist-masked", "--reward", "builtin:mnist-classifier", "--label", "7"]
        more += ["--out", str(tmp_path / "a.png")]
    else:
        more = ["--json", str(tmp_path / "a.jsonl")]
    assert main([*FAST, *more]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert word in err
    written = where == "generating.say"
    assert ("nothing was written" in err) is not written
    assert os.listdir(tmp_path) == (["a.jsonl"] if written else [])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_records_of_undecodable_names_are_json(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert main([*FAST, "--json", name]) == 0
    with open(name, encoding="utf-8") as file:
        assert len([json.loads(line) for line in file]) == 2


def test_a_narrow_terminal_is_no_error(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    assert main([*FAST, "--prompt", "ΩΩ é [MASK]"]) == 0
    assert out.buffer.getvalue().decode("latin-1").count("é") >= 2


def test_records_alone_on_standard_output(tmp_path):
    streams = [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("stdout", "stderr")]
    assert ending([*FAST, "--json", "-"], *streams) == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "stdout").read_text().splitlines()]
    assert len(texts) == 2
    assert [line for line in (tmp_path / "stderr").read_text().splitlines() if line] == texts
    assert not os.path.exists("-")
