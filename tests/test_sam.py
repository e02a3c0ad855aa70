"""SAM's encoder and mask decoder: equal to transformers' and PyTorch's, their weights as safetensors, and a training."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from test_sam_folder import blank, save

import tff_kit
from tff_kit import __main__ as command_line
from tff_kit.datasets import DataError
from tff_kit.embeddings import store as stores
from tff_kit.tasks.keywords import embed as speech
from tff_kit.tasks.segmentation import (
    CentralizedSegmentation,
    Segmentation,
    data,
    decoder,
    embed,
    measures,
    objects,
    sam,
    weights,
)
from tff_kit.tasks.segmentation.folder import load_folder
from tff_kit.tasks.segmentation.sizes import Sizes, weight_shapes
from tff_kit.training import runs

TINY = sam._TINY
FEW = {"clients": 4, "images": 16, "held_out": 16}


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A SAM as the hub has it, in PyTorch's names: the tiny one, with a decoder that somebody might have trained."""
    folder = tmp_path_factory.mktemp("sam") / "somebodys-sam"
    sam.save_sam(sam._create_tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(hub_folder):
    return sam.load_sam(hub_folder)


@pytest.fixture(scope="module")
def store_folder(monkeypatch_module):
    return embed.demo_store(**FEW)


@pytest.fixture(scope="module")
def monkeypatch_module():
    """The demo of these tests has few images."""
    with pytest.MonkeyPatch.context() as patch:
        whole = embed.demo_store
        patch.setattr(embed, "demo_store", lambda model=sam.TINY, **_: whole(model, **FEW))
        yield patch


def _inputs(images=2):
    drawn = np.random.default_rng(0)
    pixels = drawn.integers(0, 255, [images, 100, 128, 3], np.uint8)
    boxes = np.sort(drawn.uniform(0, 127, [images, 2, 2]), axis=1).reshape(images, 4).astype(np.float32)
    return pixels, boxes


def _no_prompts(sizes):
    """The weights of a prompt encoder that tells nothing."""
    frequencies, *tokens = decoder.PROMPT_WEIGHTS
    return {frequencies: np.zeros([2, sizes.hidden_size // 2]), **{name: np.zeros([1, sizes.hidden_size]) for name in tokens}}


def _by_hand(sizes):
    """The number of weights from the architecture's description: all layers dense, attentions half as wide to the image."""
    c, n = sizes.hidden_size, sizes.hidden_size // 2
    attention = 3 * (c * n + n) + n * c + c
    layer = 4 * (c * c + c) + 2 * attention + 2 * c * sizes.mlp_dim + sizes.mlp_dim + c + 4 * 2 * c
    upscale = (c * c // 4 * 4 + c // 4) + 2 * c // 4 + (c // 4 * c // 8 * 4 + c // 8)
    hyper = 4 * (2 * (c * c + c) + c * c // 8 + c // 8)
    h = sizes.iou_head_hidden_dim
    quality = c * h + h + h * h + h + h * 4 + 4
    return 5 * c + 2 * layer + attention + 2 * c + upscale + hyper + quality


def test_vit_bs_decoder_has_4_058_340_weights_which_are_129_866_880_bits():
    model = decoder.create_decoder(Sizes(), _no_prompts(Sizes()), seed=0)
    assert model.count_params() == _by_hand(Sizes()) == 4_058_340
    assert sum(int(np.prod(shape)) for shape in weight_shapes(Sizes()).values()) == 4_058_340
    assert not model.non_trainable_variables  # Nothing frozen crosses.
    assert 32 * model.count_params() == 129_866_880
    assert model.output_shape == (None, 256, 256)


def test_pixels_are_prepared_as_transformers_does(loaded):
    from transformers import SamImageProcessor

    processor = SamImageProcessor(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    drawn = np.random.default_rng(1)
    for shape in ((128, 128, 3), (37, 90, 3), (300, 211, 3)):
        pixels = drawn.integers(0, 255, shape, np.uint8)
        expected = processor(pixels, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(sam.prepare(pixels, TINY), expected, atol=1e-6)


def test_masks_and_quality_are_those_of_transformers(loaded):
    pixels, boxes = _inputs()
    prepared = np.stack([sam.prepare(x, TINY) for x in pixels])
    own = decoder.decoder_layer(decoder.create_decoder(TINY, loaded.prompts, weights=loaded.decoder))
    masks, quality = own.decode({"image": loaded.encoder.embed(prepared), "box": boxes}, masks=4)
    theirs = sam._create_tiny()
    pixel_values = tf.constant(prepared.transpose(0, 3, 1, 2))
    for several, which in ((False, slice(0, 1)), (True, slice(1, None))):
        out = theirs(pixel_values, input_boxes=tf.constant(boxes)[:, tf.newaxis], multimask_output=several)
        assert np.std(out.pred_masks) > 0.01  # Else the comparison says nothing.
        np.testing.assert_allclose(masks[:, which], out.pred_masks[:, 0], atol=1e-4)
        np.testing.assert_allclose(quality[:, which], out.iou_scores[:, 0], atol=1e-4)


_PYTORCH = """
import sys
import numpy as np, torch, transformers
from safetensors.torch import load_file

folder = sys.argv[1]
torch.manual_seed(0)
config = transformers.SamConfig.from_pretrained(folder)
model = transformers.SamModel(config).eval()
for name, weight in model.named_parameters():  # PyTorch's own are mostly zero in places, such as relative positions.
    if weight.ndim > 1:
        torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
model.save_pretrained(folder + "/torch")
if len(sys.argv) > 2:
    missing, unexpected = model.load_state_dict(load_file(sys.argv[2]), strict=False)
    assert not unexpected and not [name for name in missing if name.startswith("mask_decoder.")], (missing, unexpected)
inputs = np.load(folder + "/inputs.npz")
with torch.no_grad():
    pixels, boxes = torch.from_numpy(inputs["pixels"]), torch.from_numpy(inputs["boxes"])[:, None]
    image = model.get_image_embeddings(pixels)
    one, several = (model(image_embeddings=image, input_boxes=boxes, multimask_output=x) for x in (False, True))
    masks, quality = (torch.cat([getattr(x, name)[:, 0] for x in (one, several)], 1) for name in ("pred_masks", "iou_scores"))
    np.savez(folder + "/outputs.npz", image=image.numpy(), masks=masks.numpy(), quality=quality.numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("exported", [False, True])
def test_encoder_and_decoder_are_those_of_pytorch(hub_folder, torch_python, tmp_path, exported):
    pixels, boxes = _inputs()
    prepared = np.stack([sam.prepare(x, TINY) for x in pixels])
    shutil.copy(hub_folder / "config.json", tmp_path)
    np.savez(tmp_path / "inputs.npz", pixels=prepared.transpose(0, 3, 1, 2), boxes=boxes)
    fresh = decoder.create_decoder(TINY, _no_prompts(TINY), seed=5)
    weights.save_decoder(fresh, tmp_path / "decoder.safetensors")
    arguments = [str(tmp_path), *([str(tmp_path / "decoder.safetensors")] if exported else [])]
    subprocess.run([torch_python, "-c", _PYTORCH, *arguments], check=True)
    expected = np.load(tmp_path / "outputs.npz")
    own = sam.load_sam(tmp_path / "torch")
    image = own.encoder.embed(prepared)
    np.testing.assert_allclose(image.numpy().reshape(2, 16, 16, 64).transpose(0, 3, 1, 2), expected["image"], atol=1e-4)
    trained = decoder.decoder_layer(fresh).named_weights() if exported else own.decoder
    model = decoder.create_decoder(TINY, own.prompts, weights=trained)
    masks, quality = decoder.decoder_layer(model).decode({"image": image, "box": boxes}, masks=4)
    assert expected["masks"].std() > 0.01
    np.testing.assert_allclose(masks, expected["masks"], atol=1e-4)
    np.testing.assert_allclose(quality, expected["quality"], atol=1e-4)
    print("largest difference:", *(f"{np.abs(a - expected[b]).max():.1e}" for a, b in ((masks, "masks"), (quality, "quality"))))


def test_safetensors_go_both_ways_bit_for_bit(loaded, hub_folder, tmp_path):
    model = decoder.create_decoder(TINY, loaded.prompts, seed=1)
    weights.set_decoder(model, hub_folder / "model.safetensors", "any")
    weights.save_decoder(model, tmp_path / "out.safetensors", "b" * 64)
    original = safetensors.numpy.load_file(hub_folder / "model.safetensors")
    exported = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert exported.keys() == {name for name in original if name.startswith("mask_decoder.")}
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, original[name])
    assert weights.load_decoder(tmp_path / "out.safetensors", TINY, "b" * 64).keys() == weight_shapes(TINY).keys()


def test_initial_weights_are_spread_as_pytorchs():
    layer = decoder.decoder_layer(decoder.create_decoder(TINY, _no_prompts(TINY), 0))
    named = layer.named_weights()
    for name, inputs in (
        ("transformer.layers.0.mlp.lin2", 256),
        ("transformer.layers.1.self_attn.q_proj", 64),
        ("upscale_conv1", 64),
    ):
        assert named[f"{name}.weight"].var() == pytest.approx(1 / (3 * inputs), rel=0.1)
        assert np.abs(named[f"{name}.bias"]).max() <= inputs**-0.5
    assert 0.7 < named["mask_tokens.weight"].std() < 1.3
    assert (named["transformer.layers.0.layer_norm1.weight"] == 1).all()


# Loss and metrics.


def test_loss_and_metrics_by_hand():
    mask = np.zeros([2, 4, 4], np.float32)
    mask[0, :2], mask[1, 0, 0] = 1, 1
    logits = np.full([2, 4, 4], -2, np.float32)
    logits[0, :1], logits[1, 0, :2] = 2, 2
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    entropy = -(mask * np.log(p) + (1 - mask) * np.log(1 - p)).mean(axis=(1, 2))
    dice = 1 - 2 * (mask * p).sum(axis=(1, 2)) / (np.square(mask) + np.square(p)).sum(axis=(1, 2))
    assert float(measures.DiceCrossEntropy()(mask, logits)) == pytest.approx((entropy + dice).mean(), rel=1e-4)
    np.testing.assert_allclose(measures.intersection_over_union(mask, logits), [4 / 8, 1 / 2])
    np.testing.assert_allclose(measures.dice(mask, logits), [2 * 4 / 12, 2 / 3])


# Data, store and training.


def test_a_client_trains_on_its_own_objects_with_boxes_around_them(store_folder):
    loaded_data = data.load(store_folder, batch_size=3, local_epochs=2)
    store, sizes = loaded_data.store, loaded_data.sam.sizes
    client = loaded_data.client_ids[1]
    batches = list(loaded_data.client_dataset(tf.constant(client), tf.constant(7, tf.int64)).as_numpy_iterator())
    count = store.num_labels(f"clients/{client}")
    assert [len(y) for _, y in batches] == [3] * (2 * count // 3) + ([2 * count % 3] if 2 * count % 3 else [])
    packed = tf.constant(store.labels(f"clients/{client}"))
    number, boxes, masks = (x.numpy() for x in objects.unpack_objects(packed, sizes))
    files = [path for path in stores.clip_files(store) if f"/{client}/" in str(path)]
    images = stores.decode(store, tf.constant([path.read_bytes() for path in files])).numpy()
    own = {masks[i].tobytes(): i for i in range(count)}
    seen = []
    for x, y in batches:
        for image, box, mask in zip(x["image"], x["box"], y):
            place = own[mask.tobytes()]
            seen.append(place)
            assert np.array_equal(image, images[number[place]])
            outwards = (box - boxes[place]) * [-1, -1, 1, 1]
            assert (outwards >= 0).all() and (outwards < 20 * 128 / 256).all()
    assert sorted(seen[:count]) == sorted(seen[count:]) == list(range(count))
    assert seen[:count] != seen[count:]
    again = next(iter(loaded_data.client_dataset(tf.constant(client), tf.constant(8, tf.int64))))
    assert not np.array_equal(again[0]["box"], batches[0][0]["box"])


def test_held_out_boxes_are_the_same_in_every_test(store_folder):
    first, second = ([x["box"] for x, _ in data.load(store_folder).test.as_numpy_iterator()] for _ in range(2))
    assert all(map(np.array_equal, first, second))


@pytest.mark.slow
def test_the_decoder_learns_well_above_the_box_and_the_untrained_decoder(store_folder, tmp_path):
    training = CentralizedSegmentation(epochs=14, learning_rate=3e-3, batch_size=4)
    run = tff_kit.train_centralized(training, tmp_path / "run")
    rows = run.read_metrics()
    dataset = training.load_data()
    boxes, masks = (np.concatenate(x) for x in zip(*[(x["box"], y) for x, y in dataset.test.as_numpy_iterator()]))
    of_box = measures.intersection_over_union(masks, 2 * objects.box_masks(boxes, dataset.sam.sizes) - 1).numpy().mean()
    untrained = tff_kit.evaluate(training, _untrained(training, tmp_path))["iou"]
    tested = json.loads((run.path / "test.json").read_text())["iou"]
    print(f"box {of_box:.3f}, untrained {untrained:.3f}, trained {tested:.3f}, rows {[round(r['val_iou'], 2) for r in rows]}")
    assert tested > of_box + 0.1 and tested > untrained + 0.2
    exported = weights.load_decoder(run.path / "model.safetensors", TINY, dataset.store.weights_sha256)
    np.testing.assert_array_equal(
        exported["iou_token.weight"], decoder.decoder_layer(run.load_model()).named_weights()["iou_token.weight"]
    )


def _untrained(training, folder):
    (folder / "untrained").mkdir()
    training.build_model().save(folder / "untrained" / "model.keras")
    return folder / "untrained"


@pytest.mark.slow
def test_a_plain_round_counts_32_bits_a_weight_and_reaches_every_weight_of_the_mask(store_folder, tmp_path):
    """One round by SGD inside TFF moves all weights that the mask is made of; the other masks' and the quality's stay."""
    experiment = Segmentation(rounds=1, client_optimizer="sgd", client_lr=0.01)
    run = tff_kit.train(experiment, tmp_path / "run")
    (row,) = run.read_metrics()
    # Beside the weights: learning rate and optimizer, an example's weight, the metrics' sums.
    assert 0 <= row["broadcast_bits"] - 2 * 32 * _by_hand(TINY) <= 2 * 500
    assert 0 <= row["aggregate_bits"] - 2 * 32 * _by_hand(TINY) <= 2 * 1000
    assert {"test_iou", "test_dice", "train_iou"} <= row.keys()
    before = decoder.decoder_layer(experiment.build_model()).named_weights()
    after = decoder.decoder_layer(run.load_model()).named_weights()
    for name, value in before.items():
        is_unused = re.match(r"output_hypernetworks_mlps\.[123]|iou_prediction_head", name) is not None
        # Softmax does not see a shift that all keys have in common.
        assert np.array_equal(value, after[name]) == is_unused or name.endswith("k_proj.bias"), name
    assert len(before) == 120 and len(experiment.build_model().weights) == 29
    assert tff_kit.evaluate(experiment, run)["iou"] == pytest.approx(row["test_iou"], abs=1e-6)


def test_a_trained_sam_starts_from_its_own_decoder(loaded, tmp_path):
    for client in ("a", "b", "validation", "test"):
        save(tmp_path / "data", client, "0", *blank())
    store = embed.embed(load_folder(tmp_path / "data"), loaded, tmp_path / "store", show_progress=False)
    assert store.name.endswith("as embeddings of somebodys-sam") and not store.notes
    started = decoder.decoder_layer(Segmentation(data=str(store.folder)).build_model()).named_weights()
    for name, value in loaded.decoder.items():
        np.testing.assert_array_equal(started[name], value)


def test_a_client_of_its_own_has_all_that_a_device_needs(store_folder, tmp_path):
    whole = data.load(store_folder)
    client = whole.client_ids[2]
    whole.write_client(client, tmp_path)
    alone = data.load(tmp_path)
    assert alone.client_ids == (client,)
    pairs = [next(iter(x.client_dataset(tf.constant(client), tf.constant(3, tf.int64)))) for x in (whole, alone)]
    assert np.array_equal(pairs[0][0]["image"], pairs[1][0]["image"]) and np.array_equal(pairs[0][1], pairs[1][1])
    assert Segmentation(data=str(tmp_path)).build_model().count_params() == _by_hand(TINY)


# The command line, and what does not fit.


@pytest.mark.slow
def test_embed_trains_and_exports_from_the_command_line(tmp_path, capsys):
    for client in ("a", "b", "validation", "test"):
        for number in range(2):
            save(tmp_path / "data", client, str(number), *blank())
    (tmp_path / "data/images/a/9.png").write_bytes(b"broken")
    command = [
        "embed",
        "sam",
        "--images",
        str(tmp_path / "data"),
        "--sam",
        "tiny",
        "--out",
        str(tmp_path / "store"),
        "--dtype",
        "int8",
    ]
    assert command_line.main(command) == 0
    told = capsys.readouterr()
    assert "8 images with 16 objects, 2 clients" in told.out
    assert "1 files could not be used" in told.err and "images/a/9.png: an image without a mask" in told.err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*0")}
    assert command_line.main(command) == 0  # It stays as it is.
    assert before == {path: path.stat().st_mtime_ns for path in before}
    settings = ["--data", str(tmp_path / "store"), "--sam", "tiny", "--rounds", "1", "--mean", "uniform:8"]
    assert command_line.main(["train", "sam", *settings, "--logdir", str(tmp_path / "run")]) == 0
    assert "iou" in capsys.readouterr().out
    assert command_line.main(["export", "sam", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "d.safetensors")]) == 0
    again = Segmentation(data=str(tmp_path / "store"), decoder=str(tmp_path / "d.safetensors")).build_model()
    trained = runs.RunDirectory(tmp_path / "run").load_model()
    assert all(map(np.array_equal, again.get_weights(), trained.get_weights()))
    assert any("int8" in note for note in data.load(tmp_path / "store").notes)


def _of_another_encoder(folder):
    model = decoder.create_decoder(TINY, _no_prompts(TINY), 0)
    weights.save_decoder(model, folder / "other.safetensors", "c" * 64)
    return folder / "other.safetensors"


def _of_vit_b(folder):
    tensors = {f"mask_decoder.{name}": np.zeros(shape, np.float32) for name, shape in weight_shapes(Sizes()).items()}
    safetensors.numpy.save_file(tensors, folder / "large.safetensors")
    return folder / "large.safetensors"


def test_a_decoder_for_another_encoder_or_of_other_sizes_is_refused(store_folder, tmp_path):
    expected = data.load(store_folder).store.weights_sha256[:12]
    with pytest.raises(
        DataError, match=f"for the encoder with weights {expected}.*other.safetensors, trained on those of cccccccccccc"
    ):
        Segmentation(decoder=str(_of_another_encoder(tmp_path))).build_model()
    with pytest.raises(
        DataError, match=r"large.safetensors: of mask_decoder.iou_token.weight the shape \[1, 64\], found \[1, 256\]"
    ):
        Segmentation(decoder=str(_of_vit_b(tmp_path))).build_model()
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match="weights as safetensors in .*text.safetensors"):
        Segmentation(decoder=str(tmp_path / "text.safetensors")).build_model()


def test_a_store_of_another_encoder_is_refused(store_folder, hub_folder, tmp_path):
    copy = shutil.copytree(store_folder, tmp_path / "store")
    description = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps({**description, "weights_sha256": "d" * 64}))
    with pytest.raises(DataError, match="made by the encoder with weights .*, found .*made by tiny with weights dddddddddddd"):
        Segmentation(data=str(copy), sam=str(hub_folder)).load_data()
    (copy / "store.json").write_text(json.dumps({**description, "positions": 64, "width": 256}))
    with pytest.raises(
        DataError, match="Expected embeddings of the SAM in .*256 of width 64; found 64 of width 256, made by tiny"
    ):
        data.load(copy)


def test_a_store_of_speech_and_no_store_are_refused(tmp_path):
    speech.demo(tmp_path / "speech", clients=1, clips_per_client=4)
    with pytest.raises(
        DataError, match="store of SAM's embeddings of images in .*found one of synthetic embeddings of 1s. .*embed sam"
    ):
        data.load(tmp_path / "speech")
    with pytest.raises(DataError, match="store of embeddings in .*, found none. Make one from a folder of images and masks"):
        data.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["train", "sam", "--data", "nothing"], "a store of embeddings in nothing, found none"),
        (["train", "sam", "--jitter", "-1"], "--jitter to be 0 or more, found -1"),
        (
            ["embed", "sam", "--images", "nothing", "--out", "out"],
            "the folders images and annotations in nothing, found no images",
        ),
    ],
)
def test_bad_commands_end_in_one_sentence_with_nothing_written(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(arguments) == 2
    told = capsys.readouterr().err
    assert reason in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())
