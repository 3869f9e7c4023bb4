"""Miniatures of data sets in the layouts that they are published in, for the tests of every part."""

import gzip
import struct

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 60, 80  # of VOC's and CamVid's images
RNG = np.random.default_rng(0)
VISDA = ("aeroplane", "bicycle", "bus", "car", "horse", "knife", "motorcycle", "person", "plant", "skateboard")
VISDA = (*VISDA, "train", "truck")
SHAPES = ((10, 12, 40, 36), (50, 8, 76, 30), (30, 34, 70, 58))  # x1, y1, x2, y2 in an image of 80 x 60


def random_bytes(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(folder):
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = random_bytes(4, 3073)
        records[:, 0] %= 10
        records.tofile(folder / name)
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\n" + "other\n" * 6 + "\n")


def write_cifar100(folder):
    for name, count in (("train.bin", 20), ("test.bin", 4)):
        records = random_bytes(count, 3074)
        records[:, 0] %= 20
        records[:, 1] = np.arange(count) * 5 % 100
        records.tofile(folder / name)
    (folder / "fine_label_names.txt").write_text("".join(f"name_{n}\n" for n in range(100)))


def write_svhn(folder):
    for name, count in (("train_32x32.mat", 20), ("test_32x32.mat", 4)):
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / name, {"X": random_bytes(32, 32, 3, count), "y": labels})


def write_fashion_mnist(folder):
    for name, count in (("train", 20), ("t10k", 4)):
        images = struct.pack(">4i", 0x803, count, 28, 28) + random_bytes(count, 28, 28).tobytes()
        labels = struct.pack(">2i", 0x801, count) + bytes(n % 10 for n in range(count))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_visda(folder):
    for split, count in (("train", 20), ("validation", 12)):
        lines = []
        for number in range(count):
            label = number * 7 % 12
            name = f"{VISDA[label]}/{number:03d}.png"
            (folder / split / VISDA[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_bytes(40, 60, 3)).save(folder / split / name)
            lines.append(f"{name} {label}\n")
        (folder / split / "image_list.txt").write_text("".join(lines))


def write_class_folders(root):
    for number in range(12):
        folder = root / ("train" if number < 8 else "test") / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_bytes(32, 32, 3)).save(folder / f"{number}.png")


PUBLISHED = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "svhn": write_svhn,
    "fashion-mnist": write_fashion_mnist,
    "visda17": write_visda,
}


def boxes_of(number):
    """Of image ``number``: one to three rectangles, and their classes."""
    return [(box, ("cell", "plate")[(number + i) % 2]) for i, box in enumerate(SHAPES[: 1 + number % 3])]


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for (x1, y1, x2, y2), name in boxes_of(number):
        pixels[y1:y2, x1:x2, 0 if name == "cell" else 2] += 200
    return pixels


def one_object(name, box, difficult=0):
    x1, y1, x2, y2 = box
    inside = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"  # from 1, inclusive
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inside}</bndbox></object>"


def annotation(objects, width=WIDTH, height=HEIGHT):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def write_voc(root, train=6, evaluation=3):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(train + evaluation):
        Image.fromarray(picture(number)).save(root / "JPEGImages" / f"image_{number}.jpg", quality=95)
        objects = [one_object(kind, box) for box, kind in boxes_of(number)]
        (root / "Annotations" / f"image_{number}.xml").write_text(annotation(objects))
    for split, numbers in (("train", range(train)), ("val", range(train, train + evaluation))):
        lines = "".join(f"image_{number}\n" for number in numbers)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return root


def write_voc_masks(root):
    """Masks beside a VOC folder's boxes: its images are those of VOC's segmentation too."""
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text()
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
        for name in names.split():
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            for (x1, y1, x2, y2), kind in boxes_of(int(name.removeprefix("image_"))):
                mask[y1:y2, x1:x2] = 1 if kind == "cell" else 2
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    return root


def scene(number, classes=(0, 3, 10), void=11):
    """An image whose red says the class of each pixel, and its mask: four quarters, the first row void."""
    mask = np.full((HEIGHT, WIDTH), classes[number % 3], dtype=np.uint8)
    mask[30:, :40], mask[30:, 40:] = classes[(number + 1) % 3], classes[2]
    mask[0] = void
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0] = 20 * np.where(mask == void, mask[1], mask)
    image[..., 1] = number  # no two images are the same
    return image, mask


def write_camvid(root, train=6, evaluation=3):
    for split, numbers in (("train", range(train)), ("val", range(train, train + evaluation))):
        for folder, part in ((split, 0), (f"{split}annot", 1)):
            (root / folder).mkdir(parents=True)
            for number in numbers:
                Image.fromarray(scene(number)[part]).save(root / folder / f"{number}.png")
    return root


def write_each(root, writers):
    """Each of the layouts in a folder of its name under ``root``."""
    for name, write in writers.items():
        (root / name).mkdir()
        write(root / name)
    return root
