"""Files made to harm whoever opens them: data, archives, weights, configurations, templates.

Each is refused with a message that names it, or used without what is harmful in it.  In no case is anything executed,
written outside, or worked on for long.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from gro.config import load_config
from gro.data.encode import load_dataset
from gro.data.spec import DataSpec
from gro.errors import GroError
from gro.policy.loading import load
from tiny import tiny_model, tiny_tokenizer

SECONDS, MEMORY = 5.0, 600 << 20
"""Processor time and memory that one file may take; the templates' own limits are tested with them."""


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, (str(self.ran),)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model, loaded once, so that nothing is imported later on."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("qwen3").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    load(folder)
    return folder


# --- data -------------------------------------------------------------------------------------------------------------


def archive_zip(*names: str, size: int = 10) -> Callable[[Path, Path], None]:
    def write(path: Path, ran: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, b"\0" * size)

    return write


def archive_tar(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[Path, Path], None]:
    def write(path: Path, ran: Path) -> None:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member, io.BytesIO())

    return write


def pickled(path: Path, ran: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(ran)))


def script(path: Path, ran: Path) -> None:
    path.write_text(f"import os\nos.mkdir({str(ran)!r})\n")


def text(content: str | bytes) -> Callable[[Path, Path], None]:
    return lambda path, ran: (path.write_bytes(content if isinstance(content, bytes) else content.encode()), None)[1]


def folder_of_script(path: Path, ran: Path) -> None:
    path.mkdir()
    script(path / "rows.py", ran)
    (path / "dataset_infos.json").write_text("{}")


def parquet_with(metadata: dict[bytes, bytes]) -> Callable[[Path, Path], None]:
    """A column that says it is an extension type whose description is a pickle (CVE-2023-47248)."""

    def write(path: Path, ran: Path) -> None:
        filled = {k: v or pickle.dumps(Bomb(ran)) for k, v in metadata.items()}
        schema = pa.schema([pa.field("text", pa.string(), metadata=filled)])
        pq.write_table(pa.table({"text": ["A"]}, schema=schema), path)

    return write


