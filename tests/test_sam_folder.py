"""A folder of images and masks: what people have is read, and what cannot be used is named, skipped and counted."""

import csv

import numpy as np
import pytest
from PIL import Image

from tff_kit.datasets import DataError
from tff_kit.tasks.segmentation import pictures
from tff_kit.tasks.segmentation.folder import load_folder
from tff_kit.tasks.segmentation.objects import box_masks, jitter_boxes, object_bytes, pack_object, scale_mask, unpack_objects
from tff_kit.tasks.segmentation.sizes import Sizes

SIZES = Sizes(image_size=64, patch_size=16)  # Masks of 16 x 16.
EXIF_ORIENTATION = 0x0112


def save(folder, client, name, image, mask, suffix=".png", **options):
    for kind, array, end in (("images", image, suffix), ("annotations", mask, ".png")):
        path = folder / kind / client / f"{name}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **(options if kind == "images" else {}))


def blank(height=20, width=30):
    """An image and a mask with two objects."""
    mask = np.zeros([height, width], np.uint8)
    mask[2:6, 3:9], mask[10:15, 20:25] = 1, 7
    return np.full([height, width, 3], 90, np.uint8), mask


@pytest.fixture
def folder(tmp_path):
    """Three clients with four images each, and held-out images."""
    for client in ("anna", "ben", "carl", "validation", "test"):
        for number in range(4):
            save(tmp_path, client, f"{number}", *blank())
    return tmp_path


def test_clients_are_folders_and_held_out_images_are_of_no_client(folder):
    found = load_folder(folder)
    assert {name: len(own) for name, own in found.splits.items()} == {
        "clients/anna": 4, "clients/ben": 4, "clients/carl": 4, "validation": 4, "test": 4,
    }  # fmt: skip
    assert found.splits["clients/ben"][0].image == "images/ben/0.png" and found.splits["clients/ben"][0].values == (1, 7)
    first, second = found.read_objects(found.splits["test"][0])
    assert np.array_equal(first, blank()[1] == 1) and np.array_equal(second, blank()[1] == 7)
    assert not found.skipped and not found.notes


def test_where_the_data_holds_nothing_out_a_tenth_of_the_images_is_drawn(tmp_path):
    for client in ("anna", "ben"):
        for number in range(10):
            save(tmp_path, client, f"{number}", *blank())
    splits = load_folder(tmp_path, seed=3).splits
    assert [len(splits[name]) for name in ("validation", "test")] == [2, 2]
    images = [picture.image for own in splits.values() for picture in own]
    assert len(images) == len(set(images)) == 20
    assert load_folder(tmp_path, seed=3).splits == splits != load_folder(tmp_path, seed=4).splits


