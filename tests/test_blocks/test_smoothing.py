import numpy as np
import torch

from blocks.smoothing import image_starts, smooth


def test_image_starts__finds_whole_images_of_a_block_only():
    indices = np.concatenate([np.arange(6, 18), np.arange(20, 24), [30, 31]])
    assert image_starts(indices, (5, 2, 3)).tolist() == [0, 6]
    assert image_starts(indices, (2, 2, 3)).tolist() == [0]
    assert image_starts(np.array([30, 31]), (5, 2, 3)).tolist() == []


def test_smooth__keeps_unit_variance_and_leaves_other_values_alone(rng):
    noise = torch.from_numpy(rng.standard_normal((3_000, 24), dtype=np.float32))
    smoothed = torch.stack([smooth(z, np.array([2]), (4, 5), 1.0) for z in noise])
    assert torch.equal(smoothed[:, :2], noise[:, :2])
    assert torch.equal(smoothed[:, 22:], noise[:, 22:])
    # standard error of a standard deviation from 3,000 draws: 0.013
    assert torch.allclose(smoothed.std(0), torch.ones(24), atol=0.055)


def test_smooth__of_almost_no_width_is_the_identity():
    z = torch.linspace(0, 1, 12)
    assert torch.allclose(smooth(z, np.array([0]), (3, 4), 1e-3), z)