def parquet_bomb(path: Path, ran: Path) -> None:
    """A few kilobytes that are 4 GB of text when they are read."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["x" * (20 << 20)]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)


def footer(path: Path, ran: Path) -> None:
    path.write_bytes(b"PAR1" + b"\0" * 64 + (2**31 - 1).to_bytes(4, "little") + b"PAR1")


def endless(path: Path, ran: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path, ran: Path) -> None:
    os.mkfifo(path)


DATA: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    # What it is: the name of the file, how it is made, words of the message ("": it may be used, without the harm).
    "zip with ../": ("rows.zip", archive_zip("../outside.jsonl"), "Unpack it first"),
    "zip bomb": ("rows.jsonl.zip", archive_zip("rows.jsonl", size=10 << 20), "Unpack it first"),
    "zip as JSONL": ("rows.jsonl", archive_zip("../../outside"), "a compressed file"),
    "zip as JSON": ("rows.json", archive_zip("/outside"), "a compressed file"),
    "zip as Parquet": ("rows.parquet", archive_zip("../outside"), "a damaged Parquet file"),
    "tar with ../": ("rows.tar", archive_tar("../outside.jsonl"), "Unpack it first"),
    "tar with an absolute path": ("rows.tar.gz", archive_tar("/tmp/outside.jsonl"), "Unpack it first"),
    "tar with a symbolic link": ("rows.tgz", archive_tar("rows.jsonl", tarfile.SYMTYPE, "/etc/passwd"), "Unpack"),
    "tar with a hard link": ("rows.tar", archive_tar("rows.jsonl", tarfile.LNKTYPE, "../x"), "Unpack it first"),
    "tar with a device": ("rows.tar", archive_tar("rows.jsonl", tarfile.CHRTYPE), "Unpack it first"),
    "gzip bomb": ("rows.jsonl.gz", lambda p, _: text(gzip.compress(b"\0" * (8 << 20)))(p, _), "Unpack it first"),
    "gzip as CSV": ("rows.csv", text(gzip.compress(b"text\nA\n")), "a compressed file"),
    "pickle": ("rows.pkl", pickled, "Pickle can run any code"),
    "pickle as JSONL": ("rows.jsonl", pickled, "line 1"),
    "pickle as Parquet": ("rows.parquet", pickled, "a damaged Parquet file"),
    "torch file": ("rows.pt", lambda p, ran: torch.save(Bomb(ran), p), "Pickle can run any code"),
    "array of objects": ("rows.npy", pickled, "the file type '.npy'"),
    "loading script": ("rows.py", script, "never executed"),
    "folder with a loading script": ("rows", folder_of_script, "rows.py in it is never executed"),
    "Arrow file": ("rows.arrow", pickled, "the file type '.arrow'"),
    "extension type with a pickle": (
        "rows.parquet",
        parquet_with({b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": b""}),
        "",
    ),
    "Parquet bomb": ("rows.parquet", parquet_bomb, "row 1"),
    "Parquet with a huge footer": ("rows.parquet", footer, "a damaged Parquet file"),
    "a link to endless zeros": ("rows.jsonl", endless, "a device, pipe or socket"),
    "a pipe": ("rows.json", pipe, "a device, pipe or socket"),
    "10⁵ levels": ("rows.json", text('[{"text": ' + "[" * 100_000), "nesting deeper"),
    "an integer of 10⁶ digits": ("rows.jsonl", text('{"text": ' + "9" * 1_000_000 + "}"), "1000000 digits"),
}


@pytest.mark.fault("D15", "D16", "D13")
@pytest.mark.parametrize("what", DATA)
def test_data(what: str, made: Path, tmp_path: Path) -> None:
    name, make, words = DATA[what]
    path, ran = tmp_path / "given" / name, tmp_path / "ran"
    path.parent.mkdir()
    make(path, ran)
    harmless(lambda: load_dataset(DataSpec(str(path)), tiny_tokenizer()), path, words, ran)


# --- models -----------------------------------------------------------------------------------------------------------


def edited(file: str, **changes: Any) -> Callable[[Path, Path], None]:
    def edit(folder: Path, ran: Path) -> None:
        value = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(value | changes))

    return edit


def with_code(file: str, name: str, **changes: Any) -> Callable[[Path, Path], None]:
    def edit(folder: Path, ran: Path) -> None:
        edited(file, **changes)(folder, ran)
        script(folder / name, ran)

    return edit


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    """The header of the weights changed, the data behind it as they were."""

    def edit(folder: Path, ran: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        found = json.loads(raw[8 : 8 + length])
        changed = change(found)
        new = (changed if isinstance(changed, str) else json.dumps(found)).encode()
        (folder / "model.safetensors").write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])

    return edit


NORM = "model.layers.1.post_attention_layernorm.weight"


def overlapping(found: dict[str, Any]) -> None:
    begin, end = found[NORM]["data_offsets"]
    found[NORM]["data_offsets"] = [begin - 8, end - 8]


def huge_header(folder: Path, ran: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((8 << 30).to_bytes(8, "little"))
        file.truncate(9 << 30)  # holes: nothing is on the disk


def unpacked(folder: Path, ran: Path) -> None:
    torch.save(Bomb(ran), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def beside(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, ran: torch.save(Bomb(ran), folder / name)


def index(weight_map: Any) -> Callable[[Path, Path], None]:
    def edit(folder: Path, ran: Path) -> None:
        save_file(load_file(folder / "model.safetensors"), folder.parent / "outside.safetensors")
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return edit


def template(source: str) -> Callable[[Path, Path], None]:
    return lambda folder, ran: ((folder / "chat_template.jinja").write_text(source), None)[1]


CODE = {"AutoModelForCausalLM": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Config"}
MODELS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "pickled weights": (unpacked, "unpickling can run code"),
    "a pickle beside the weights": (beside("pytorch_model.bin"), ""),
    "pickled training arguments": (beside("training_args.bin"), ""),
    "a model's code": (with_code("config.json", "modeling_mine.py", model_type="mine", auto_map=CODE), "never done"),
    "code beside a known kind": (with_code("config.json", "modeling_mine.py", auto_map=CODE), ""),
    "auto_map that is no map": (edited("config.json", model_type="mine", auto_map=["x.Y"]), "x.py"),
    "a tokenizer's code": (
        with_code(
            "tokenizer_config.json", "tok.py", auto_map={"AutoTokenizer": ["tok.T", "tok.F"]}, tokenizer_class="T"
        ),
        "",
    ),
    "a generation's code": (
        lambda f, ran: ((f / "custom_generate").mkdir(), script(f / "custom_generate" / "generate.py", ran))[1],
        "",
    ),
    "a kernel": (edited("config.json", _attn_implementation_internal="someone/kernel"), "a kernel to be downloaded"),
    "a kernel further in": (edited("config.json", text_config={"attn_implementation": "a/b"}), "a kernel to be"),
    "weights from outside": (index({NORM: "../outside.safetensors"}), "'../outside.safetensors'"),
    "weights from an absolute path": (index({NORM: "/etc/passwd"}), "'/etc/passwd'"),
    "an index that is no map": (index(["part.safetensors"]), "no weight_map"),
    "an index of numbers": (index({NORM: 3}), "no weight_map"),
    "an index of a pickle": (index({NORM: "pytorch_model.bin"}), "expected .safetensors files"),
    "a header of 8 GB": (huge_header, "found a header of 8589934592 bytes"),
    "a header of 2⁶⁴ bytes": (lambda f, _: text(b"\xff" * 64)(f / "model.safetensors", _), "truncated"),
    "a deep header": (header(lambda _: '{"a": ' + "[" * 100_000), "its safetensors header cannot be read"),
    "overlapping tensors": (header(overlapping), f"{NORM} is said to be at bytes"),
    "a negative place": (header(lambda h: h[NORM].update(data_offsets=[-8, 120])), f"{NORM} is said to be at"),
    "a shape without data": (header(lambda h: h[NORM].update(shape=[2**40])), f"tensor {NORM} has 128 bytes"),
    "a negative shape": (header(lambda h: h[NORM].update(shape=[-1, -32])), f"{NORM} is said to be at"),
    "an infinite shape": (header(lambda h: json.dumps(h).replace("[32]", "[1e999]", 1)), "cannot be read"),
    "10⁹ layers": (edited("config.json", num_hidden_layers=10**9, layer_types=None), "_layers is 1000000000; expected"),
    "500 layers": (edited("config.json", num_hidden_layers=500, layer_types=None), "num_hidden_layers is 500; "),
    "10¹² tokens": (edited("config.json", vocab_size=10**12), "vocab_size is 1000000000000"),
    "a width of text": (edited("config.json", hidden_size="x"), "config.json"),
    "a kind that is no text": (edited("config.json", model_type={"a": 1}), "is unknown"),
    "quantised by text": (edited("config.json", quantization_config="x"), "quantised"),
    "a configuration of 10⁵ levels": (lambda f, _: text('{"a": ' + "[" * 100_000)(f / "config.json", _), "not valid"),
    "a model as an archive": (lambda f, _: (shutil.rmtree(f), archive_zip("../x")(f, _))[1], "is a file; expected"),
}


@pytest.mark.fault("M1", "M2", "D15")
@pytest.mark.parametrize("what", MODELS)
def test_models(what: str, made: Path, tmp_path: Path) -> None:
    make, words = MODELS[what]
    folder, ran = tmp_path / "given", tmp_path / "ran"
    shutil.copytree(made, folder)
    make(folder, ran)
    harmless(lambda: load(folder), folder, words, ran)


TEMPLATES = {
    "reaches for a class": ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
    "reaches for globals": ("{{ cycler.__init__.__globals__.os.mkdir('ran') }}", "unsafe"),
    "reaches by a filter": ("{{ (''|attr('__class__')).__mro__ }}", "cannot be used"),
    "a file": ("{% include '/etc/passwd' %}", "cannot be used"),
    "a power": ("{{ 9 ** 9 ** 9 }}", "takes a power"),
    "20 GB": ("{{ ('x' * 20000000000)|length }}", "MemoryError"),
    "a range": ("{{ range(1000000000)|list|length }}", "Range too big"),
}


@pytest.mark.fault("M5")
@pytest.mark.parametrize("what", TEMPLATES)
def test_templates(what: str, made: Path, tmp_path: Path) -> None:
    source, words = TEMPLATES[what]
    (tmp_path / "given.jinja").write_text(source + "{% for m in messages %}{{ m.content }}{% endfor %}")
    (tmp_path / "rows.jsonl").write_text('{"prompt": [{"role": "user", "content": "A"}]}\n')
    spec = DataSpec(str(tmp_path / "rows.jsonl"), chat_template=str(tmp_path / "given.jinja"))
    harmless(lambda: load_dataset(spec, tiny_tokenizer()), tmp_path / "given.jinja", words, tmp_path / "ran")


RECIPES = {
    "python": "run: !!python/object/apply:os.mkdir ['RAN']",
    "python's name": "run: !!python/name:os.system",
    "aliases": "a: &a [x, x, x, x, x, x, x, x]\n"
    + "".join(f"b{i}: &a [*a, *a, *a, *a, *a, *a, *a]\n" for i in range(20)),
}


@pytest.mark.fault("C1")
@pytest.mark.parametrize("what", RECIPES)
def test_recipes(what: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(RECIPES[what].replace("RAN", str(tmp_path / "ran")))
    harmless(lambda: load_config(path), path, " ", tmp_path / "ran")


def harmless(use: Callable[[], object], path: Path, words: str, ran: Path) -> None:
    """Refused with these words and the path; "": used.  Nothing ran, nothing was written, nothing took long."""
    before, here = everything(path.parent), everything(Path.cwd(), 1)
    begun, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if words:
        with pytest.raises(GroError) as refused:
            use()
        assert path.name in str(refused.value)
        assert words in str(refused.value)
    else:
        use()
    assert time.process_time() - begun < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MEMORY
    assert not ran.exists(), "executed"
    assert everything(path.parent) == before, "written"
    assert everything(Path.cwd(), 1) == here, "written"


def everything(folder: Path, depth: int = 9) -> set[str]:
    """The files below."""
    found = (
        (p for p in folder.rglob("*") if len(p.relative_to(folder).parts) <= depth) if depth > 1 else folder.iterdir()
    )
    return {str(p) for p in found if "__pycache__" not in p.parts and not p.name.startswith(".")}


def test_there_are_forty_and_more() -> None:
    assert len(DATA) + len(MODELS) + len(TEMPLATES) + len(RECIPES) >= 40
