"""Broken input, wrong settings, full disks, killed processes: named, and nothing half-written."""

from __future__ import annotations

import gzip
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from text_fixtures import REPOSITORY, assert_dataset, english, train_bpe, write_jsonl

from megacore import cli
from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.preprocess.config import PreprocessConfig, PreprocessTokenizerConfig
from megacore.data.preprocess.run import preprocess
from megacore.errors import ConfigError, DataError, MegacoreError

NULL = PreprocessTokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=100)


def prepare(folder: Path, *inputs: Path | str, stream: io.StringIO | None = None, **options):
    config = PreprocessConfig(
        input=tuple(map(str, inputs)), output_prefix=str(folder / "out"), **{"workers": 2} | options
    )
    return preprocess(config, NULL, stream=stream or io.StringIO())


def outputs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("out"))


GOOD = b'{"text": "1 2"}'
BROKEN = {
    "not json": (b"{text: 1}", "not valid JSON"),
    "cut off": (b'{"text": "1', "not valid JSON"),
    "two values": (GOOD + GOOD, "not valid JSON"),
    "a list": (b'["1"]', "expected a JSON object, found list"),
    "other key": (b'{"body": "1"}', r"no key 'text' \(keys: body\)"),
    "a number": (b'{"text": 5}', "expected a string, found int"),
    "null": (b'{"text": null}', "expected a string, found null"),
    "list with null": (b'{"text": ["1", null]}', "expected a string, found null"),
    "an object": (b'{"text": {"a": "1"}}', "expected a string, found dict"),
    "surrogate": (b'{"text": "\\ud800"}', "lone surrogate"),
    "latin-1": (b'{"text": "\xe9"}', "not UTF-8"),
    "no number": (b'{"text": "1 x"}', "expected integers"),
    "beyond": (b'{"text": "1 101"}', "token id 101 is outside"),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_line_stops_and_is_named(tmp_path, what, workers):
    line, message = BROKEN[what]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", GOOD, line, GOOD]))
    with pytest.raises(DataError, match=rf"in\.jsonl: line 4: .*{message}.*--on-error skip"):
        prepare(tmp_path, path, workers=workers)
    assert outputs(tmp_path) == []


def test_broken_lines_can_be_skipped(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [line for line, _ in BROKEN.values()]
    path.write_bytes(b"\n".join([GOOD, *lines, GOOD, *lines, GOOD, *lines]))
    stream = io.StringIO()
    (prefix,) = prepare(tmp_path, path, on_error="skip", stream=stream)
    assert_dataset(prefix, [[[1, 2]]] * 3)
    shown = stream.getvalue()
    assert f"skipped {path}: line 2: not valid JSON" in shown
    assert shown.count("skipped ") == 20, "only the first ones are shown"
    assert f"Skipped {3 * len(lines)} broken records." in shown


def test_the_first_broken_line_is_named_whoever_finds_it(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [b'{"text": "1 2 3", "pad": "%s"}' % (b"x" * 500)] * 4000
    lines[1717] = lines[3000] = b"{"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"in\.jsonl: line 1718:"):
        prepare(tmp_path, path, workers=4)


def test_skipping_with_partitions_counts_broken_lines(tmp_path):
    rows = ["1", "2", "x", "4", "5", "6"]
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in rows])
    (prefix,) = prepare(tmp_path, path, on_error="skip", partitions=2)
    assert_dataset(prefix, [[[1]], [[5]], [[2]], [[4]], [[6]]])


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_no_document_is_an_error(tmp_path, content):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"in\.jsonl: no documents found"):
        prepare(tmp_path, path)
    assert outputs(tmp_path) == []