def test_clients_of_a_csv_file_and_names_of_the_folders(tmp_path):
    for number in range(6):
        save(tmp_path, "", f"{number}", *blank())
    (tmp_path / "images").rename(tmp_path / "photos")
    (tmp_path / "annotations").rename(tmp_path / "masks")
    with open(tmp_path / "clients.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("image", "client"), ("0.png", "a"), ("1.png", "b"), ("2.png", "b"), ("3.png", "test")])
        writer.writerows([("4.png", "validation"), ("9.png", "a")])
    found = load_folder(tmp_path, "photos", "masks", tmp_path / "clients.csv")
    assert {name: len(own) for name, own in found.splits.items()} == {
        "clients/a": 1, "clients/b": 2, "validation": 1, "test": 1,
    }  # fmt: skip
    assert found.skipped == ("5.png: no client in clients.csv", "clients.csv: 9.png is named there, but is no image here")


@pytest.mark.parametrize(
    "suffix, mode", [(".jpg", "RGB"), (".jpeg", "L"), (".png", "RGBA"), (".png", "LA"), (".png", "P"), (".bmp", "RGB")]
)
def test_formats_that_people_have(folder, suffix, mode):
    image, mask = blank()
    save(
        folder,
        "anna",
        "other",
        Image.fromarray(image).quantize() if mode == "P" else Image.fromarray(image).convert(mode),
        mask,
        suffix,
    )
    found = load_folder(folder)
    (picture,) = [one for one in found.splits["clients/anna"] if "other" in one.image]
    read = found.read_image(picture)
    assert read.shape == (20, 30, 3) and np.abs(read.astype(int) - 90).max() <= 2


def test_sixteen_bits_of_grey_keep_their_upper_half(tmp_path):
    Image.fromarray(np.full([4, 5], 0x7FFF, np.uint16)).save(tmp_path / "grey.png")
    assert (pictures.read_image(tmp_path / "grey.png") == 0x7F).all()


def test_an_image_turned_by_exif_fits_its_upright_mask(folder):
    image, mask = blank()
    image[0] = 255  # The upper edge.
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # It has to be turned by 90 degrees clockwise to be upright.
    lying = Image.fromarray(np.rot90(image).copy())
    save(folder, "anna", "turned", lying, mask, ".jpg", exif=exif, quality=95)
    found = load_folder(folder)
    (picture,) = [one for one in found.splits["clients/anna"] if "turned" in one.image]
    read = found.read_image(picture)
    assert read.shape == (20, 30, 3) and read[0].min() > 200 and read[5:].max() < 140


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_masks_as_people_have_them(tmp_path, mode):
    values = np.zeros([6, 8], np.uint8)
    values[2:4, 3:6] = 255
    mask = Image.fromarray(values)
    if mode == "P":
        mask = Image.fromarray((values > 0).astype(np.uint8) * 3, "L")
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 90, 90, 90])
    else:
        mask = mask.convert(mode)
    mask.save(tmp_path / "mask.png")
    read = pictures.read_mask(tmp_path / "mask.png")
    assert np.array_equal(read != 0, values != 0)
    assert len(pictures.object_values(read)) == 1


def _truncate(folder):
    path = folder / "images/anna/0.png"
    noise = np.random.default_rng(0).integers(0, 255, [20, 30, 3], np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:500])


_BAD = {
    "mask of another size": (
        lambda folder: Image.fromarray(blank(21, 30)[1]).save(folder / "annotations/anna/0.png"),
        "images/anna/0.png: its mask annotations/anna/0.png is of another size: 30 x 21 instead of 30 x 20",
    ),
    "no object": (
        lambda folder: Image.fromarray(0 * blank()[1]).save(folder / "annotations/anna/0.png"),
        "images/anna/0.png: its mask annotations/anna/0.png has no object",
    ),
    "truncated image": (_truncate, "images/anna/0.png: no picture that can be read: "),
    "truncated mask": (
        lambda folder: (folder / "annotations/anna/0.png").write_bytes(b"\x89PNG"),
        "images/anna/0.png: its mask annotations/anna/0.png is no picture that can be read: ",
    ),
    "mask without image": (
        lambda folder: (folder / "images/anna/0.png").unlink(),
        "annotations/anna/0.png: a mask without an image",
    ),
    "image without mask": (
        lambda folder: (folder / "annotations/anna/0.png").unlink(),
        "images/anna/0.png: an image without a mask",
    ),
    "colours": (
        lambda folder: Image.fromarray(np.random.default_rng(0).integers(0, 9, [20, 30, 3], np.uint8)).save(
            folder / "annotations/anna/0.png"
        ),
        "images/anna/0.png: its mask annotations/anna/0.png is a mask in colours, where one value for each object was expected",
    ),
    "many values": (
        lambda folder: Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(folder / "annotations/anna/0.png"),
        "images/anna/0.png: its mask annotations/anna/0.png is 599 different values, where one for each of at most 64 objects",
    ),
    "a second file of a name": (
        lambda folder: Image.fromarray(blank()[0]).save(folder / "images/ben/1.jpg"),
        "images/ben/1.png: a second file of this name, beside ben/1.jpg",
    ),
}


@pytest.mark.parametrize("kind", _BAD)
def test_a_bad_file_is_named_skipped_and_counted(folder, kind):
    spoil, line = _BAD[kind]
    spoil(folder)
    found = load_folder(folder)
    (skipped,) = found.skipped
    assert skipped.startswith(line) and "\n" not in skipped
    assert found.notes == ("1 files could not be used and were left out.",)
    assert sum(map(len, found.splits.values())) == 20 - (not line.startswith("images/ben"))


