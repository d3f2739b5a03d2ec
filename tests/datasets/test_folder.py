import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from zoo.datasets.card import load_card
from zoo.datasets.folder import FolderDataset, sample_seed
from zoo.datasets.look import resolve
from zoo.datasets.splits import split_pairs
from zoo.datasets.transforms import Transform
from zoo.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        size = (20 + i, 30)
        Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
        Image.fromarray((RNG.random(size) > 0.5).astype(np.uint8) * 255).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def folder(root, split="train", transform=None, seed=0, **keys):
    card = resolve(load_card({"name": "folder", **keys}, root))
    return FolderDataset(card, split_pairs(card)[split], transform, seed)


def test_without_a_transform_an_item_is_the_files_at_their_own_size(photos):
    for item in (data := folder(photos, "val"), folder(photos, "train")):
        sample = item[0]
        stored = np.array(Image.open(sample["path"]))
        mask = np.array(Image.open(sample["path"].replace("images", "masks")))
        assert torch.equal(sample["image"], torch.from_numpy(stored).permute(2, 0, 1) / 255)
        assert torch.equal(sample["mask"], torch.from_numpy(mask).long() // 255)
    assert sample["image"].dtype == torch.float32
    assert sample["mask"].dtype == torch.int64
    assert data.card.num_classes == 1
    assert "0 and 255, so binary" in data.card.found


def test_soft_masks_are_shares_of_foreground(photos):
    sample = folder(photos, transform=Transform((8, 12), soft_masks=True))[0]
    mask = sample["mask"]
    assert (mask.shape, mask.dtype) == ((1, 8, 12), torch.float32)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert ((mask > 0) & (mask < 1)).any()


def test_pranets_preparation_is_pillows_bilinear_of_image_and_mask(photos):
    sample = folder(photos, transform=Transform((16, 16), "resize", "none", soft_masks=True))[3]
    image = Image.open(sample["path"]).resize((16, 16), Image.Resampling.BILINEAR)
    mask = (
        Image.open(sample["path"].replace("images", "masks")).convert("L").resize((16, 16), Image.Resampling.BILINEAR)
    )
    assert torch.equal(sample["image"], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    assert torch.equal(sample["mask"], torch.from_numpy(np.array(mask))[None] / 255)


def test_a_sample_depends_on_seed_epoch_and_index_alone_whatever_the_workers(photos):
    data = folder(photos, transform=Transform((16, 16), "crop", "default"), seed=5)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(len(data))]
    alone = DataLoader(data, sampler=keys, batch_size=3, num_workers=0)
    shared = DataLoader(data, sampler=keys, batch_size=3, num_workers=2)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["mask"], other["mask"])
    backwards = {key: data[key]["image"] for key in reversed(keys)}
    assert all(torch.equal(backwards[key], data[key]["image"]) for key in keys)
    assert not torch.equal(data[0, 1]["image"], data[1, 1]["image"])
    assert not torch.equal(data[0, 1]["image"], folder(photos, transform=data.transform, seed=6)[0, 1]["image"])
    assert len({sample_seed(s, e, i) for s in range(5) for e in range(5) for i in range(5)}) == 125


def test_an_index_alone_is_epoch_zero(photos):
    data = folder(photos, transform=Transform((16, 16), "crop", "flips"))
    assert torch.equal(data[2]["image"], data[0, 2]["image"])


def test_images_have_the_cards_channels_and_intensity(photos):
    sample = folder(photos, channels=1, intensity={"zscore": True})[0]
    assert sample["image"].shape[0] == 1
    assert abs(sample["image"].mean()) < 1e-4
    with pytest.raises(UserError, match="'windw' - did you mean 'window'"):
        folder(photos, intensity={"windw": [0, 1]})


def test_faults_in_files_are_named_when_they_are_read(photos):
    data = folder(photos)
    pair = data.pairs[0]
    Image.new("L", (7, 7)).save(pair.mask)
    with pytest.raises(UserError, match=rf"{pair.mask.name} is 7x7"):
        data[0]
    pair.mask.write_bytes(pair.mask.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{pair.mask} "):
        data[0]
    pair.image.write_bytes(pair.image.read_bytes()[:200])
    with pytest.raises(UserError, match=f"{pair.image} can't be read"):
        data[0]


def test_soft_masks_are_refused_for_more_than_one_class(photos):
    with pytest.raises(UserError, match="has 3 classes; soft masks are for binary data"):
        folder(photos, transform=Transform((8, 8), soft_masks=True), values={0: 0, 128: 1, 255: 2})


def test_phone_photographs_and_their_masks_stay_aligned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    stored = np.zeros((24, 40), np.uint8)
    stored[:8, :16] = 255
    upright = np.rot90(stored, -1)
    for name, mask in (("stored", stored), ("shown", upright)):
        picture = Image.fromarray(np.repeat(stored[..., None], 3, axis=2))
        picture.save(tmp_path / f"images/{name}.jpg", exif=exif, quality=95)
        Image.fromarray(np.ascontiguousarray(mask)).save(tmp_path / f"masks/{name}.png")
    for split in ("train", "val"):
        sample = folder(tmp_path, split)[0]
        assert sample["mask"].shape == (40, 24)
        assert torch.equal(sample["image"][0] > 0.5, sample["mask"] == 1)