def test_nothing_but_broken_lines_is_an_error(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{\n{\n")
    with pytest.raises(DataError, match="2 broken records"):
        prepare(tmp_path, path, on_error="skip")


@pytest.mark.parametrize("extension", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["cut", "plain", "empty"])
def test_damaged_compressed_files_are_named(tmp_path, extension, damage):
    import bz2
    import lzma

    import zstandard

    compress = {
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }[extension]
    plain = b"\n".join(b'{"text": "%d 2"}' % (i % 100) for i in range(2000))
    packed = {"cut": compress(plain)[:-20], "plain": plain, "empty": b""}[damage]
    path = tmp_path / f"in.jsonl{extension}"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=rf"in\.jsonl\{extension}"):
        prepare(tmp_path, path)
    assert outputs(tmp_path) == []


def test_wrong_parquet_files_are_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"in\.parquet: cannot read the Parquet file"):
        prepare(tmp_path, path)
    parquet.write_table(pyarrow.table({"body": ["1"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"no column text \(columns: body, n\)"):
        prepare(tmp_path, path)
    parquet.write_table(pyarrow.table({"text": ["1", None]}), path)
    with pytest.raises(DataError, match=r"in\.parquet: row 2: key 'text'"):
        prepare(tmp_path, path)


def test_missing_inputs_and_folders(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "1"}])
    with pytest.raises(DataError, match="no such input file"):
        prepare(tmp_path, tmp_path / "no*.jsonl")
    with pytest.raises(DataError, match="found a folder"):
        prepare(tmp_path, tmp_path)
    with pytest.raises(DataError, match="out_text_document"):
        prepare(tmp_path / "nowhere", path)
    (tmp_path / "in.txt").write_text("1")
    with pytest.raises(DataError, match="plain text has no keys"):
        prepare(tmp_path, tmp_path / "in.txt", json_keys=("a", "b"))
    with pytest.raises(DataError, match=r"--lang klingon.*english"):
        prepare(tmp_path, path, split_sentences=True, lang="klingon")


def test_eod_that_is_not_there_is_found_before_any_work(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    tokenizer = PreprocessTokenizerConfig(
        tokenizer_type="BertWordPieceCase", vocab_file=str(tmp_path / "vocab.txt")
    )
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    config = PreprocessConfig(
        input=(str(path),), output_prefix=str(tmp_path / "out"), append_eod=True
    )
    with pytest.raises(DataError, match="end-of-document"):
        preprocess(config, tokenizer, stream=io.StringIO())
    assert outputs(tmp_path) == []


def test_a_worker_that_dies_ends_the_run(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "1"}] * 10)
    from megacore.data.preprocess import encode

    monkeypatch.setattr(
        encode.Encoder, "__call__", lambda self, chunk: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(MegacoreError, match="a worker process died"):
        prepare(tmp_path, path)
    assert outputs(tmp_path) == []


# ----- the command line


def run(*words: object, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(REPOSITORY / "tools" / "preprocess_data.py")]
    if limit_bytes is not None:
        # A file size limit behaves as a full disk: writing fails in the middle.
        program = [
            sys.executable,
            "-c",
            "import resource, runpy, sys\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n",
            program[1],
        ]
    return subprocess.run(
        [*program, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_megatron_command_line_runs_unchanged(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"body": "1 2"}, {"body": "3"}])
    done = run(
        *("--input", path, "--json-key", "body", "--output-prefix", tmp_path / "out"),
        *("--tokenizer-type", "NullTokenizer", "--workers", 1, "--append-eod", "--log_interval", 1),
    )
    assert done.returncode == 0, done.stderr
    # The script's default of 786 ids.
    assert_dataset(tmp_path / "out_body_document", [[[1, 2, 786]], [[3, 786]]])
    assert "Processed 2 documents (" in done.stderr
    assert " docs/s, " in done.stderr
    assert " MB/s)." in done.stderr


def test_progress_goes_to_stderr_by_the_interval(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "1 " * 300}] * 2000)
    stream = io.StringIO()
    prepare(tmp_path, path, log_interval=500, stream=stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("Processed ") for line in lines)
    assert all("%, ETA " in line for line in lines[:-1])
    assert lines[-1].startswith("Processed 2000 documents")


def test_what_is_missing_is_said_at_once():
    done = run("--workers", 0)
    assert done.returncode == 2
    for flag in ("--input", "--output-prefix", "--tokenizer-type", "--workers"):
        assert flag in done.stderr
    assert "Traceback" not in done.stderr


def test_required_settings_are_faults_in_python_too():
    faults = [*PreprocessConfig().faults(), *PreprocessTokenizerConfig().faults()]
    assert {name for fault in faults for name in fault.given} >= {"--input", "--tokenizer-type"}
    with pytest.raises(ConfigError):
        PreprocessTokenizerConfig(tokenizer_type="GPT2BPETokenizer").resolved()


def test_a_full_disk_leaves_nothing(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "1 2 3 4 5 6 7 8 " * 100}] * 2000)
    done = run(
        *("--input", path, "--output-prefix", tmp_path / "out"),
        *("--tokenizer-type", "NullTokenizer", "--workers", 2),
        limit_bytes=1_000_000,
    )
    assert done.returncode == 1, done.stderr
    assert "out_text_document" in done.stderr
    assert "Traceback" not in done.stderr
    assert outputs(tmp_path) == []