def _csv(text):
    return lambda folder: (folder / "clients.csv").write_text(text)


_REFUSED = {
    "no folder": (lambda folder: (folder / "annotations").rename(folder / "masks"), None, "found no annotations. Name others by"),
    "no clients": (
        lambda folder: [(folder / kind / "anna").rename(folder / f"{kind}-") for kind in ("images", "annotations")]
        and [(folder / kind).rename(folder / f"old-{kind}") for kind in ("images", "annotations")]
        and [(folder / f"{kind}-").rename(folder / kind) for kind in ("images", "annotations")],
        None,
        "a folder for each client in .*images, found none with images",
    ),
    "no csv": (lambda folder: None, "clients.csv", "a CSV file of image,client in .*clients.csv, found: .*No such file"),
    "other columns": (_csv("file,who\n0.png,a\n"), "clients.csv", "columns image and client .*found file, who"),
    "two clients": (_csv("image,client\nanna/0.png,a\nanna/0.png,b\n"), "clients.csv", "one client for each .*others of anna/0"),
    "no name": (_csv("image,client\nanna/0.png,../a\n"), "clients.csv", "can be a folder's name, found '../a'"),
    "nothing left": (_csv("image,client\nanna/0.png,a\n"), "clients.csv", "images of clients and held-out ones"),
}  # fmt: skip


@pytest.mark.parametrize("kind", _REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_in_a_sentence(folder, kind):
    spoil, clients, reason = _REFUSED[kind]
    spoil(folder)
    with pytest.raises(DataError, match=reason) as caught:
        load_folder(folder, clients=clients and folder / clients)
    assert "\n" not in str(caught.value)


# Objects.


def test_an_object_comes_back_from_its_bytes():
    mask = np.zeros([32, 64], bool)
    mask[8:16, 12:40] = True
    packed = pack_object(5, mask, SIZES)
    assert packed.shape == (object_bytes(SIZES),) == (20 + 16 * 16 // 8,)
    image, box, scaled = unpack_objects(packed[np.newaxis], SIZES)
    assert image.numpy().tolist() == [5]
    assert box.numpy().tolist() == [[12, 8, 39, 15]]  # In the image's own pixels, since its longer side is 64 already.
    expected = np.zeros([16, 16])
    expected[2:4, 3:10] = 1  # A quarter in each direction; the lower half of the frame is below the image.
    assert np.array_equal(scaled[0], expected)


def test_the_smallest_object_is_not_lost():
    mask = np.zeros([1000, 700], bool)
    mask[999, 3] = True
    assert 1 <= scale_mask(mask, SIZES).sum() <= 4 and scale_mask(mask, SIZES)[15, 0]
    _, box, _ = unpack_objects(pack_object(0, mask, SIZES)[np.newaxis], SIZES)
    np.testing.assert_allclose(box[0], np.array([3, 999, 3, 999]) * 64 / 1000, rtol=1e-6)


def test_sides_of_boxes_move_outwards_by_0_to_19_units():
    boxes = np.tile(np.float32([[30, 31, 33, 34]]), [4000, 1])
    moved = jitter_boxes(boxes, 20, [1, 2], SIZES).numpy()
    units = (moved - boxes) * [-1, -1, 1, 1] / (64 / 256)
    assert set(np.unique(units)) == set(range(20))
    for side in units.T:  # Uniform: each of 20 values 200 times, give or take five standard deviations.
        assert np.abs(np.bincount(side.astype(int), minlength=20) - 200).max() < 5 * np.sqrt(200)
    assert np.abs(np.corrcoef(units.T) - np.eye(4)).max() < 0.08
    assert np.array_equal(jitter_boxes(boxes, 0, [1, 2], SIZES), boxes)
    assert jitter_boxes(np.float32([[0, 0, 64, 64]]), 20, [1, 2], SIZES).numpy().tolist() == [[0, 0, 64, 64]]


def test_a_box_as_a_mask_covers_what_touches_it():
    mask = np.zeros([64, 64], bool)
    mask[8:16, 12:40] = True
    _, box, scaled = unpack_objects(pack_object(0, mask, SIZES)[np.newaxis], SIZES)
    assert np.array_equal(box_masks(box, SIZES), scaled)
