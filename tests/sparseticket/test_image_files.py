"""Files of a data set, packed or not: the same names and bytes, and nothing that leads elsewhere."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparseticket.data_places import data_of
from sparseticket.errors import UserError
from sparseticket.tasks import image_files
from sparseticket.tasks.data_identity import digests
from sparseticket.tasks.image_files import open_files
from sparseticket.tasks.prefetch import VARIABLE, made_ahead, workers

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
CLASSES = np.array([[0, 1, 255], [2, 2, 0]], dtype=np.uint8)


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def with_palette(indices):
    image = Image.fromarray(indices, mode="P")
    image.putpalette([level for index in range(256) for level in (index * 7 % 256, 255 - index, 40)])
    return image


CONTENT = {
    "set/train/cat/1.png": png(Image.fromarray(PIXELS)),
    "set/masks/1.png": png(with_palette(CLASSES)),
    "set/notes.txt": b"of two lines\nand no image\n",
    "set/empty.txt": b"",
}


def write(path, content=CONTENT):
    if path.suffix == "":
        for name, data in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, f"w:{path.suffix.removeprefix('.').replace('tar', '')}") as archive:
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


PACKED = ["files.zip", "files.tar", "files.tar.gz", "files.tar.xz"]


@pytest.mark.parametrize("name", ["files", *PACKED])
def test_a_folder_a_zip_and_a_tar_hold_the_same_files(tmp_path, name):
    hidden = {"set/.DS_Store": b"x", "__MACOSX/set/._notes.txt": b"x"}
    files = open_files(write(tmp_path / name, CONTENT | hidden))
    assert files.sizes == {name: len(data) for name, data in CONTENT.items()}
    assert {name: files.read(name) for name in files.sizes} == CONTENT
    assert files.around("train", "masks") == "set" and files.around("train", "elsewhere") is None
    inside = files.below("set")
    assert inside.around("train") == "" and inside.read("notes.txt") == CONTENT["set/notes.txt"]
    assert torch.equal(inside.decode("train/cat/1.png"), torch.from_numpy(PIXELS).permute(2, 0, 1))
    assert torch.equal(inside.decode("masks/1.png", "P")[0], torch.from_numpy(CLASSES))
    with pytest.raises(UserError, match=r"notes\.txt cannot be read"):
        inside.decode("notes.txt")
    with pytest.raises(UserError, match="not class indices"):
        inside.decode("train/cat/1.png", "P")


@pytest.mark.parametrize("name", ["files.zip", "files.tar", "files.tar.gz"])
@pytest.mark.parametrize("path", ["../outside.png", "/etc/outside.png", "a/../../outside.png", "a\\..\\outside.png"])
def test_an_archive_with_names_that_lead_outside_is_refused(tmp_path, name, path):
    with pytest.raises(UserError, match="leads out of its folder"):
        open_files(write(tmp_path / name, {"a/1.png": b"x", path: b"y"}))


def test_a_folder_s_links_are_followed_once_and_a_broken_one_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"12345")
    train = tmp_path / "data" / "train"
    train.mkdir(parents=True)
    (train / "cat").symlink_to(tmp_path / "elsewhere")
    (train / "dog.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (train / ".gone").symlink_to(tmp_path / "nowhere")  # hidden
    (train / "back").symlink_to(tmp_path / "data")  # a folder above
    (tmp_path / "elsewhere" / "again").symlink_to(train)  # and one in turn
    files = open_files(tmp_path / "data")
    assert files.sizes == {"train/cat/1.png": 5, "train/dog.png": 5}
    assert files.read("train/cat/1.png") == b"12345"
    (train / "emu").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="train/emu is a link to nothing"):
        open_files(tmp_path / "data")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_tar_with_a_link_or_a_device_is_refused(tmp_path, kind, mode):
    with tarfile.open(tmp_path / "files.tar", mode) as archive:
        member = tarfile.TarInfo("train/cat/1.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"train/cat/1\.png in it is a link or device"):
        open_files(tmp_path / "files.tar")


@pytest.mark.parametrize("name", ["files.zip", "files.tar", "files.tar.gz"])
def test_an_archive_that_was_cut_short_is_refused_when_it_is_opened_or_read(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, 40_000, dtype=np.uint8).tobytes()
    path = write(tmp_path / name, {"a.bin": noise, "b.bin": noise[::-1]})
    os.truncate(path, 50_000)
    with pytest.raises(UserError, match=r"damaged|neither a folder|b\.bin cannot be read"):
        open_files(path).read("b.bin")


def test_a_zip_whose_bytes_were_changed_is_refused_when_read(tmp_path):
    path = tmp_path / "files.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.bin", b"0123456789" * 10)
    damaged = bytearray(path.read_bytes())
    damaged[60] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.bin cannot be read"):
        open_files(path).read("a.bin")


def test_files_that_are_too_large_are_not_read_into_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "files.tar")
    monkeypatch.setattr(image_files, "LARGEST_FILE", 20)
    with pytest.raises(UserError, match="too many"):
        open_files(path).read("set/notes.txt")
    packed = write(tmp_path / "files.tar.gz")
    monkeypatch.setattr(image_files, "UNPACKED_BYTES", 100)
    with pytest.raises(UserError, match="Decompress it"):
        open_files(packed)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        archive.writestr("a.png", b"2")
    for name in ("files.tar", "files.tar.gz"):
        write(tmp_path / name, {"a.png": b"1", "./a.png": b"2"})
    for name in ("files.zip", "files.tar", "files.tar.gz"):
        with pytest.raises(UserError, match=r"a\.png twice"):
            open_files(tmp_path / name)


class Decoded:
    """A batch an image, decoded where it is asked for; the last but one image is damaged."""

    in_workers = True

    def __init__(self, files):
        self.files, self.names = files, sorted(files.sizes)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return {"pixels": self.files.decode(self.names[index]), "process": torch.tensor([os.getpid()])}


def test_of_two_data_sets_as_near_to_the_top_none_is_taken_unasked(tmp_path):
    years = {f"VOC{year}/{folder}/1.png": b"" for year in (2007, 2012) for folder in ("JPEGImages", "ImageSets")}
    write(tmp_path / "devkit", years | {"VOC2007/old/ImageSets/1.png": b"", "VOC2007/old/JPEGImages/1.png": b""})
    with pytest.raises(UserError, match=r"several data sets: VOC2007, VOC2012\. Give one"):
        open_files(tmp_path / "devkit").around("ImageSets", "JPEGImages")
    assert open_files(tmp_path / "devkit" / "VOC2007").around("ImageSets", "JPEGImages") == ""


def test_each_scene_task_takes_its_own_year_of_a_devkit(tmp_path):
    for year in (2007, 2012):
        (tmp_path / "VOCdevkit" / f"VOC{year}").mkdir(parents=True)
    taken = [data_of(task, tmp_path, alone=False) for task in ("detection", "segmentation", "segmentation-v3")]
    assert [place.name for place in taken] == ["VOC2007", "VOC2012", "VOC2012"]


def test_a_tar_that_ends_with_a_zip_is_read_as_the_tar(tmp_path):
    write(tmp_path / "inner.zip", {"x.txt": b"inside"})
    write(tmp_path / "outer.tar", {"inner.zip": (tmp_path / "inner.zip").read_bytes()})
    assert list(open_files(tmp_path / "outer.tar").sizes) == ["inner.zip"]


@pytest.mark.parametrize("name", ["files", "files.zip", "files.tar"])
def test_workers_make_the_same_batches_in_the_same_order_from_any_start(tmp_path, name, monkeypatch):
    images = {f"{n}.png": png(Image.fromarray(np.roll(PIXELS, n, axis=1))) for n in range(7)}
    batches = Decoded(open_files(write(tmp_path / name, images)))
    alone = list(made_ahead(batches, CPU))
    monkeypatch.setenv(VARIABLE, "2")
    before = torch.get_rng_state()
    for start in (0, 3):
        made = list(made_ahead(batches, CPU, start=start))
        assert len(made) == 7 - start
        assert all(torch.equal(a["pixels"], b["pixels"]) for a, b in zip(made, alone[start:], strict=True))
        assert os.getpid() not in {batch["process"].item() for batch in made}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_image_is_the_same_clear_error_out_of_a_worker(tmp_path, monkeypatch):
    files = open_files(write(tmp_path / "files.zip", {"1.png": png(Image.fromarray(PIXELS)), "2.png": b"no picture"}))
    monkeypatch.setenv(VARIABLE, "1")
    batches = made_ahead(Decoded(files), CPU)
    next(batches)
    with pytest.raises(UserError) as refused:
        next(batches)
    assert str(refused.value).startswith(f"{tmp_path / 'files.zip'}: the image 2.png cannot be read")


def test_a_gpu_gets_workers_and_a_cpu_none_unless_it_is_said(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert workers(CPU) == 0 and 1 <= workers(GPU) <= 8
    monkeypatch.setenv(VARIABLE, "0")
    assert workers(GPU) == 0
    monkeypatch.setenv(VARIABLE, "some")
    with pytest.raises(UserError, match="not 'some'"):
        workers(GPU)


@pytest.mark.parametrize(("mode", "ending"), [("I;16", "png"), ("I", "tif"), ("F", "tif")])
def test_pixels_of_more_than_8_bits_are_refused_and_not_cut_off(tmp_path, mode, ending):
    deep = np.linspace(0, 60000, 12).reshape(3, 4).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
    with pytest.raises(UserError, match=rf"deep\.{ending} cannot be read \(its pixels are {mode}, not 8 bits"):
        open_files(tmp_path).decode(f"deep.{ending}")


def test_a_file_that_is_no_image_is_named_and_nothing_else(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"the image a.png cannot be read .it is of no known kind."):
        open_files(tmp_path).decode("a.png")


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "fine.png").write_bytes(b"")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    files = open_files(tmp_path)
    digests(files, ["fine.png"])  # what is not used does not matter
    with pytest.raises(UserError, match=r"caf.udce9.png' in it is not UTF-8. Rename it"):
        digests(files, files.sizes)