def test_memory_does_not_grow_with_the_file(tmp_path):
    """240 MB of input, packed into a few hundred kilobytes, through processes of bounded size."""
    line = b'{"text": "1 2 3"%s}\n' % (b" " * 1000)
    path = tmp_path / "in.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(240):
            file.write(line * 1000)
    program = (
        "import resource, sys\n"
        "from megacore.data.preprocess.cli import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"main(['--input', {str(path)!r}, '--output-prefix', {str(tmp_path / 'out')!r},"
        " '--tokenizer-type', 'NullTokenizer', '--workers', '2', '--log-interval', '100000'])\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print((after - before) / 1024, workers / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    grown, workers = map(float, done.stdout.split("\n")[-2].split())
    assert grown < 100, done.stdout
    assert workers < 200, done.stdout
    assert len(IndexedDataset(str(tmp_path / "out_text_document"))) == 240_000


def test_preparing_text_imports_no_torch(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "1"}])
    program = (
        "import sys\n"
        "from megacore import cli\n"
        f"code = cli.main(['preprocess', '--input', {str(path)!r}, '--output-prefix',"
        f" {str(tmp_path / 'out')!r}, '--tokenizer-type', 'NullTokenizer'])\n"
        "wrong = {'torch', 'transformers', 'nltk', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert code == 0 and not wrong, wrong\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


# ----- killed at any moment


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory):
    """Input, the old output and the new output of a run that takes about a second."""
    folder = tmp_path_factory.mktemp("killed")
    files = train_bpe(folder / "bpe")
    old = write_jsonl(folder / "old.jsonl", [{"text": "the old state", "b": "old"}])
    rows = [{"text": text, "b": text[:100]} for text in english() * 3]
    new = write_jsonl(folder / "new.jsonl", rows)

    def command(path: Path, out: Path) -> list[str]:
        return [
            *(sys.executable, str(REPOSITORY / "tools" / "preprocess_data.py")),
            *("--input", str(path), "--output-prefix", str(out), "--json-keys", "text", "b"),
            *("--tokenizer-type", "GPT2BPETokenizer", "--workers", "2", "--partitions", "2"),
            *("--vocab-file", files[0], "--merge-file", files[1], "--append-eod"),
        ]

    states = []
    for path in (old, new):
        subprocess.run(command(path, folder / "out"), check=True, capture_output=True)
        states.append({p.name: p.read_bytes() for p in folder.glob("out*")})
    begin = time.monotonic()
    subprocess.run(command(new, folder / "timed"), check=True, capture_output=True)
    return command, old, new, states, time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_a_killed_run_leaves_the_old_or_the_new_state(two_states, tmp_path, number):
    command, old, new, (before, after), duration = two_states
    random_ = random.Random(7 + number)
    out = tmp_path / "out"
    subprocess.run(command(old, out), check=True, capture_output=True)
    interrupted = 0
    for round_ in range(7):
        # Spread over the run; the last moments, when files are published, twice.
        moment = duration * (random_.uniform(0.9, 1.05) if round_ > 4 else random_.random())
        process = subprocess.Popen(
            command(new, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(moment)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        interrupted += process.returncode != 0
        if number == signal.SIGTERM:
            assert process.returncode in (0, 143, -signal.SIGTERM), stderr
            assert b"Traceback" not in stderr
        for key in ("text", "b"):
            name = f"out_{key}_document"
            # Opening completes what was committed; each pair is whole, and one of the two.
            IndexedDataset(str(tmp_path / name))
            found = tuple((tmp_path / f"{name}{end}").read_bytes() for end in (".bin", ".idx"))
            states = [tuple(s[f"{name}{end}"] for end in (".bin", ".idx")) for s in (before, after)]
            assert found in states
        if number == signal.SIGTERM and process.returncode == 143:
            assert not list(tmp_path.glob("*.partial"))
        subprocess.run(command(old, out), check=True, capture_output=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(before), "stale files stay"
    assert interrupted >= 2


def test_two_runs_of_one_output_do_not_mix(tmp_path):
    from megacore.data.indexed_dataset import IndexedDatasetWriter

    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "1"}])
    other = IndexedDatasetWriter(str(tmp_path / "out_text_document"), "uint16")
    with pytest.raises(DataError, match="out_text_document"):
        prepare(tmp_path, path)
    other.add_document([7])
    other.finalize()
    assert_dataset(tmp_path / "out_text_document", [[[7]]])


def test_verbs_share_the_exit_codes(tmp_path, capsys):
    assert cli.main(["preprocess", "--input", "x", "--tokenizer-typ", "NullTokenizer"]) == 2
    missing = ["--input", str(tmp_path / "no"), "--output-prefix", str(tmp_path / "out")]
    assert cli.main(["preprocess", *missing, "--tokenizer-type", "NullTokenizer"]) == 1
    assert "no such input file" in capsys.readouterr().err
